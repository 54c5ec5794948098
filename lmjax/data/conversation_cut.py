"""Truncates conversations that are longer than a row, counts them, and warns.

In: encoded conversations and a recipe's dialogue settings. Out: truncated conversations, None for those left out, and
counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lmjax.data.conversations import Encoded, Record, render
from lmjax.errors import UserError
from lmjax.settings import DialogueSettings
from lmjax.tokenizers.tokenizer import Tokenizer

CUT_SHARE = 0.2  # of conversations; a larger truncated share is a warning
_FEWEST_ANSWERS = 3  # different answers, for a shared end to be a marker
_MARKER = re.compile(r"[<#\[{|@~]\S{2,}$")


@dataclass
class Counts:
    """How many records of a source were read, skipped, truncated or left out."""

    records: int = 0
    bad: int = 0  # skipped by the reader
    cut: int = 0  # truncated conversations
    left_out: int = 0  # too long, or without an answer or a comparison after truncation
    answers_left_out: int = 0  # of rankings, beyond most_answers
    equal: int = 0  # answers of rankings with equal tokens, before or after truncation, at different ranks
    conversations: int = 0  # of a ranking, each answer with its prompt
    messages: list[str] = field(default_factory=list)
    unused: Counter[str] = field(
        default_factory=Counter
    )  # valid records that this kind of rows does not use, by the reason
    files_left_out: list[str] = field(default_factory=list)  # of a folder or glob, in words
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.records:,} records"]
        names = {
            "bad": "bad",
            "cut": "truncated",
            "left_out": "left out",
            "answers_left_out": "answers left out",
            "equal": "equal answers at different ranks",
        }
        parts += [f"{getattr(self, name):,} {words}" for name, words in names.items() if getattr(self, name)]
        parts += [f"{count:,} {reason}" for reason, count in self.unused.items()]
        parts += [f"files left out: {', '.join(self.files_left_out)}"] if self.files_left_out else []
        return ", ".join(parts)


def warn(counts: Counts, answers: Iterable[str], settings: DialogueSettings) -> None:
    """Adds warnings: many truncated conversations, and a marker at the end of all answers."""
    if counts.cut > CUT_SHARE * counts.conversations:
        counts.warnings.append(
            f"{counts.cut:,} of {counts.conversations:,} conversations ({counts.cut / counts.conversations:.0%}) are "
            f"longer than dialogue.sequence_length = {settings.sequence_length} tokens and lose their "
            f"{'beginning' if settings.too_long == 'left' else 'end'} (dialogue.too_long = {settings.too_long!r}); "
            "raise dialogue.sequence_length"
        )
    marker = shared_end(answers)
    if marker:
        counts.warnings.append(
            f"every answer ends with {marker!r}, which training and rewards read as text; "
            f"set answer_end = {marker!r} of its source to remove it"
        )


def shared_end(answers: Iterable[str]) -> str:
    """The marker, such as "###end###", at the end of all answers; "" where there is none."""
    different = {answer[::-1] for answer in answers}
    if len(different) < _FEWEST_ANSWERS:
        return ""
    first, last = min(different), max(different)  # the common prefix of these two is that of all
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    marker = _MARKER.search(first[:length][::-1])
    return marker[0] if marker else ""


def fit_to(encoded: Encoded, most: int, settings: DialogueSettings, counts: Counts, where: str) -> Encoded | None:
    """The conversation, truncated to `most` tokens if it is longer, or None where the settings leave it out."""
    excess = len(encoded.ids) - most
    if not _may_cut(len(encoded.ids), most, settings, counts, where):
        return None if excess > 0 else encoded
    counts.cut += 1
    span = slice(excess, None) if settings.too_long == "left" else slice(None, most)
    return Encoded(encoded.ids[span], encoded.is_answer[span])


def fit_answers(
    group: Sequence[Encoded], most: int, settings: DialogueSettings, counts: Counts, where: str
) -> list[Encoded] | None:
    """The answers to one prompt, each with the prompt, truncated to `most` tokens, or None to leave them out.

    Truncation at the left removes the same tokens of the prompt from all answers, so that they stay comparable.
    """
    longest = max(len(answer.ids) for answer in group)
    if not _may_cut(longest, most, settings, counts, where):
        return None if longest > most else list(group)
    cut = min(longest - most, int(np.argmax(last_run(group[0].is_answer)))) if settings.too_long == "left" else 0
    fitted = []
    for ids, is_answer in group:
        span = slice(max(cut, len(ids) - most), None) if settings.too_long == "left" else slice(None, most)
        fitted.append(Encoded(ids[span], is_answer[span]))
    if not all(answer.is_answer[-1] for answer in fitted):
        return None
    counts.cut += sum(len(after.ids) < len(before.ids) for before, after in zip(group, fitted, strict=True))
    return fitted


def fit_prompt(
    prompt: Record, encoded: Encoded, settings: DialogueSettings, tokenizer: Tokenizer, counts: Counts, where: str
) -> tuple[Record, Encoded] | None:
    """The prompt, truncated if it is too long, or None where it is left out.

    Truncation keeps the opening of the answer. A truncated record has its remaining text in `seen`.
    """
    most = settings.sequence_length
    fitted = fit_to(encoded, most, settings, counts, where)
    if fitted is None or fitted is encoded:
        return None if fitted is None else (prompt, encoded)
    ids = fitted.ids
    if settings.too_long == "right":
        opening = _opening(prompt, encoded, settings, tokenizer)
        if len(opening) >= most:
            counts.cut -= 1
            counts.left_out += 1
            return None
        ids = np.concatenate([encoded.ids[: most - len(opening)], opening])
    fitted = Encoded(ids, np.zeros(len(ids), bool))
    return replace(prompt, seen=tokenizer.decode(ids.tolist())), fitted


def without_equal(group: Sequence[Encoded], ranks: Sequence[int]) -> list[int]:
    """The places of the answers that can be compared: those without an equal answer at another rank."""
    seen: dict[bytes, set[int]] = {}
    for answer, rank in zip(group, ranks, strict=True):
        seen.setdefault(answer.ids.tobytes(), set()).add(rank)
    return [place for place, answer in enumerate(group) if len(seen[answer.ids.tobytes()]) == 1]


def last_run(is_answer: np.ndarray) -> np.ndarray:
    """The mask of the last answer of a conversation that ends with an answer."""
    others = np.flatnonzero(~is_answer)
    last = np.zeros_like(is_answer)
    last[(others[-1] + 1 if len(others) else 0) :] = True
    return last


def _may_cut(length: int, most: int, settings: DialogueSettings, counts: Counts, where: str) -> bool:
    """Whether to truncate a conversation of this length; counts it as left out under "skip"."""
    if length <= most:
        return False
    if settings.too_long == "error":
        raise UserError(
            f"{where}: a conversation of {length} tokens: expected at most {most}; raise "
            'dialogue.sequence_length, or set dialogue.too_long to "left", "right" or "skip"'
        )
    if settings.too_long == "skip":
        counts.left_out += 1
    return settings.too_long != "skip"


def _opening(prompt: Record, encoded: Encoded, settings: DialogueSettings, tokenizer: Tokenizer) -> np.ndarray:
    """The tokens after the last text of a prompt: the end of its turn and the opening of the answer."""
    text = prompt.turns[-1].text
    last = render(prompt.turns, settings.template)[-1].text
    opening = last[last.rindex(text) + len(text) :] if text in last else last
    with_opening, without = tokenizer.encode_batch([last, last.removesuffix(opening)])
    return encoded.ids[len(encoded.ids) - (len(with_opening) - len(without)) :]
