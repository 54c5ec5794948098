"""Labelled texts and choices as framed rows.

In: examples, a tokenizer and a frame. Out: the tokens of rows, and of which example each is a part: a long text may
have several windows, and a question a row for each option.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lmjax.data.frames import Cut, Frame, fitting, framed, kept
from lmjax.data.labelled import BadExampleError, Choices, Labelled, UnfitExampleError
from lmjax.data.labelled_sets import reading
from lmjax.data.windows import windows
from lmjax.errors import UserError, nearest, shortened
from lmjax.fields import placed
from lmjax.tokenizers.tokenizer import Tokenizer

Long = Literal["head", "tail", "head_tail", "windows", "error"]


class FramedTexts(NamedTuple):
    """The tokens and types of N texts, and the number of the example, int64 [N], that each is a part of."""

    texts: list[tuple[np.ndarray, np.ndarray]]
    examples: np.ndarray


def text_rows(
    examples: Sequence[Labelled],
    tokenizer: Tokenizer,
    frame: Frame,
    length: int,
    long: Long = "head",
    stride: int = 128,
) -> FramedTexts:
    """A row for each example of one or two texts, or one for each of its windows, in the order of the examples.

    Of two texts that are too long for a row, the longer one has windows, and the other one is whole unless it is longer
    than half of the row's room. Raises UserError for a text that is too long where `long` is "error".
    """
    ids = tokenizer.encode_batch([text for each in examples for text in each.texts])
    counts = np.cumsum([0, *(len(each.texts) for each in examples)])
    tokens = [ids[first:last] for first, last in itertools.pairwise(counts)]
    if long != "windows":
        rows = [
            framed(frame, own[0], own[1] if len(own) > 1 else None, length, long, each.where)
            for own, each in zip(tokens, examples, strict=True)
        ]
        return FramedTexts(rows, np.arange(len(examples)))
    return _in_windows(tokens, frame, length, stride)


def _in_windows(tokens: Sequence[Sequence[np.ndarray]], frame: Frame, length: int, stride: int) -> FramedTexts:
    wide = [max(range(len(own)), key=lambda place: len(own[place])) for own in tokens]
    others = [None if len(own) < 2 else own[1 - place] for own, place in zip(tokens, wide, strict=True)]
    cut = [  # the text beside the windows, at most half of the room
        None if other is None else other[: fitting(len(own[place]), len(other), length - 3)[1]]
        for own, other, place in zip(tokens, others, wide, strict=True)
    ]
    rooms = np.array([length - 2 - (0 if other is None else len(other) + 1) for other in cut], np.int64)
    with placed("task"):
        found = windows(np.array([len(own[place]) for own, place in zip(tokens, wide, strict=True)]), rooms, stride)
    rows = []
    for number, begin, end in zip(*found, strict=True):
        part, other = tokens[number][wide[number]][begin:end], cut[number]
        pair = (part, other) if other is None or wide[number] == 0 else (other, part)
        rows.append(framed(frame, pair[0], pair[1], length))
    return FramedTexts(rows, found.texts)


def choice_rows(
    examples: Sequence[Choices], tokenizer: Tokenizer, frame: Frame, length: int, cut: Cut = "head"
) -> tuple[FramedTexts, np.ndarray]:
    """A row of context and option for each option, and the options of each example, int64 [N, K], -1 for none."""
    counts = [len(each.options) for each in examples]
    ids = tokenizer.encode_batch([text for each in examples for text in (each.context, *each.options)])
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    table = np.full((len(examples), max(counts, default=0)), -1, np.int64)
    first = 0
    for number, each in enumerate(examples):
        context, options = ids[first], ids[first + 1 : first + 1 + counts[number]]
        first += 1 + counts[number]
        table[number, : counts[number]] = len(rows) + np.arange(counts[number])
        rows += [framed(frame, context, option, length, cut, each.where) for option in options]
    return FramedTexts(rows, np.repeat(np.arange(len(examples)), counts)), table


def single_rows(
    examples: Sequence[Labelled], tokenizer: Tokenizer, frame: Frame | None, length: int, cut: Cut = "head"
) -> tuple[FramedTexts, np.ndarray]:
    """Each text of each example as a row of its own, and the rows of each example, int64 [N, 2], -1 for none.

    Without a frame a row has the tokens of the text alone. Raises UserError for an example of more than two texts.
    """
    alone = [Labelled((text,), None, each.where) for each in examples for text in each.texts]
    numbers = np.repeat(np.arange(len(examples)), [len(each.texts) for each in examples])
    first = np.cumsum([0, *(len(each.texts) for each in examples)])
    rows = np.stack([first[:-1], np.where(np.diff(first) > 1, first[:-1] + 1, -1)], axis=1)
    if frame is not None:
        return FramedTexts(text_rows(alone, tokenizer, frame, length, cut).texts, numbers), rows
    ids = tokenizer.encode_batch([each.texts[0] for each in alone])
    bare = [own[kept(len(own), length, cut)] for own in ids]
    return FramedTexts([(own, np.zeros_like(own)) for own in bare], numbers), rows


def classes_of(examples: Sequence[Labelled]) -> tuple[str, ...]:
    """The labels that occur, in alphabetical order, numbers by their size. Raises UserError for a missing label."""
    found = {label_of(each) for each in examples}
    numbers = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if numbers else 0, label)))


def label_of(example: Labelled) -> str:
    """The class of an example. Raises UserError where the file has none, or a score."""
    if isinstance(example.label, str):
        return example.label
    found = "no label" if example.label is None else f"the score {example.label:g}"
    fix = "name its column in label" if example.label is None else "set task.scores, or name the column of the classes"
    raise UserError(f"{example.where}: {found}; expected the name of a class; {fix}")


def class_numbers(examples: Sequence[Labelled], classes: Sequence[str]) -> np.ndarray:
    """The number of the class of each example, int32 [N]. Raises UserError, with file and line, for an unknown one."""
    numbers = {label: number for number, label in enumerate(classes)}
    for each in examples:
        if label_of(each) not in numbers:
            raise UnfitExampleError(
                f"{each.where}: the label {shortened(each.label, 60)} is none of the training data's; "
                f"{nearest(str(each.label), classes)}",
                "a label that the training data have not",
            )
    return np.array([numbers[label_of(each)] for each in examples], np.int32)


def require_labels(examples: Sequence[Labelled] | Sequence[Choices]) -> None:
    """Raises UserError, with file and line, for an example without a label: there is nothing to learn from it."""
    for each in examples:
        if each.label is None:
            raise UserError(f"{each.where}: no label; expected one, to train or to evaluate; name its column in label")


def require_pairs(examples: Sequence[Labelled]) -> None:
    """Raises UserError, with file and line, for an example that has not two texts."""
    for each in examples:
        if len(each.texts) != 2:
            raise UserError(f"{each.where}: one text, expected two; name both columns in fields")


def scores_of(examples: Sequence[Labelled]) -> np.ndarray:
    """The score of each example, float32 [N]; text is read as a number. Raises UserError where it is none."""
    try:
        return np.array([reading.score(each.label, each.where) for each in examples], np.float32)
    except BadExampleError as error:
        raise UserError(f"{error.told}; name the column of the scores in label, or learn classes") from None
