"""Tags of words to entities, and the schemes that write entities as tags.

A tag is "O", or a prefix and a kind, such as "B-LOC": the kind is all that follows the first hyphen. An entity is a run
of words. The schemes: BIO (an entity is B I I; IOB2), IOB1 (I I I, and B only behind an entity of the same kind), BIOES
(B I E, and S for a single word) and BMES (the same with M for I).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
_TAG = re.compile(r"([BIESM])-(.+)", re.DOTALL)
_LAST = {"E", "S"}  # prefixes behind which no entity continues
_WHOLE = {"BIO": re.compile("BI*"), "BIOES": re.compile("BI*E|S"), "BMES": re.compile("BM*E|S")}


class Entity(NamedTuple):
    """An entity of a sentence: its kind, its first word, and the word behind its last one."""

    kind: str
    begin: int
    end: int


def is_tag(tag: str) -> bool:
    """Whether this is "O", or a prefix of a scheme with a kind."""
    return tag == OUTSIDE or _TAG.fullmatch(tag) is not None


def split_tag(tag: str) -> tuple[str, str]:
    """The prefix and the kind of a tag; those of any other word than a tag are ("O", "")."""
    found = _TAG.fullmatch(tag)
    return (found[1], found[2]) if found else (OUTSIDE, "")


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """The scheme of tags, "BIO", "IOB1", "BIOES" or "BMES"; "" for tags that write no entities.

    Prefixes E, S and M tell. Without them it is IOB1 where some entity begins with I, and B stands only behind an
    entity of the same kind.
    """
    prefixes, unmarked, free = set(), False, False
    for tags in sentences:
        before = (OUTSIDE, "")
        for tag in tags:
            now = split_tag(tag)
            prefixes.add(now[0])
            joined = before[0] != OUTSIDE and before[1] == now[1]
            unmarked |= now[0] == "I" and not joined
            free |= now[0] == "B" and not joined
            before = now
    if "M" in prefixes:
        return "BMES"
    if prefixes & _LAST:
        return "BIOES"
    if prefixes <= {OUTSIDE}:
        return ""
    return "IOB1" if unmarked and not free else "BIO"


def entities_of(tags: Sequence[str], scheme: str = "") -> list[Entity]:
    """The entities that the tags of a sentence write, in their order.

    As conlleval reads them (Tjong Kim Sang and De Meulder 2003), whatever the scheme: an entity begins with B or S, and
    with any tag behind O, behind E or S, or behind another kind; so an I without a B begins one. With `scheme`
    strictly: BIO wants its B, BIOES and BMES a B with its E, or an S; all else is no entity. IOB1 has nothing stricter.
    """
    return _strict(tags, _WHOLE[scheme]) if scheme in _WHOLE else _lenient(tags)


def _lenient(tags: Sequence[str]) -> list[Entity]:
    entities: list[Entity] = []
    before, begin = (OUTSIDE, ""), 0
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = split_tag(tag)
        ends = prefix in ("B", "S", OUTSIDE) or before[0] in _LAST or before[1] != kind
        if before[0] != OUTSIDE and ends:
            entities.append(Entity(before[1], begin, place))
        if prefix != OUTSIDE and (ends or before[0] == OUTSIDE):
            begin = place
        before = (prefix, kind)
    return entities


def _strict(tags: Sequence[str], pattern: re.Pattern[str]) -> list[Entity]:
    parts = [split_tag(tag) for tag in tags]
    kinds = ["", *(kind for _, kind in parts)]
    joined = "".join(  # a prefix for each word, or "-" where it does not continue the kind of the word before
        prefix if prefix in ("B", "S", OUTSIDE) or kind == before else "-"
        for (prefix, kind), before in zip(parts, kinds, strict=False)
    )
    return [Entity(parts[found.start()][1], *found.span()) for found in pattern.finditer(joined)]
