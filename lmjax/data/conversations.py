"""Conversations: what they are, how a template writes them, and which of their tokens are the assistant's.

In: the turns of records, and a recipe's template. Out: token ids with a mask of the assistant's tokens,
end-of-text included. One function, `render`, writes prompts, demonstrations and answers alike, so that a model samples
from exactly what it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from lmjax.settings.conversations import TEXT, TemplateSettings
from lmjax.tokenizers.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


class Turn(NamedTuple):
    """What one side says."""

    role: Role
    text: str
    learned: bool = True  # of an answer: whether it is to be imitated, or is only read


Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Record:
    """A conversation of a file, and what its kind of rows reads beside the turns.

    A demonstration is its turns, of which at least one answer is to be imitated. A prompt's next answer is sampled.
    A ranking has several answers to its turns, with ranks; a response has one, with a reward where the file gives it.
    """

    turns: Turns
    answers: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()  # of the answers: the lowest is the best; equal ranks are ties
    reward: float | None = None
    where: str = field(default="", compare=False, repr=False)  # of a prompt: file and line,
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)  # the fields of the file,
    seen: str = field(default="", compare=False, repr=False)  # and the text that is left where it was cut to its row


Prompt = Record  # of which the next answer is sampled


class Piece(NamedTuple):
    """Text of a conversation that is, or is not, an answer; an answer is followed by end-of-text."""

    text: str
    is_answer: bool
    learned: bool = True


class Encoded(NamedTuple):
    """A conversation in tokens."""

    ids: np.ndarray  # int32 [n]
    is_answer: np.ndarray  # bool [n]: the tokens of answers that are to be learned, end-of-text included


def render(turns: Sequence[Turn], template: TemplateSettings) -> list[Piece]:
    """A conversation as text. One that does not end with an answer is opened for the next: it is a prompt.

    Pieces that are no answers are written together, so that the tokens of a prompt do not depend on what follows.
    """
    pieces: list[Piece] = []
    context = ""
    last = len(turns) - 1
    for place, turn in enumerate(turns):
        if turn.role != "assistant":
            shape = template.system if turn.role == "system" else template.user
            context += shape.replace(TEXT, turn.text)
            continue
        pieces.append(Piece(context + template.assistant, False))
        pieces.append(Piece(template.answer.replace(TEXT, turn.text), True, turn.learned))
        context = template.between if place < last else ""
    if not turns or turns[-1].role != "assistant":
        pieces.append(Piece(context + template.assistant, False))
    return pieces


def encode(conversations: Sequence[Sequence[Turn]], template: TemplateSettings, tokenizer: Tokenizer) -> list[Encoded]:
    """The tokens of each conversation. Each answer ends with end-of-text; nothing else is added."""
    rendered = [render(turns, template) for turns in conversations]
    ids = iter(tokenizer.encode_batch([piece.text for pieces in rendered for piece in pieces]))
    end = np.array([tokenizer.eos_id], np.int32)
    out = []
    for pieces in rendered:
        parts = [np.concatenate([next(ids), end]) if piece.is_answer else next(ids) for piece in pieces]
        learned = (piece.is_answer and piece.learned for piece in pieces)
        marks = [np.full(len(part), learns) for part, learns in zip(parts, learned, strict=True)]
        out.append(Encoded(np.concatenate(parts).astype(np.int32), np.concatenate(marks)))
    return out
