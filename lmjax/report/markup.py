"""HTML from Python values: whatever is not `Html` already is text, and text never becomes markup.

In: strings of any origin, a model's output among them. Out: `Html`, which only this module and the template make.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Code points that a page must not hold, or that would hide or reorder what stands around them: C0 and C1 controls
# except newline and tab, directional embeddings, overrides and isolates, and surrogates, which UTF-8 cannot encode.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Html(str):
    """Markup. Any other string is text, and is escaped when it enters an element."""


def element(tag: str, *content: object, **attributes: object) -> Html:
    """One element around its content. `cls` stands for class, `_` in a name for `-`; None leaves an attribute out."""
    given = {("class" if name == "cls" else name.replace("_", "-")): value for name, value in attributes.items()}
    written = "".join(f' {name}="{escaped(value)}"' for name, value in given.items() if value is not None)
    return Html(f"<{tag}{written}>{joined(content)}</{tag}>")


def joined(content: Iterable[object]) -> Html:
    """Pieces one after another: `Html` as it is, None as nothing, everything else escaped."""
    return Html("".join(escaped(piece) for piece in content if piece is not None))


def escaped(value: object) -> Html:
    """A value as it may stand in an element or between an attribute's quotes. Unprintable characters become visible."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_UNPRINTABLE.sub(_visible, str(value))))


def _visible(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures block mirrors C0
    if code == 0x7F:
        return "\u2421"
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"
