"""Streaming: text as it is produced, and a conversation on a terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmjax.data.tokenizer import Tokenizer
from lmjax.errors import UserError
from lmjax.generate.decode import (
    advance,
    begin,
    compiled_settings,
    continuation,
    first_stop,
    produced_tokens,
    prompt_ids,
    ready,
)
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.language_model import LanguageModel

UNFINISHED = "\ufffd"  # how a decoder shows the beginning of a character whose end has not come yet


@dataclass(frozen=True)
class ChatFormat:
    """How turns are written for a model that has only read plain text."""

    user: str = "User: "
    assistant: str = "Assistant:"
    separator: str = "\n"


def stream(
    model: LanguageModel, params: Any, tokenizer: Tokenizer, prompt: str, settings: SamplingSettings
) -> Iterator[str]:
    """The completion that `generate` gives, in pieces as they become certain.

    A piece never ends inside a character, and what may be the beginning of a stop string is held back.
    """
    model, params = ready(model, params)
    ids = prompt_ids(tokenizer, prompt)
    decoding = begin(model, params, tokenizer, [ids], settings)
    static = compiled_settings(settings)
    shown = ""
    while True:
        decoding = advance(model, params, decoding, jnp.int32(1), settings=static, vocab=tokenizer.vocab_size)
        text = continuation(tokenizer, ids, produced_tokens(decoding)[0])
        cut = first_stop(text, settings.stop)
        done = cut is not None or bool(np.asarray(decoding.done)[0])
        text = text[:cut] if done else text[: _certain(text, settings.stop)]
        if text.startswith(shown) and text != shown:
            yield text[len(shown) :]
            shown = text
        if done:
            return


def chat(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    settings: SamplingSettings,
    turns: ChatFormat = ChatFormat(),
    read: Callable[[str], str] = input,
    write: Callable[[str], Any] = lambda text: print(text, end="", flush=True),
) -> None:
    """Reads lines and streams answers until the input ends or is interrupted.

    The conversation is forgotten from its beginning as it outgrows the model's context.
    """
    settings = dataclasses.replace(settings, stop=(*settings.stop, turns.separator + turns.user))
    history: list[str] = []
    while True:
        try:
            line = read("> ")
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        history.append(f"{turns.user}{line}{turns.separator}{turns.assistant}")
        room = max(model.settings.context - settings.max_tokens, model.settings.context // 2)
        while len(history) > 1 and len(tokenizer.encode(turns.separator.join(history))) > room:
            history.pop(0)
        answer = ""
        try:
            for piece in stream(model, params, tokenizer, turns.separator.join(history), settings):
                answer += piece
                write(piece)
        except KeyboardInterrupt:
            write("\n")
            return
        except UserError as error:  # a line that is longer than the context, say: the conversation goes on without it
            history.pop()
            write(f"{error}\n")
            continue
        history[-1] += answer
        write("\n")


def _certain(text: str, stop: tuple[str, ...]) -> int:
    """How much of an unfinished text will not change: not a half character, nor what may begin a stop string."""
    end = len(text.rstrip(UNFINISHED))
    for string in stop:
        for length in range(min(len(string) - 1, end), 0, -1):
            if text[:end].endswith(string[:length]):
                end -= length
                break
    return end
