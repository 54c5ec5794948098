"""Completions of prompts: windows of the model's context, decoded by compiled loops, and the resulting texts.

Prompts of different lengths are padded on the left with segment 0. Lengths are rounded up to a few sizes, so that few
programs are compiled. When the model's context is full, a row ends; or, if `beyond_context` is "slide", its last
context / 2 tokens are read again as the beginning of a text, and the row continues from there, as often as needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError, require, shortened
from lmjax.generate.decoding import (
    LENGTH_STEP,
    Decoding,
    advance,
    compiled_settings,
    produced_tokens,
    ready,
    start,
)
from lmjax.generate.encoded import padded_inputs, start_encoded
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.encoder_decoder import EncoderDecoder
from lmjax.model.language_model import LanguageModel
from lmjax.tokenizers.tokenizer import Tokenizer

STOP_CHECK = 16  # tokens between two searches for a stop string

Ending = Literal["eos", "length", "context"]  # why a row ended; "context": the model's context is full


@dataclass(frozen=True)
class Completion:
    """One prompt's continuation.

    `tokens` ends with the end-of-text token if that ended the row; `text` contains neither it nor a stop string.
    `log_probs` are natural logarithms, per token, of the probabilities under the temperature (at temperature 0, under
    1), over the tokenizer's vocabulary, before top-k, top-p and the repetition penalty. `alternatives` holds the most
    likely tokens of each step and their probabilities. `finish_reason` is "eos" (the end-of-text token), "stop" (a stop
    string) or "length"; `context_full` is True if that length was the model's context and not `max_tokens`. `score` is
    what a beam search ranks by, and None of a completion that was drawn.
    """

    text: str
    tokens: list[int]
    log_probs: list[float]
    finish_reason: Literal["eos", "stop", "length"]
    alternatives: list[list[tuple[str, float]]]
    context_full: bool = False
    score: float | None = None


def generate(
    model: LanguageModel | EncoderDecoder,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: SamplingSettings = SamplingSettings(),
    between: Callable[[], None] | None = None,
) -> list[Completion]:
    """Continues each prompt. An empty one starts after an end-of-text token. `between` is called every few tokens.

    An encoder-decoder reads a prompt as its inputs, with an end-of-text token behind it, and writes a text for them.
    A row ends at the end-of-text token, before a stop string, after `settings.max_tokens`, or, unless
    `settings.beyond_context` is "slide", where the model's context ends. Raises UserError for a prompt that fills the
    context without "slide", and for a model whose attention is not causal.
    """
    return continued(model, params, tokenizer, ids_of(model, tokenizer, prompts), settings, between)


def continued(
    model: LanguageModel | EncoderDecoder,
    params: Any,
    tokenizer: Tokenizer,
    ids: Sequence[list[int]],
    settings: SamplingSettings = SamplingSettings(),
    between: Callable[[], None] | None = None,
) -> list[Completion]:
    """`generate` for prompts that are tokens, at least one each."""
    if not ids:
        return []
    rows = Continuations(model, params, tokenizer, ids, settings)
    ids, stopped = [before(model, row) for row in ids], np.zeros(len(ids), bool)
    stride = STOP_CHECK if settings.stop or between is not None else model.settings.context
    while not (rows.ended | stopped).all():
        if between is not None:
            between()
        rows.advance(stride, stopped)
        if settings.stop:
            texts = [continuation(tokenizer, *row) for row in zip(ids, rows.tokens, strict=True)]
            stopped = np.array([first_stop(text, settings.stop) is not None for text in texts])
    return [
        completion(tokenizer, prompt, settings, ending, *arrays)
        for prompt, ending, arrays in zip(ids, rows.endings, rows.fetch(), strict=True)
    ]


def check_prompts(field: str, prompts: Sequence[str], tokenizer: Tokenizer, context: int) -> None:
    """Raises UserError, naming the field, for a prompt that leaves no room in the context for a continuation."""
    for number, prompt in enumerate(prompts):
        length = len(prompt_ids(tokenizer, prompt))
        if length >= context:
            raise UserError(
                f"{field}[{number}] = {shortened(prompt)}: {length} tokens, expected fewer than the model's context of "
                f"{context}; shorten it"
            )


def ids_of(model: LanguageModel | EncoderDecoder, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """The tokens that the model reads of each prompt: an encoder-decoder's inputs end with the end-of-text token."""
    if not encodes(model):
        return [prompt_ids(tokenizer, prompt) for prompt in prompts]
    return [[*tokenizer.encode(prompt), tokenizer.eos_id] for prompt in prompts]


def before(model: LanguageModel | EncoderDecoder, ids: list[int]) -> list[int]:
    """What stands before the tokens that the model writes: the prompt, but nothing for an encoder-decoder."""
    return [] if encodes(model) else ids


def encodes(model: LanguageModel | EncoderDecoder) -> bool:
    return model.settings.encoder_layers is not None


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's tokens; for an empty prompt the end-of-text token, which precedes every text."""
    return tokenizer.encode(prompt) or [tokenizer.eos_id]


class Continuations:
    """Rows of tokens that are continued through one window of the model's context or, if they slide, through several.

    A row slides when its window is full; it waits until the windows of all rows are full. Probabilities and the
    repetition penalty depend on the tokens of the window only.
    """

    def __init__(
        self,
        model: LanguageModel | EncoderDecoder,
        params: Any,
        tokenizer: Tokenizer,
        ids: Sequence[Sequence[int]],
        settings: SamplingSettings,
    ) -> None:
        """Reads the rows. Raises UserError for one that fills the context without sliding, and for an encoder."""
        model.require_causal("generating text")
        slides, fix = settings.beyond_context == "slide", "leave it out"
        expected = "'stop' for an encoder-decoder, whose inputs are read once"
        require(not (slides and encodes(model)), "beyond_context", "slide", expected, fix)
        self._model, self._params = ready(model, params)
        self._ids, self._settings, self._vocab = [list(row) for row in ids], settings, tokenizer.vocab_size
        self._ends = (tokenizer.eos_id, *settings.ends)
        self._decoding: Decoding
        self.tokens: list[list[int]] = [[] for _ in ids]  # the tokens that each row has produced
        self.endings: list[Ending] = ["length" for _ in ids]  # why each row ended, valid once it has
        self.ended = np.zeros(len(ids), bool)
        self._earlier: list[list[tuple[np.ndarray, ...]]] = [[] for _ in ids]  # the results of earlier windows
        self._windows = 0
        self._open(~self.ended)

    def advance(self, count: int, stopped: np.ndarray) -> None:
        """Produces up to `count` more tokens of each row. Rows that have `stopped`, a boolean [B], do not slide."""
        settings = compiled_settings(self._settings)
        self._decoding = advance(
            self._model, self._params, self._decoding, jnp.int32(count), settings=settings, vocab=self._vocab
        )
        in_window = produced_tokens(self._decoding)
        self.tokens = [earlier + new for earlier, new in zip(self._earlier_tokens, in_window, strict=True)]
        full = np.asarray(self._decoding.done)
        for row in np.flatnonzero(full & ~self.ended):
            self.endings[row] = ending_of(self.tokens[row], self._ends, self._settings.max_tokens)
        slides = np.array([ending == "context" for ending in self.endings])
        slides &= full & ~stopped & (self._settings.beyond_context == "slide")
        self.ended = full & ~slides
        if slides.any() and (full | stopped).all():
            self._earlier = [[*rows, new] for rows, new in zip(self._earlier, self._fetched(), strict=True)]
            self._windows += 1
            self._open(slides)

    def fetch(self) -> list[tuple[np.ndarray, ...]]:
        """Of each row, [N, ...]: its tokens, their log-probabilities, the alternatives' tokens and probabilities."""
        windows = zip(self._earlier, self._fetched(), strict=True)
        return [tuple(map(np.concatenate, zip(*earlier, last, strict=True))) for earlier, last in windows]

    def _open(self, live: np.ndarray) -> None:
        """Reads the tokens of the live rows or, where these fill the context, their last context / 2 tokens."""
        context, self._earlier_tokens = self._model.settings.context, self.tokens
        windows, remaining = [], []
        for row, (prompt, produced) in enumerate(zip(self._ids, self.tokens, strict=True)):
            window = [*prompt, *produced]
            if len(window) >= context and self._settings.beyond_context == "slide":
                window = window[-max(context // 2, 1) :]
            windows.append(window if live[row] else window[-1:])
            remaining.append(self._settings.max_tokens - len(produced) if live[row] else 0)
        key = jax.random.key(self._settings.seed)
        key = jax.random.fold_in(key, self._windows) if self._windows else key
        ends = jnp.array(self._ends, jnp.int32)
        self._decoding = begin(self._model, self._params, self._vocab, windows, remaining, key, ends, self._settings)

    def _fetched(self) -> list[tuple[np.ndarray, ...]]:
        decoding = self._decoding
        fields = (decoding.tokens, decoding.log_probs, decoding.top_tokens, decoding.top_probabilities)
        count_B, *arrays = jax.device_get((decoding.produced, *fields))
        return [tuple(array[row, :count] for array in arrays) for row, count in enumerate(count_B)]


def ending_of(tokens: Sequence[int], ends: Sequence[int], max_tokens: int) -> Ending:
    """Why a row that has produced these tokens ended."""
    if tokens and tokens[-1] in ends:
        return "eos"
    return "length" if len(tokens) >= max_tokens else "context"


def begin(
    model: Any,
    params: Any,
    vocab: int,
    ids: Sequence[Sequence[int]],
    remaining: Sequence[int],
    key: jax.Array,
    ends: jax.Array,
    settings: SamplingSettings,
) -> Decoding:
    """Pads rows of ids on the left and reads them; row i may produce `remaining[i]` tokens, within the context.

    An encoder-decoder encodes them, of any length; its context bounds what it writes.
    """
    context, static = model.settings.context, compiled_settings(settings)
    most = min(-(-max(remaining) // LENGTH_STEP) * LENGTH_STEP, context)
    if encodes(model):
        limits_B, inputs = jnp.minimum(jnp.array(remaining), most).astype(jnp.int32), padded_inputs(ids, len(ids))
        options: Any = {"settings": static, "vocab": vocab, "most": most}
        return start_encoded(model, params, inputs, limits_B, key, ends, **options)
    longest = max(map(len, ids))
    if longest >= context:
        raise UserError(
            f"prompt of {longest} tokens: expected fewer than the model's context of {context}; shorten it, or read "
            "only its end by beyond_context = 'slide'"
        )
    width = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, context)
    tokens, segments = np.zeros((len(ids), width), np.int32), np.zeros((len(ids), width), np.int32)
    for row, prompt in enumerate(ids):
        tokens[row, width - len(prompt) :] = prompt
        segments[row, width - len(prompt) :] = 1
    limits = [min(most, context - len(row), count) for row, count in zip(ids, remaining, strict=True)]
    arrays = (jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(limits, jnp.int32))
    return start(model, params, *arrays, key, ends, settings=static, vocab=vocab, most=most)


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that `tokens` add to the prompt's.

    They are decoded together with the prompt, because some tokenizers drop a leading blank.
    """
    prompt_text, full_text = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tokens])
    return full_text[len(prompt_text) :] if full_text.startswith(prompt_text) else tokenizer.decode(tokens)


def written(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int], settings: SamplingSettings) -> str:
    """The text that `tokens` add to the prompt's, without that of a last token that ends it."""
    return continuation(tokenizer, prompt, tokens[:-1] if tokens and tokens[-1] in settings.ends else tokens)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """The index at which the first stop string begins."""
    indices = [index for index in map(text.find, stop) if index >= 0]
    return min(indices) if indices else None


def completion(
    tokenizer: Tokenizer,
    prompt: list[int],
    settings: SamplingSettings,
    ending: Ending,
    tokens_N: np.ndarray,
    log_probs_N: np.ndarray,
    top_tokens: np.ndarray,
    top_probabilities: np.ndarray,
) -> Completion:
    """A row's N tokens, with each step's alternatives [N, top], as a completion up to the first stop string."""
    tokens = tokens_N.tolist()
    text = written(tokenizer, prompt, tokens, settings)
    reason: Literal["eos", "stop", "length"] = "eos" if ending == "eos" else "length"
    if first_stop(text, settings.stop) is not None:
        # The row may have more tokens: it ends with the first token that completes a stop string.
        prefixes = (tokens[:n] for n in range(1, len(tokens) + 1))
        stopped = ((prefix, continuation(tokenizer, prompt, prefix)) for prefix in prefixes)
        tokens, text = next(pair for pair in stopped if first_stop(pair[1], settings.stop) is not None)
        reason, text = "stop", text[: first_stop(text, settings.stop)]
    steps = zip(top_tokens[: len(tokens)].tolist(), top_probabilities[: len(tokens)].tolist(), strict=True)
    alternatives = [
        [(token_text(tokenizer, token), probability) for token, probability in zip(*step, strict=True)]
        for step in steps
    ]
    log_probs, full = log_probs_N[: len(tokens)].tolist(), reason == "length" and ending == "context"
    return Completion(text, tokens, log_probs, reason, alternatives if settings.top else [], full)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token for display: its text inside a line, or its id where it has no text by itself."""
    if token == tokenizer.eos_id:
        return "<eos>"
    text = continuation(tokenizer, tokenizer.encode("a"), [token])
    return f"<{token}>" if "\ufffd" in text or not text else text
