"""What the comments beside fields and parameters say of them, as whole sentences, for `--help`.

In: a dataclass or a function. Out: a text for each name that has a comment: behind it, or in the lines above it. A
comment that ends with a comma continues in the next field's, and both have all of it.
"""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import re
import tokenize
from typing import Any


def field_texts(part: Any) -> dict[str, str]:
    """The texts of a dataclass's fields, those of its bases included; of a function, of its parameters."""
    texts: dict[str, str] = {}
    for one in reversed(part.__mro__) if isinstance(part, type) else (part,):
        texts |= _texts_in(one)
    return texts


@functools.cache
def _texts_in(part: Any) -> dict[str, str]:
    try:
        source = inspect.cleandoc("\n" + inspect.getsource(part))
    except (OSError, TypeError):  # a class that no file holds
        return {}
    above: list[str] = []
    own: dict[str, list[str]] = {}
    for line in source.splitlines():
        code, comment = _cut(line)
        name = re.match(r"\s*(?:def \w+\()?(\w+):\s", code)
        if name and name[1] not in ("else", "try", "finally"):
            own.setdefault(name[1], above + ([comment] if comment else []))
            above = []
        elif comment and not code.strip():
            above.append(comment)
        else:
            above = []
    joined = {name: " ".join(comments) for name, comments in own.items()}
    return {name: _sentence(text) for name, text in _continued(joined).items() if text}


def _cut(line: str) -> tuple[str, str]:
    """The code and the comment of a line."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(line.strip() + "\n").readline):
            if token.type == tokenize.COMMENT:
                place = line.rindex(token.string)
                return line[:place], token.string.lstrip("# ").strip()
    except (tokenize.TokenError, IndentationError, SyntaxError):  # a line of a longer statement
        found = re.fullmatch(r"(.*?)\s\s#\s(.*)|\s*#\s(.*)", line)
        if found:
            return found[1] or "", found[2] or found[3] or ""
    return line, ""


def _continued(texts: dict[str, str]) -> dict[str, str]:
    names = list(texts)
    for one, following in itertools.pairwise(names):
        if texts[one].endswith(","):
            texts[one] = texts[following] = f"{texts[one]} {texts[following]}"
    return texts


def _sentence(text: str) -> str:
    """The text with a capital at its beginning, unless that is a name, and a full stop at its end."""
    first = re.match(r"[a-z]+(?=[ ,:;.]|$)", text)
    begun = text[0].upper() + text[1:] if (first and len(first[0]) > 1) or text.startswith("a ") else text
    return begun if begun.endswith((".", "!", "?")) else f"{begun}."
