"""What a recipe says of the shape of its model: the parts of a block, and how many of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmjax.errors import require
from lmjax.fields import Fraction, PositiveFloat, PositiveInt, Settings


@dataclass(frozen=True)
class AttentionSettings(Settings):
    """Heads, pattern and kernel of the attention."""

    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None  # below `heads`: grouped-query attention; None means `heads`
    head_dim: PositiveInt | None = None  # None means width / heads
    pattern: tuple[Literal["dense", "banded"], ...] = ("dense",)  # one entry per layer, repeated to the depth
    # keys that a query of a banded layer sees, itself included; without causality, on each side
    band: PositiveInt | None = None
    causal: bool = True  # a token sees none that comes later; False: an encoder, which sees both sides
    bias: bool = True  # on the query, key, value and output projections
    scaled: bool = True  # divide scores by sqrt(head_dim); T5 does not
    dropout: Fraction = 0.0
    implementation: Literal["auto", "einsum", "blocked", "splash", "cudnn"] = "auto"

    def check(self) -> None:
        groups = self.heads % (self.kv_heads or self.heads) == 0
        require(groups, "kv_heads", self.kv_heads, f"a divisor of heads {self.heads}", "use one")
        banded = "banded" not in self.pattern or self.band is not None
        require(banded, "band", self.band, "a width for the banded layers", "set band to, say, 256")


@dataclass(frozen=True)
class FeedForwardSettings(Settings):
    """The two (or, gated, three) matrices of a layer."""

    width: PositiveInt | None = None  # None means 4 x the model's width
    activation: Literal["gelu_tanh", "gelu_erf", "relu", "silu"] = "gelu_tanh"
    gated: bool = False  # multiply by a second projection (GLU variants, Shazeer 2020)
    bias: bool = True


@dataclass(frozen=True)
class NormSettings(Settings):
    """Which normalisation, and where."""

    kind: Literal["layernorm", "rmsnorm"] = "layernorm"
    eps: PositiveFloat = 1e-5
    position: Literal["pre", "post"] = "pre"
    final: bool = True  # one more norm after the last layer
    bias: bool = True  # LayerNorm only


@dataclass(frozen=True)
class PositionSettings(Settings):
    """How the model knows where a token stands."""

    kind: Literal["learned", "rotary", "relative", "none"] = "learned"
    rotary_base: PositiveFloat = 10_000.0
    relative_buckets: PositiveInt = 32  # T5
    relative_max_distance: PositiveInt = 128  # T5, tokens


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The shape of a decoder or, where attention is not causal, of an encoder."""

    layers: PositiveInt = 4
    width: PositiveInt = 128
    context: PositiveInt = 256  # the most positions the model can address
    vocab_size: PositiveInt | None = None  # rows of the embedding; None means the tokenizer's size
    attention: AttentionSettings = AttentionSettings()
    feed_forward: FeedForwardSettings = FeedForwardSettings()
    norm: NormSettings = NormSettings()
    positions: PositionSettings = PositionSettings()
    tied_head: bool = True  # logits from the embedding matrix
    dropout: Fraction = 0.0  # after the embeddings and on each residual branch
    init_std: PositiveFloat = 0.02
    scaled_residual_init: bool = True  # residual projections at init_std / sqrt(2 x layers) (GPT-2)

    def check(self) -> None:
        heads = self.attention.heads
        divides = self.attention.head_dim is not None or self.width % heads == 0
        require(divides, "width", self.width, f"a multiple of attention.heads {heads}", "or set head_dim")
        period = len(self.attention.pattern)
        repeats = period > 0 and self.layers % period == 0
        require(repeats, "layers", self.layers, f"a multiple of the attention pattern's {period}", "change one")
        even = self.positions.kind != "rotary" or self.head_dim % 2 == 0
        require(even, "attention.head_dim", self.head_dim, "an even number for rotary positions", "change it")

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim or self.width // self.attention.heads

    @property
    def kv_heads(self) -> int:
        return self.attention.kv_heads or self.attention.heads

    @property
    def feed_forward_width(self) -> int:
        return self.feed_forward.width or 4 * self.width
