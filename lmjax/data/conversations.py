"""Conversations: records of turns and answers, their text by a template, and a mask of the answers' tokens.

In: the turns of records, and a recipe's template. Out: token ids with a mask of the assistant's tokens,
end-of-text included. One function, `render`, writes prompts, demonstrations and answers, so that a model samples
from the text form that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from lmjax.settings import TemplateSettings
from lmjax.settings.conversations import TEXT
from lmjax.tokenizers.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]


class Turn(NamedTuple):
    """One message."""

    role: Role
    text: str
    learned: bool = True  # of an answer: whether its tokens have weight in the loss


Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Record:
    """One conversation of a file.

    A demonstration is its turns, at least one of them an answer to learn. A prompt is the turns before an answer that
    a policy samples. A ranking has several answers to its turns, with ranks; a response has one answer, and a reward
    where the file has one.
    """

    turns: Turns
    answers: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()  # of the answers: the lowest is the best; equal ranks are ties
    reward: float | None = None
    where: str = field(default="", compare=False, repr=False)  # prompts: file and line
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)  # prompts: all fields
    seen: str = field(default="", compare=False, repr=False)  # prompts: the remaining text of a truncated one


Prompt = Record  # the name in the code that samples


class Piece(NamedTuple):
    """Text of a conversation: an answer, which end-of-text follows, or the text between answers."""

    text: str
    is_answer: bool
    learned: bool = True


class Encoded(NamedTuple):
    """A conversation in tokens."""

    ids: np.ndarray  # int32 [n]
    is_answer: np.ndarray  # bool [n]: tokens of learned answers, end-of-text included


def render(turns: Sequence[Turn], template: TemplateSettings) -> list[Piece]:
    """A conversation as text. One that does not end with an answer is a prompt: its text ends where an answer begins.

    The text between two answers is one piece, so that the tokens of a prompt do not depend on the answer.
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
    """The tokens of each conversation. End-of-text follows each answer; no other special token is added."""
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
