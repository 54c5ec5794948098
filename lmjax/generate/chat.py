"""Streaming: text as it is produced, and a conversation on a terminal, its turns written as the model read them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lmjax.data.conversations import Turn, Turns, encode
from lmjax.errors import UserError
from lmjax.generate.decode import Continuations, first_stop, prompt_ids, written
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.language_model import LanguageModel
from lmjax.settings import TemplateSettings
from lmjax.settings.conversations import TEXT
from lmjax.tokenizers.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # how a decoder shows the beginning of a character whose end has not come yet

Pieces = Generator[str, None, bool]  # of a text; at the end, whether the model's context was full


class TurnFormat(Protocol):
    """How a conversation is written for a model, and how its answers end."""

    @property
    def note(self) -> str:
        """What a user should know of it before the first turn, or ""."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts before which an answer ends."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer, beside the tokenizer's end of text."""
        ...

    @property
    def around(self) -> tuple[str, str]:
        """What stands before and behind an answer in what the model writes, and is not part of it."""
        ...

    def prompt(self, turns: Turns, tokenizer: Tokenizer) -> str | list[int]:
        """A conversation that ends with a user's turn, as text or tokens, opened for the answer."""
        ...


@dataclass(frozen=True)
class ChatFormat:
    """How turns are written for a model that has only read plain text. No end of text stands behind an answer."""

    user: str = "User: "
    assistant: str = "Assistant:"
    separator: str = "\n"

    ends: tuple[int, ...] = ()
    around: tuple[str, str] = ("", "")

    @property
    def note(self) -> str:
        turn = self.user + "..." + self.separator + self.assistant
        return f"this model has no chat template: turns are plain text, {turn!r}, which it was not trained to answer"

    @property
    def stop(self) -> tuple[str, ...]:
        return (self.separator + self.user,)

    def prompt(self, turns: Turns, tokenizer: Tokenizer) -> str:
        shapes = {"user": f"{self.user}{TEXT}{self.separator}{self.assistant}", "assistant": TEXT + self.separator}
        return "".join(shapes[turn.role].replace(TEXT, turn.text) for turn in turns)


@dataclass(frozen=True)
class StageTurns:
    """Turns as the stage that trained the model wrote them, in the very tokens, ends of text included."""

    template: TemplateSettings

    note: str = ""
    stop: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()

    @property
    def around(self) -> tuple[str, str]:
        before, _, behind = self.template.answer.partition(TEXT)
        return before, behind

    def prompt(self, turns: Turns, tokenizer: Tokenizer) -> list[int]:
        return encode([turns], self.template, tokenizer)[0].ids.tolist()


def stream(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: SamplingSettings,
) -> Pieces:
    """The completion that `generate` gives of a text, or of token ids, in pieces as they become certain.

    A piece never ends inside a character, and what may be the beginning of a stop string is held back. Returns whether
    the model's context ended it.
    """
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    rows = Continuations(model, params, tokenizer, [ids], settings)
    shown, nothing = "", np.zeros(1, bool)
    while True:
        rows.advance(1, nothing)
        text, ended = written(tokenizer, ids, rows.tokens[0], settings), bool(rows.ended[0])
        cut = first_stop(text, settings.stop)
        done = cut is not None or ended
        text = text[:cut] if done else text[: _certain(text, settings.stop)]
        if text.startswith(shown) and text != shown:
            yield text[len(shown) :]
            shown = text
        if done:
            return cut is None and rows.endings[0] == "context"


def chat(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    settings: SamplingSettings,
    turns: TurnFormat = ChatFormat(),
    read: Callable[[str], str] = input,
    write: Callable[[str], Any] = lambda text: print(text, end="", flush=True),
    tell: Callable[[str], Any] = lambda text: print(text, file=sys.stderr, flush=True),
) -> None:
    """Reads lines and streams answers until the input ends or is interrupted.

    The conversation is forgotten from its beginning as it outgrows the model's context. `tell` gets remarks.
    """
    settings = dataclasses.replace(settings, stop=(*settings.stop, *turns.stop), ends=turns.ends)
    context = model.settings.context
    room = max(context - settings.max_tokens, context // 2)
    history: list[Turn] = []
    if turns.note:
        tell(turns.note)
    while True:
        try:
            line = read("> ")
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        history.append(Turn("user", line))
        answer = ""
        try:
            prompt = turns.prompt(tuple(history), tokenizer)
            while len(history) > 1 and _tokens(prompt, tokenizer) > room:
                history = history[2:]
                prompt = turns.prompt(tuple(history), tokenizer)
            pieces = _without(stream(model, params, tokenizer, prompt, settings), *turns.around)
            while True:
                piece = next(pieces)
                answer += piece
                write(piece)
        except StopIteration as end:
            write("\n")
            if end.value:
                fix = "--beyond-context slide continues"
                tell(f"the answer ends where the model's context of {context} tokens is full; {fix}")
        except KeyboardInterrupt:
            write("\n")
            return
        except UserError as error:  # a line that is longer than the context, say: the conversation goes on without it
            history.pop()
            write(f"{error}\n")
            continue
        history.append(Turn("assistant", answer))


def _tokens(prompt: str | list[int], tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)


def _without(pieces: Pieces, before: str, behind: str) -> Pieces:
    """The pieces of a text without `before` at its beginning and `behind` at its end, where they are."""
    text, shown = "", 0
    while True:
        try:
            text += next(pieces)
        except StopIteration as end:
            rest = text.removeprefix(before).removesuffix(behind)[shown:]
            if rest:
                yield rest
            return end.value
        if len(text) < len(before) and before.startswith(text):
            continue
        body = text.removeprefix(before)
        held = next((n for n in range(min(len(behind), len(body)), 0, -1) if body.endswith(behind[:n])), 0)
        if len(body) - held > shown:
            yield body[shown : len(body) - held]
            shown = len(body) - held


def _certain(text: str, stop: tuple[str, ...]) -> int:
    """How much of an unfinished text will not change: not a half character, nor what may begin a stop string."""
    end = len(text.rstrip(UNFINISHED))
    for string in stop:
        for length in range(min(len(string) - 1, end), 0, -1):
            if text[:end].endswith(string[:length]):
                end -= length
                break
    return end
