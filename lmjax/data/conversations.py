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

from lmjax.data.jinja_chat import render_messages
from lmjax.errors import UserError, shortened
from lmjax.settings import TemplateSettings
from lmjax.settings.conversations import TEXT
from lmjax.tokenizers.tokenizer import Tokenizer

END = "\0end of text\0"  # what a template in Jinja writes for the end of text of a tokenizer that reads none from text

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
    """Text of a conversation: an answer, or the text between answers."""

    text: str
    is_answer: bool
    learned: bool = True
    ended: bool = True  # an answer: whether end-of-text follows; else the text has a token that ends a turn


class Encoded(NamedTuple):
    """A conversation in tokens."""

    ids: np.ndarray  # int32 [n]
    is_answer: np.ndarray  # bool [n]: tokens of learned answers, end-of-text included


def render(turns: Sequence[Turn], template: TemplateSettings) -> list[Piece]:
    """A conversation as text. One that does not end with an answer is a prompt: its text ends where an answer begins.

    The text between two answers is one piece, so that the tokens of a prompt do not depend on the answer. Raises
    UserError where a template in Jinja refuses the conversation, or its answers cannot be found.
    """
    if template.in_jinja:
        return jinja_pieces(turns, template)
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


def jinja_pieces(turns: Sequence[Turn], template: TemplateSettings) -> list[Piece]:
    """As `render`, by a template in Jinja: an answer is what it writes more with the answer than up to its beginning.

    The text behind the last answer's end, such as a line's end, is left out: a model stops before it. The end of text
    also follows answers of which neither the template's text nor a token of `template.ends` is an end.
    """
    where, tokens = f"dialogue.template {template.name or 'in Jinja'}", dict(template.tokens)
    end = tokens.get("eos_token", END)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    if any(END in turn.text for turn in turns):
        raise UserError(f"{where}: a turn has {END!r}, which stands for the end of text; take it out of the data")

    def written(count: int, opened: bool) -> str:
        return render_messages(template.jinja, messages[:count], tokens, where, opened)

    def after(text: str, beginning: str) -> str:
        if not text.startswith(beginning):
            raise UserError(
                f"{where}: with one more turn it writes {shortened(text)}, which does not begin with "
                f"{shortened(beginning)}, as without: expected a template that only adds to its text; choose another"
            )
        return text[len(beginning) :]

    pieces: list[Piece] = []
    before = ""
    for place, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        opened = written(place, True) if place else ""
        answer = after(written(place + 1, False), opened)
        text, ended, _ = answer.rpartition(end)
        text = text if ended else answer.rstrip()
        pieces.append(Piece(after(opened, before), False))
        pieces.append(Piece(text, True, turn.learned, bool(ended) or not template.ends))
        before = opened + text + ended
    if not turns or turns[-1].role != "assistant":
        pieces.append(Piece(after(written(len(turns), True), before), False))
    return pieces


def encode(conversations: Sequence[Sequence[Turn]], template: TemplateSettings, tokenizer: Tokenizer) -> list[Encoded]:
    """The tokens of each conversation. End-of-text follows each answer; no other special token is added.

    A template in Jinja writes what else it does: a beginning of the text, tokens that end a turn.
    """
    rendered = [render(turns, template) for turns in conversations]
    texts = [piece.text for pieces in rendered for piece in pieces]
    ids = iter(_with_ends(texts, tokenizer) if template.in_jinja else tokenizer.encode_batch(texts))
    end = np.array([tokenizer.eos_id], np.int32)
    out = []
    for pieces in rendered:
        parts = [np.concatenate([next(ids), end]) if piece.is_answer and piece.ended else next(ids) for piece in pieces]
        learned = (piece.is_answer and piece.learned for piece in pieces)
        marks = [np.full(len(part), learns) for part, learns in zip(parts, learned, strict=True)]
        out.append(Encoded(np.concatenate(parts).astype(np.int32), np.concatenate(marks)))
    return out


def _with_ends(texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The tokens of each text, in which END is the end of text."""
    parts = [text.split(END) for text in texts]
    ids = iter(tokenizer.encode_batch([part for own in parts for part in own]))
    end = np.array([tokenizer.eos_id], np.int32)
    found = []
    for own in parts:
        joined = [next(ids)]
        for _ in own[1:]:
            joined += [end, next(ids)]
        found.append(np.concatenate(joined) if own[1:] else joined[0])
    return found
