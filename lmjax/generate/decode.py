"""Decoding with an explicit key-value cache: prefill, then one compiled loop over tokens.

Prompts of different lengths are padded on the left with segment 0. Lengths are rounded up to a few sizes, so that few
programs are compiled. A row's tokens depend on its prompt, the seed and its number, never on the other rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.data.tokenizer import Tokenizer
from lmjax.errors import UserError, shortened
from lmjax.generate.sampling import EXCLUDED, SamplingSettings, draw, penalise_repetition
from lmjax.model.gpt import unstack_layers
from lmjax.model.language_model import Cache, LanguageModel
from lmjax.settings import ComputeSettings

LENGTH_STEP = 64  # lengths are rounded up to a multiple of this
STOP_CHECK = 16  # tokens between two looks for a stop string


@dataclass(frozen=True)
class Completion:
    """One prompt's continuation.

    `tokens` ends with the end-of-text token when that is why it ended; `text` never holds it, nor a stop string.
    `log_probs` are natural logarithms, per token, of the probabilities under the temperature (at temperature 0, under
    1), over the tokenizer's vocabulary, before top-k, top-p and the repetition penalty. `alternatives` holds the most
    likely tokens of each step and their probabilities.
    """

    text: str
    tokens: list[int]
    log_probs: list[float]
    finish_reason: Literal["eos", "stop", "length"]
    alternatives: list[list[tuple[str, float]]]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        *("cache", "logits", "seen", "key", "slot", "position", "produced", "done", "eos"),
        *("limits", "tokens", "log_probs", "top_tokens", "top_probabilities"),
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class Decoding:
    """A batch in the middle of decoding. N is the most tokens that can be produced."""

    cache: Cache
    logits: jax.Array  # [B, V] float32: of the next token
    seen: jax.Array  # [B, V] bool: tokens that the row holds; [B, 0] where there is no repetition penalty
    key: jax.Array
    slot: jax.Array  # where the next token goes in the cache
    position: jax.Array  # [B]: of the next token
    produced: jax.Array  # [B]: tokens produced so far
    done: jax.Array  # [B] bool
    eos: jax.Array  # the end-of-text token
    limits: jax.Array  # [B]: the most tokens that each row may produce
    tokens: jax.Array  # [B, N] int32
    log_probs: jax.Array  # [B, N] float32
    top_tokens: jax.Array  # [B, N, top] int32
    top_probabilities: jax.Array  # [B, N, top] float32


@functools.partial(jax.jit, static_argnames=("model", "settings", "vocab", "most"))
def start(
    model: LanguageModel,
    params: Any,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    limits_B: jax.Array,
    key: jax.Array,
    eos: jax.Array,
    *,
    settings: SamplingSettings,
    vocab: int,
    most: int,
) -> Decoding:
    """Reads the left-padded prompts. `most` bounds what can be produced, `vocab` is the tokenizer's size."""
    decoder, params = unrolled(model, params)
    top = min(settings.top, vocab)
    B, T = tokens_BT.shape
    positions = jnp.maximum(jnp.cumsum(segments_BT != 0, axis=1) - 1, 0).astype(jnp.int32)
    cache = decoder.empty_cache(B, T + most)
    hidden, cache = decoder.extend(params, cache, tokens_BT, positions, segments_BT, 0)
    seen = jnp.zeros((B, 0), bool)
    if settings.repetition_penalty != 1.0:
        rows_B1 = jnp.arange(B)[:, None]
        seen = jnp.zeros((B, params["tokens"].shape[0]), bool).at[rows_B1, tokens_BT].max(segments_BT != 0)
    return Decoding(
        cache=cache,
        logits=_real_logits(decoder, params, hidden[:, -1:], vocab),
        seen=seen,
        key=key,
        slot=jnp.int32(T),
        position=positions[:, -1] + 1,
        produced=jnp.zeros(B, jnp.int32),
        done=limits_B <= 0,
        eos=eos,
        limits=limits_B,
        tokens=jnp.zeros((B, most), jnp.int32),
        log_probs=jnp.zeros((B, most), jnp.float32),
        top_tokens=jnp.zeros((B, most, top), jnp.int32),
        top_probabilities=jnp.zeros((B, most, top), jnp.float32),
    )


@functools.partial(jax.jit, static_argnames=("model", "settings", "vocab"), donate_argnames=("decoding",))
def advance(
    model: LanguageModel, params: Any, decoding: Decoding, count: jax.Array, *, settings: SamplingSettings, vocab: int
) -> Decoding:
    """Produces up to `count` more tokens per row, in one loop that ends early when every row is done."""
    decoder, params = unrolled(model, params)

    def goes_on(carry: tuple[jax.Array, Decoding]) -> jax.Array:
        i, state = carry
        return (i < count) & ~state.done.all()

    def one(carry: tuple[jax.Array, Decoding]) -> tuple[jax.Array, Decoding]:
        i, state = carry
        return i + 1, _one_token(decoder, params, state, settings, vocab)

    return jax.lax.while_loop(goes_on, one, (jnp.int32(0), decoding))[1]


def generate(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    settings: SamplingSettings = SamplingSettings(),
    between: Callable[[], None] | None = None,
) -> list[Completion]:
    """Continues each prompt. An empty one starts after an end-of-text token. `between` is called every few tokens.

    A row ends at the end-of-text token, before a stop string, after `settings.max_tokens`, or where the model's
    context ends. Raises UserError for a prompt that fills the context.
    """
    if not prompts:
        return []
    model, params = ready(model, params)
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    decoding = begin(model, params, tokenizer, ids, settings)
    static, vocab = compiled_settings(settings), tokenizer.vocab_size
    stride = STOP_CHECK if settings.stop or between is not None else settings.max_tokens
    for _ in range(0, settings.max_tokens, stride):
        if between is not None:
            between()
        decoding = advance(model, params, decoding, jnp.int32(stride), settings=static, vocab=vocab)
        done = np.asarray(decoding.done)
        if settings.stop:
            texts = [continuation(tokenizer, *row) for row in zip(ids, produced_tokens(decoding), strict=True)]
            done = done | [first_stop(text, settings.stop) is not None for text in texts]
        if done.all():
            break
    fields = (decoding.produced, decoding.tokens, decoding.log_probs, decoding.top_tokens, decoding.top_probabilities)
    return [
        _completion(tokenizer, prompt, settings, *(array[:count] for array in arrays))
        for prompt, count, *arrays in zip(ids, *jax.device_get(fields), strict=True)
    ]


def check_prompts(field: str, prompts: Sequence[str], tokenizer: Tokenizer, context: int) -> None:
    """Raises UserError, naming the field, for a prompt that leaves no room in the context to go on."""
    for number, prompt in enumerate(prompts):
        length = len(prompt_ids(tokenizer, prompt))
        if length >= context:
            raise UserError(
                f"{field}[{number}] = {shortened(prompt)}: {length} tokens, expected fewer than the model's context of "
                f"{context}; shorten it"
            )


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """A prompt's tokens; the end-of-text token, after which a text begins, for an empty one."""
    return tokenizer.encode(prompt) or [tokenizer.eos_id]


def begin(
    model: LanguageModel, params: Any, tokenizer: Tokenizer, ids: Sequence[Sequence[int]], settings: SamplingSettings
) -> Decoding:
    """Pads the prompts' ids on the left and reads them."""
    context = model.settings.context
    longest = max(map(len, ids))
    if longest >= context:
        raise UserError(f"prompt of {longest} tokens: expected fewer than the model's context of {context}; shorten it")
    width = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, context)
    most = min(-(-settings.max_tokens // LENGTH_STEP) * LENGTH_STEP, context)
    tokens, segments = np.zeros((len(ids), width), np.int32), np.zeros((len(ids), width), np.int32)
    for row, prompt in enumerate(ids):
        tokens[row, width - len(prompt) :] = prompt
        segments[row, width - len(prompt) :] = 1
    limits = np.array([min(settings.max_tokens, context - len(prompt), most) for prompt in ids], np.int32)
    key, eos = jax.random.key(settings.seed), jnp.int32(tokenizer.eos_id)
    arrays = (jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(limits))
    vocab = tokenizer.vocab_size
    return start(model, params, *arrays, key, eos, settings=compiled_settings(settings), vocab=vocab, most=most)


def _one_token(
    decoder: LanguageModel, params: Any, state: Decoding, settings: SamplingSettings, vocab: int
) -> Decoding:
    rows = jnp.arange(state.done.shape[0])
    logits = state.logits / (settings.temperature or 1.0)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    choices = logits
    if settings.repetition_penalty != 1.0:
        choices = penalise_repetition(logits, state.seen, settings.repetition_penalty)
    keys = jax.vmap(lambda row, i: jax.random.fold_in(jax.random.fold_in(state.key, row), i))(rows, state.produced)
    token = draw(choices, keys, settings)
    live = ~state.done
    at = (rows, jnp.minimum(state.produced, state.tokens.shape[1] - 1))

    def put(array: jax.Array, value: jax.Array) -> jax.Array:
        keep = live.reshape(-1, *[1] * (value.ndim - 1))
        return array.at[at].set(jnp.where(keep, value, array[at]))

    top_log_probs, top_tokens = jax.lax.top_k(log_probs, state.top_tokens.shape[-1])
    produced = state.produced + live
    done = state.done | (token == state.eos) | (produced >= state.limits)
    hidden, cache = decoder.extend(
        params, state.cache, token[:, None], state.position[:, None], live.astype(jnp.int32)[:, None], state.slot
    )
    seen = state.seen.at[rows, token].set(True) if settings.repetition_penalty != 1.0 else state.seen
    return dataclasses.replace(
        state,
        cache=cache,
        logits=_real_logits(decoder, params, hidden, vocab),
        seen=seen,
        slot=state.slot + 1,
        position=jnp.minimum(state.position + 1, decoder.settings.context - 1),
        produced=produced,
        done=done,
        tokens=put(state.tokens, token),
        log_probs=put(state.log_probs, log_probs[rows, token]),
        top_tokens=put(state.top_tokens, top_tokens),
        top_probabilities=put(state.top_probabilities, jnp.exp(top_log_probs)),
    )


def _real_logits(model: LanguageModel, params: Any, hidden_B1D: jax.Array, vocab: int) -> jax.Array:
    logits_BV = model.project(params, hidden_B1D)[:, 0]
    if vocab == logits_BV.shape[-1]:
        return logits_BV
    return jnp.where((jnp.arange(logits_BV.shape[-1]) < vocab)[None], logits_BV, EXCLUDED)


def unrolled(model: LanguageModel, params: Any) -> tuple[LanguageModel, Any]:
    """The model with its layers in a row and its matrices in the compute dtype: a token slices and casts nothing."""
    params = unstack_layers(params) if model.compute.scan_layers else params
    compute = ComputeSettings(dtype=model.compute.dtype, scan_layers=False)
    matrices = jax.tree.map(lambda p: p.astype(model.dtype) if p.ndim > 1 else p, params)
    return dataclasses.replace(model, compute=compute), matrices


def ready(model: LanguageModel, params: Any) -> tuple[LanguageModel, Any]:
    """`unrolled`, done once for all calls of `start` and `advance` instead of in each of them."""
    decoder = dataclasses.replace(model, compute=ComputeSettings(dtype=model.compute.dtype, scan_layers=False))
    unchanged = not model.compute.scan_layers and model.dtype == jnp.float32
    return decoder, params if unchanged else _unrolled_params(model, params)


@functools.partial(jax.jit, static_argnums=0)
def _unrolled_params(model: LanguageModel, params: Any) -> Any:
    return unrolled(model, params)[1]


def compiled_settings(settings: SamplingSettings) -> SamplingSettings:
    """What the compiled program depends on; the seed, the stop strings and the length are not among it."""
    return dataclasses.replace(settings, seed=0, stop=(), max_tokens=1)


def produced_tokens(decoding: Decoding) -> list[list[int]]:
    """What each row has produced so far."""
    tokens_BN, produced_B = jax.device_get((decoding.tokens, decoding.produced))
    return [row[:count].tolist() for row, count in zip(tokens_BN, produced_B, strict=True)]


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that `tokens` add to the prompt's. Alone they might lose a blank: some tokenizers drop a leading one."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tokens])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stop strings begins."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return min(places) if places else None


def _completion(
    tokenizer: Tokenizer,
    prompt: list[int],
    settings: SamplingSettings,
    tokens_N: np.ndarray,
    log_probs_N: np.ndarray,
    top_tokens: np.ndarray,
    top_probabilities: np.ndarray,
) -> Completion:
    tokens = tokens_N.tolist()
    text = continuation(tokenizer, prompt, tokens)
    reason: Literal["eos", "stop", "length"] = "eos" if tokens[-1:] == [tokenizer.eos_id] else "length"
    if first_stop(text, settings.stop) is not None:
        # The row may have run on: it ends with the first token that completes a stop string.
        prefixes = (tokens[:n] for n in range(1, len(tokens) + 1))
        stopped = ((some, continuation(tokenizer, prompt, some)) for some in prefixes)
        tokens, text = next(pair for pair in stopped if first_stop(pair[1], settings.stop) is not None)
        reason, text = "stop", text[: first_stop(text, settings.stop)]
    steps = zip(top_tokens[: len(tokens)].tolist(), top_probabilities[: len(tokens)].tolist(), strict=True)
    alternatives = [
        [(token_text(tokenizer, token), share) for token, share in zip(*step, strict=True)] for step in steps
    ]
    return Completion(text, tokens, log_probs_N[: len(tokens)].tolist(), reason, alternatives if settings.top else [])


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as it should be shown: its text inside of a line, or its number where it is no text by itself."""
    if token == tokenizer.eos_id:
        return "<eos>"
    text = continuation(tokenizer, tokenizer.encode("a"), [token])
    return f"<{token}>" if "\ufffd" in text or not text else text
