"""Labelled examples as texts: what an encoder-decoder reads, and what it is to write (Raffel et al. 2020, appendix D).

In: examples of lmjax/data/labelled.py. Out: inputs and targets as text, and packed rows of their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lmjax.data.labelled import BadExampleError, Choices, Labelled, Question
from lmjax.data.seq2seq_rows import ExampleRows
from lmjax.data.token_strings import TokenStrings
from lmjax.settings.text_to_text import TextToTextSettings
from lmjax.tokenizers.tokenizer import Tokenizer

NO_ANSWER = "unanswerable"  # the target of a question whose passage has no answer


class Pair(NamedTuple):
    """What is read, and the texts of which each is right; the first one is learned."""

    inputs: str
    targets: tuple[str, ...]


def as_text(example: Labelled | Choices | Question, settings: TextToTextSettings) -> Pair:
    """An example as texts. Raises BadExampleError where it has no label, or is of a kind that is not written as text.

    A class is its name, a score has one decimal, a choice is "choice1" or another; a question is written as
    "question: ... context: ..." (appendix D.15).
    """
    parts = _parts(example)
    if not parts.targets:
        raise BadExampleError(example.where, "no label, which a text-to-text task learns")
    written = _written(parts.texts, settings.names or parts.names, example.where)
    return Pair(settings.prefix + written, parts.targets)


class _Parts(NamedTuple):
    texts: tuple[str, ...]
    names: tuple[str, ...]  # of the texts where the settings give none
    targets: tuple[str, ...]


def _parts(example: Labelled | Choices | Question) -> _Parts:
    if isinstance(example, Question):
        answers = tuple(dict.fromkeys(text for text, _ in example.answers))
        targets = answers or ((NO_ANSWER,) if example.impossible else ())
        return _Parts((example.question, example.passage), ("question", "context"), targets)
    if isinstance(example, Choices):
        numbers = tuple(f"choice{number}" for number in range(1, len(example.options) + 1))
        targets = () if example.label is None else (numbers[example.label],)
        return _Parts((*example.options, example.context), (*numbers, "context"), targets)
    if not isinstance(example, Labelled):
        raise BadExampleError("a text-to-text task", f"expected texts with a label, found {type(example).__name__}")
    label = f"{example.label:.1f}" if isinstance(example.label, float) else example.label
    return _Parts(example.texts, (), () if label is None else (label,))


def _written(texts: Sequence[str], names: Sequence[str], where: str) -> str:
    if not names:
        return " ".join(texts)
    if len(names) != len(texts):
        raise BadExampleError(where, f"expected {len(names)} texts for names = {tuple(names)}", f"{len(texts)} texts")
    return " ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True))


class Encoded(NamedTuple):
    """Pairs in tokens, each with the end-of-text token, and how many were cut to fit."""

    inputs: list[np.ndarray]
    targets: list[np.ndarray]
    cut: int

    def rows(self, shape: tuple[int, int]) -> ExampleRows:
        return ExampleRows(TokenStrings.of(self.inputs), TokenStrings.of(self.targets), shape)


def encoded(pairs: Sequence[Pair], tokenizer: Tokenizer, shape: tuple[int, int]) -> Encoded:
    """The pairs in tokens, of which inputs have at most shape[0] and targets shape[1], their ends included."""
    eos, cut, sides = np.array([tokenizer.eos_id], np.int32), 0, []
    for most, texts in zip(shape, zip(*((pair.inputs, pair.targets[0]) for pair in pairs), strict=True), strict=True):
        ids = tokenizer.encode_batch(list(texts))
        cut += sum(len(one) >= most for one in ids)
        sides.append([np.concatenate([one[: most - 1], eos]) for one in ids])
    return Encoded(sides[0], sides[1], cut)
