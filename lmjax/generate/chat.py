"""Streaming of a completion's text, and a conversation on a terminal in the turn format of the model's training."""

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

UNFINISHED = "\ufffd"  # how a tokenizer decodes a character of which some bytes are missing

Pieces = Generator[str, None, bool]  # yields pieces of a text; returns whether the model's context was full


class TurnFormat(Protocol):
    """The format of a conversation for a model, and how its answers end."""

    @property
    def note(self) -> str:
        """A note to show the user before the first turn, or ""."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings: an answer ends before the first of them."""
        ...

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end an answer, beside the tokenizer's end of text."""
        ...

    @property
    def around(self) -> tuple[str, str]:
        """The prefix and the suffix of an answer in the model's text, which are not part of the answer."""
        ...

    def prompt(self, turns: Turns, tokenizer: Tokenizer) -> str | list[int]:
        """A conversation that ends with a user's turn, as text or tokens up to where the answer begins."""
        ...


@dataclass(frozen=True)
class ChatFormat:
    """The format of turns for a model that was trained on plain text only. No end of text follows an answer."""

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
        shapes["system"] = TEXT + self.separator
        return "".join(shapes[turn.role].replace(TEXT, turn.text) for turn in turns)


@dataclass(frozen=True)
class StageTurns:
    """Turns in the template of the stage that trained the model: the same tokens, ends of text included."""

    template: TemplateSettings

    note: str = ""
    stop: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        return self.template.ends

    @property
    def around(self) -> tuple[str, str]:
        if self.template.in_jinja:
            return "", ""
        prefix, _, suffix = self.template.answer.partition(TEXT)
        return prefix, suffix

    def prompt(self, turns: Turns, tokenizer: Tokenizer) -> list[int]:
        return encode([turns], self.template, tokenizer)[0].ids.tolist()


def stream(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    settings: SamplingSettings,
) -> Pieces:
    """The completion by `generate` of a text, or of token ids, in pieces that will not change any more.

    A piece never ends inside a character, and a possible beginning of a stop string is yielded only when it is known to
    be none. Returns whether the completion ended because the model's context was full.
    """
    ids = prompt_ids(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    rows = Continuations(model, params, tokenizer, [ids], settings)
    shown, not_stopped = "", np.zeros(1, bool)
    while True:
        rows.advance(1, not_stopped)
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

    The oldest turns are dropped when the conversation is longer than the model's context. `tell` receives notes.
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
        except UserError as error:  # for example a line longer than the context: it is dropped
            history.pop()
            write(f"{error}\n")
            continue
        history.append(Turn("assistant", answer))


def _tokens(prompt: str | list[int], tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)


def _without(pieces: Pieces, prefix: str, suffix: str) -> Pieces:
    """The pieces of a text without its `prefix` and its `suffix`, if it has them."""
    text, shown = "", 0
    while True:
        try:
            text += next(pieces)
        except StopIteration as end:
            rest = text.removeprefix(prefix).removesuffix(suffix)[shown:]
            if rest:
                yield rest
            return end.value
        if len(text) < len(prefix) and prefix.startswith(text):
            continue
        body = text.removeprefix(prefix)
        overlap = next((n for n in range(min(len(suffix), len(body)), 0, -1) if body.endswith(suffix[:n])), 0)
        if len(body) - overlap > shown:
            yield body[shown : len(body) - overlap]
            shown = len(body) - overlap


def _certain(text: str, stop: tuple[str, ...]) -> int:
    """The length of the part of an unfinished text that will not change.

    It excludes an incomplete character and a possible beginning of a stop string at the end.
    """
    end = len(text.rstrip(UNFINISHED))
    for string in stop:
        for length in range(min(len(string) - 1, end), 0, -1):
            if text[:end].endswith(string[:length]):
                end -= length
                break
    return end
