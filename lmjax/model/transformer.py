"""What all families of models share, as plain functions of parameters: `init`, `hidden`, `logits`, `logical_axes`.

A family is a subclass that says which module it runs on which fields of a batch. Tasks' heads, losses and steps take
any of them.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lmjax.data.batch import POSITIONS, SEGMENTS, TOKENS, TYPES, Batch
from lmjax.errors import require
from lmjax.model.attention import choose
from lmjax.model.blocks import BlockContext
from lmjax.model.embeddings import logit_head
from lmjax.model.logit_head import LogitHead
from lmjax.model.masks import Mask
from lmjax.model.one_stack import OneStack
from lmjax.model.outputs import Outputs
from lmjax.model.remat import OFFLOADED_POLICIES
from lmjax.model.stack import LayerLoop, unstack_layers
from lmjax.settings import ComputeSettings, ModelSettings

Params = dict[str, Any]
Reads = Literal["first", "last", "mean"]  # the real tokens of a row that a head on top of a model takes

LOGITS_AT_ONCE = 2**26  # entries on one device: 256 MiB in float32
LOGITS_IN_CACHE = 2**20  # on a CPU: 4 MiB in float32, so that a chunk's logits stay in the CPU's cache

FEW_ROWS = 16  # up to this number, XLA's CPU backend is faster with the head as left operand, which it does not repack


class Chunking(NamedTuple):
    """How a loss splits its tokens into chunks, so that it never holds all logits.

    With the head's gradient as [V, D], the TPU compiler adds it to the embedding's, where they are one table, before it
    sums over devices. As [D, V], XLA's CPU backend needs no transposed copy of every chunk's dlogits and takes a fifth
    less time.
    """

    tokens: int | None = None  # the most in a chunk on a device; None: as many as have `logits` logits
    logits: int = LOGITS_AT_ONCE
    vocab_last: bool = False  # whether the head's gradient is accumulated as [D, V]
    weighted_first: bool = False  # whether tokens of weight 0 come last, in chunks that are left out; on one device


@dataclass(frozen=True)
class Transformer(ABC):
    """A model of given shapes: `LanguageModel`, `Encoder` or `EncoderDecoder`.

    It is computed as `compute` says for `platform` ("cpu", "gpu" or "tpu"): the attached one, or another, as a plan
    compiles for devices that are not attached. `segmented` is False where each row is one document with padding at its
    end; attention is then cheaper. Raises UserError when the vocabulary's size is not set, the settings name an
    attention that cannot serve, or a remat policy offloads on a platform without a second memory.
    """

    settings: ModelSettings
    compute: ComputeSettings = ComputeSettings()
    platform: str = field(default_factory=jax.default_backend)
    segmented: bool = True

    def __post_init__(self) -> None:
        size = self.settings.vocab_size
        require(size is not None, "model.vocab_size", size, "a number of rows", "set it, or let the tokenizer give it")
        remat = self.compute.remat_policy
        offloads = remat in OFFLOADED_POLICIES and self.platform == "cpu"
        without_offload = remat.removesuffix("_offloaded")
        expected = "a policy that offloads nothing: on a CPU the model is in the host's memory already"
        require(not offloads, "compute.remat", remat, expected, f"use {without_offload!r}")
        self.implementation()

    @property
    def layer_loop(self) -> LayerLoop:
        return LayerLoop(self.compute.scan_layers, bool(self.compute.unroll_layers), self.compute.remat_policy)

    @property
    def dtype(self) -> jnp.dtype:
        """The compute dtype: bfloat16 where the recipe says so, or by default on TPU and GPU."""
        automatic = "float32" if self.platform == "cpu" else "bfloat16"
        return jnp.dtype(automatic if self.compute.dtype == "auto" else self.compute.dtype)

    @property
    def chunking(self) -> Chunking:
        """The fastest way for a loss to split its tokens on this platform."""
        cpu = self.platform == "cpu"
        return Chunking(self.compute.loss_chunk, LOGITS_IN_CACHE if cpu else LOGITS_AT_ONCE, cpu, cpu)

    def implementation(self, sequence_length: int | None = None) -> str:
        """The attention that `hidden` uses for rows of `sequence_length` tokens; see `lmjax.model.attention.choose`."""
        segmented = self._masks_segments
        return choose(self.settings, self.dtype, self.platform, segmented=segmented, sequence_length=sequence_length)

    @property
    def _masks_segments(self) -> bool:
        """A causal token never sees the padding at a row's end; without causality only segments hide it."""
        return self.segmented or not self.settings.attention.causal

    def require_causal(self, use: str) -> None:
        """Raises UserError where tokens see later ones, which what `use` names cannot have."""
        causal = self.settings.attention.causal
        fix = "set it, or use a task for encoders"
        require(causal, "model.attention.causal", causal, f"true, as {use} needs a model that sees no later token", fix)

    def require_decoder(self, use: str) -> None:
        """Raises UserError as `require_causal`, and for an encoder-decoder, where what `use` names reads one text."""
        self.require_causal(use)
        stacks = self.settings.encoder_layers
        fix = "use a decoder, or lmjax generate with the encoder's input as the prompt"
        require(stacks is None, "model.encoder_layers", stacks, f"none, as {use} needs a model of one stack", fix)

    def init(self, rng: jax.Array) -> Params:
        """Fresh float32 parameters; their values do not depend on whether layers are scanned."""
        params = nn.meta.unbox(self._boxed(rng, scan_layers=True))
        return params if self.compute.scan_layers else self.unstacked(params)

    def logical_axes(self) -> Any:
        """A tree like the parameters whose leaves are tuples of logical axis names."""
        boxed = jax.eval_shape(functools.partial(self._boxed, scan_layers=self.compute.scan_layers), jax.random.key(0))
        is_box = functools.partial(_is_instance, kind=nn.meta.AxisMetadata)
        return jax.tree.map(lambda leaf: tuple(leaf.names), boxed, is_leaf=is_box)

    @abstractmethod
    def hidden(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        """Hidden states [B, T, D] after the final norm, in the compute dtype, and the model's auxiliary losses.

        `rng` draws dropout; None means none.
        """

    def head(self, params: Params) -> LogitHead:
        """What turns hidden states into logits; the softmax of a loss takes it in chunks of tokens."""
        return logit_head(self.settings, params)

    def transformed(self, params: Params, hidden_BTD: jax.Array) -> jax.Array:
        """The hidden states as the head takes them: a masked language model's own layer before it, where it has one."""
        return hidden_BTD

    @property
    def read_by_heads(self) -> Literal[Reads, "pooled"]:
        """What a task's head takes of a row where the task does not say."""
        return "last"

    def pooled(self, params: Params, hidden_BTD: jax.Array) -> jax.Array:
        """The pooler's output [B, D] for each row, whose first token is at column 0; for an encoder with a pooler."""
        raise ValueError("model.head.pooler = False: expected an encoder with a pooler; read another token")

    def project(self, params: Params, hidden_BTD: jax.Array, entries: int | None = None) -> jax.Array:
        """Float32 logits [B, T, V] of hidden states as `hidden` gives them.

        `entries` is the tokenizer's size if the table has more rows: the logits of the other rows are -inf.
        """
        head = self.head(params)
        logits_BTV = head.logits(self._products(head, self.transformed(params, hidden_BTD)))
        V = logits_BTV.shape[-1]
        if entries is None or entries >= V:
            return logits_BTV
        return jnp.where((jnp.arange(V) < entries)[None, None, :], logits_BTV, -jnp.inf)

    def _products(self, head: LogitHead, hidden_BTD: jax.Array) -> jax.Array:
        table = head.table.astype(self.dtype)
        B, T, D = hidden_BTD.shape
        if self.platform != "cpu" or not 1 < B * T <= FEW_ROWS:
            return jnp.einsum("btd,vd->btv", hidden_BTD, table, preferred_element_type=jnp.float32)
        rows = hidden_BTD.reshape(B * T, D)
        logits_VN = jnp.einsum("vd,nd->vn", table, rows, preferred_element_type=jnp.float32)
        return jax.lax.optimization_barrier(logits_VN).T.reshape(B, T, -1)

    def logits(
        self, params: Params, batch: Batch, rng: jax.Array | None = None, entries: int | None = None
    ) -> jax.Array:
        """Float32 logits [B, T, V]; see `project` for `entries`."""
        return self.project(params, self.hidden(params, batch, rng).hidden, entries)

    def unstacked(self, params: Params) -> Params:
        """The parameters with a tree for each layer, where they are stacked."""
        return unstack_layers(params)

    def _context(self, attention: str) -> BlockContext:
        on_cpu = self.platform == "cpu"
        block, tpu = self.compute.attention_block, self.platform == "tpu"
        return BlockContext(self.settings, self.dtype, on_cpu, attention, on_cpu, tpu, block)

    @abstractmethod
    def _boxed(self, rng: jax.Array, *, scan_layers: bool) -> Any:
        """Fresh parameters, boxed with their logical axes."""


class OneStackModel(Transformer):
    """A model of one stack, causal or not."""

    def hidden(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        tokens, positions = batch[TOKENS], batch[POSITIONS]
        self._check_length(tokens.shape[1])
        segments = batch[SEGMENTS] if self._masks_segments else None
        mask = Mask(self.settings.attention.causal, None, segments, segments)
        module = self._module(self.implementation(tokens.shape[1]))
        x, _ = module.apply({"params": params}, tokens, positions, batch.get(TYPES), mask, rng, None)
        return Outputs(x, {})

    def _check_length(self, tokens: int) -> None:
        """Raises UserError where the frequencies of positions depend on a row's length, and the row is that long."""
        fits = self.settings.positions.rotary_scaling.kind != "dynamic" or tokens <= self.settings.context
        why = "'dynamic' scaling beyond it would change the keys of earlier tokens with every later one"
        expected = f"a context of {tokens} tokens, as the row has: {why}"
        require(fits, "model.context", self.settings.context, expected, "cut the rows, or use another rotary_scaling")

    def _module(self, attention: str) -> OneStack:
        return OneStack(self._context(attention), self.layer_loop)

    def _boxed(self, rng: jax.Array, *, scan_layers: bool) -> Any:
        tokens = jnp.zeros((1, 1), jnp.int32)
        module = OneStack(BlockContext(self.settings, self.dtype, False, "einsum"), LayerLoop(scan_layers))
        mask = Mask(self.settings.attention.causal, None)
        return module.init(rng, tokens, tokens, None, mask, None, None)["params"]


def _is_instance(value: Any, kind: type) -> bool:
    return isinstance(value, kind)
