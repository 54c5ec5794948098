"""What a recipe says of the shape of its model: the parts of a block, and how many of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmjax.errors import require
from lmjax.fields import check_fraction, check_positive, check_types


@dataclass(frozen=True)
class AttentionSettings:
    """Heads, pattern and kernel of the attention."""

    heads: int = 4
    kv_heads: int | None = None  # below `heads`: grouped-query attention; None means `heads`
    head_dim: int | None = None  # None means width / heads
    pattern: tuple[Literal["dense", "banded"], ...] = ("dense",)  # one entry per layer, repeated to the depth
    band: int | None = (
        None  # keys that a query of a banded layer sees, itself included; without causality, on each side
    )
    causal: bool = True  # a token sees none that comes later; False: an encoder, which sees both sides
    bias: bool = True  # on the query, key, value and output projections
    scaled: bool = True  # divide scores by sqrt(head_dim); T5 does not
    dropout: float = 0.0
    implementation: Literal["auto", "einsum", "blocked", "splash", "cudnn"] = "auto"

    def __post_init__(self) -> None:
        check_types("model.attention", self)
        check_positive("model.attention", self, "heads", "kv_heads", "head_dim", "band")
        check_fraction("model.attention", self, "dropout")
        groups = self.heads % (self.kv_heads or self.heads) == 0
        require(groups, "model.attention.kv_heads", self.kv_heads, f"a divisor of heads {self.heads}", "use one")
        banded = "banded" not in self.pattern or self.band is not None
        require(banded, "model.attention.band", self.band, "a width for the banded layers", "set band to, say, 256")


@dataclass(frozen=True)
class FeedForwardSettings:
    """The two (or, gated, three) matrices of a layer."""

    width: int | None = None  # None means 4 x the model's width
    activation: Literal["gelu_tanh", "gelu_erf", "relu", "silu"] = "gelu_tanh"
    gated: bool = False  # multiply by a second projection (GLU variants, Shazeer 2020)
    bias: bool = True

    def __post_init__(self) -> None:
        check_types("model.feed_forward", self)
        check_positive("model.feed_forward", self, "width")


@dataclass(frozen=True)
class NormSettings:
    """Which normalisation, and where."""

    kind: Literal["layernorm", "rmsnorm"] = "layernorm"
    eps: float = 1e-5
    position: Literal["pre", "post"] = "pre"
    final: bool = True  # one more norm after the last layer
    bias: bool = True  # LayerNorm only

    def __post_init__(self) -> None:
        check_types("model.norm", self)
        check_positive("model.norm", self, "eps")


@dataclass(frozen=True)
class PositionSettings:
    """How the model knows where a token stands."""

    kind: Literal["learned", "rotary", "relative", "none"] = "learned"
    rotary_base: float = 10_000.0
    relative_buckets: int = 32  # T5
    relative_max_distance: int = 128  # T5, tokens

    def __post_init__(self) -> None:
        check_types("model.positions", self)
        check_positive("model.positions", self, "rotary_base", "relative_buckets", "relative_max_distance")


@dataclass(frozen=True)
class ModelSettings:
    """The shape of a decoder or, where attention is not causal, of an encoder."""

    layers: int = 4
    width: int = 128
    context: int = 256  # the most positions the model can address
    vocab_size: int | None = None  # rows of the embedding; None means the tokenizer's size
    attention: AttentionSettings = AttentionSettings()
    feed_forward: FeedForwardSettings = FeedForwardSettings()
    norm: NormSettings = NormSettings()
    positions: PositionSettings = PositionSettings()
    tied_head: bool = True  # logits from the embedding matrix
    dropout: float = 0.0  # after the embeddings and on each residual branch
    init_std: float = 0.02
    scaled_residual_init: bool = True  # residual projections at init_std / sqrt(2 x layers) (GPT-2)

    def __post_init__(self) -> None:
        check_types("model", self)
        check_positive("model", self, "layers", "width", "context", "vocab_size", "init_std")
        check_fraction("model", self, "dropout")
        heads = self.attention.heads
        divides = self.attention.head_dim is not None or self.width % heads == 0
        require(divides, "model.width", self.width, f"a multiple of attention.heads {heads}", "or set head_dim")
        period = len(self.attention.pattern)
        repeats = period > 0 and self.layers % period == 0
        require(repeats, "model.layers", self.layers, f"a multiple of the attention pattern's {period}", "change one")
        even = self.positions.kind != "rotary" or self.head_dim % 2 == 0
        require(even, "model.attention.head_dim", self.head_dim, "an even number for rotary positions", "change it")

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim or self.width // self.attention.heads

    @property
    def kv_heads(self) -> int:
        return self.attention.kv_heads or self.attention.heads

    @property
    def feed_forward_width(self) -> int:
        return self.feed_forward.width or 4 * self.width
