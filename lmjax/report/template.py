"""The page's Jinja2 templates, *.html in this folder, filled with values.

In: the name of a template, and plain values: strings of any origin, a model's output among them, and numbers already
written out. Out: a page, in which every value is escaped text; only the charts' drawings are markup.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

# Code points that a page must not hold, or that would hide or reorder what stands around them, and what replaces them:
# C0 and C1 controls except newline and tab, directional embeddings, overrides and isolates, and surrogates, which UTF-8
# cannot encode. The control pictures block mirrors C0.
_VISIBLE = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_VISIBLE |= {code: f"\\u{code:04x}" for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def render(template: str, values: dict[str, Any]) -> str:
    """The page that a template makes of the values. A value that the template names and does not get is an error."""
    return _environment().get_template(template).render(values)


def visible(value: object) -> Any:
    """A value as text in which every unprintable character is replaced by a visible one; markup stays as it is."""
    return value if hasattr(value, "__html__") else str(value).translate(_VISIBLE)


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
