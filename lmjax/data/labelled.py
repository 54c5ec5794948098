"""Examples with labels: what the readers of lmjax/data/labelled_sets give and the fine-tuning tasks learn.

An example says where it was read, as "file:line". A record that is none is a `BadExampleError`, which is raised, or
skipped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmjax.data.documents import BadRecordError
from lmjax.errors import UserError
from lmjax.settings.labelled import LabelledSettings


@dataclass(frozen=True)
class Labelled:
    """One or two texts, and their class or score; None where the file has no labels."""

    texts: tuple[str, ...]
    label: str | float | None
    where: str = field(compare=False)


@dataclass(frozen=True)
class Choices:
    """Options of which one is right. The text of an option follows the context."""

    context: str
    options: tuple[str, ...]
    label: int | None  # of the right option, from 0
    where: str = field(compare=False)


@dataclass(frozen=True)
class Question:
    """A question on a passage. `answers` are texts with their first characters in the passage."""

    id: str
    question: str
    passage: str
    answers: tuple[tuple[str, int], ...]
    impossible: bool  # whether the passage holds no answer
    title: str
    where: str = field(compare=False)


@dataclass(frozen=True)
class TaggedWords:
    """The words of a sentence, each with its tag; None where the file has no tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    where: str = field(compare=False)
    text: str | None = None  # that has the words in this order, if it is known


class BadExampleError(BadRecordError):
    """A record that is no example. `reason` is what skipped records are counted by, `found` what this one has."""

    def __init__(self, where: str, reason: str, found: str = "") -> None:
        self.told = f"{where}: {reason}{found and f': {found}'}"
        super().__init__(f"{self.told}; fix it, or set on_bad_record to 'skip'")
        self.where, self.reason = where, reason


class UnfitExampleError(UserError):
    """An example that the task cannot take, such as one with a label of its own. `reason` is what it is counted by."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


Example = Labelled | Choices | Question | TaggedWords
Reader = Callable[[Path, LabelledSettings], Iterator[Any]]  # of `Example`s, and of `BadExampleError`s in their place


@dataclass
class Examples:
    """The examples of a source in the order of its files, and how many records were skipped for each reason."""

    items: list[Any]
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)
