"""What a recipe says of the shape of its model: the parts of a block, and how many of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmjax.errors import require
from lmjax.fields import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Settings


@dataclass(frozen=True)
class ScoreSettings(Settings):
    """What becomes of the scores of queries and keys before their softmax, beside the root of head_dim."""

    cap: PositiveFloat | None = None  # scores become cap x tanh(scores / cap) (Gemma 2)
    scale_dim: PositiveFloat | None = None  # scores are divided by its root instead of head_dim's (Gemma 2 and 3)


@dataclass(frozen=True)
class AttentionSettings(Settings):
    """Heads, pattern and kernel of the attention."""

    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None  # below `heads`: grouped-query attention; None means `heads`
    head_dim: PositiveInt | None = None  # None means width / heads
    # one entry per layer, repeated to the depth; "nope" is dense without rotary positions (SmolLM3)
    pattern: tuple[Literal["dense", "banded", "nope"], ...] = ("dense",)
    # keys that a query of a banded layer sees, itself included; without causality, on each side
    band: PositiveInt | None = None
    causal: bool = True  # a token sees none that comes later; False: an encoder, which sees both sides
    bias: bool = True  # on the query, key, value and output projections
    out_bias: bool | None = None  # on the output projection; None means `bias`, which is then the others' (Qwen2)
    # a norm of queries and keys before their rotation: of each head (Qwen3, Gemma 3), or of all heads at once (OLMo 2)
    qk_norm: Literal["none", "head", "projection"] = "none"
    scores: ScoreSettings = ScoreSettings()
    scaled: bool = True  # divide scores by sqrt(head_dim); T5 does not
    dropout: Fraction = 0.0
    implementation: Literal["auto", "einsum", "blocked", "splash", "cudnn"] = "auto"

    def check(self) -> None:
        groups = self.heads % (self.kv_heads or self.heads) == 0
        require(groups, "kv_heads", self.kv_heads, f"a divisor of heads {self.heads}", "use one")
        banded = "banded" not in self.pattern or self.band is not None
        require(banded, "band", self.band, "a width for the banded layers", "set band to, say, 256")
        scaled, given = self.scaled or self.scores.scale_dim is None, self.scores.scale_dim
        require(scaled, "scores.scale_dim", given, "None where scores are not scaled", "leave it out, or set scaled")

    def band_of(self, kind: str) -> int | None:
        """The keys that a query of a layer of this kind sees; None for all."""
        return self.band if kind == "banded" else None

    @property
    def has_out_bias(self) -> bool:
        return self.bias if self.out_bias is None else self.out_bias


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
    # of a branch's input; of the sum of stream and branch; of a branch's input and of its output (Gemma 2); or of its
    # output alone (OLMo 2)
    position: Literal["pre", "post", "sandwich", "branch_output"] = "pre"
    final: bool = True  # one more norm after the last layer
    embeddings: bool = False  # one more norm of the embeddings, before their dropout (BERT)
    bias: bool = True  # LayerNorm only
    unit_offset: bool = False  # RMSNorm only: multiply by 1 + scale, which begins at 0 (Gemma)

    def check(self) -> None:
        fits = self.kind == "rmsnorm" or not self.unit_offset
        require(fits, "unit_offset", self.unit_offset, f"False for {self.kind!r}", "leave it out")


@dataclass(frozen=True)
class RotaryScaling(Settings):
    """How rotary frequencies are changed for texts longer than those that a model was first trained on.

    "linear" divides them all by `factor` (Chen et al. 2023). "yarn" divides those that turn less than `slow_turns`
    times over the original context, leaves those that turn more than `fast_turns` times, blends between, and
    multiplies queries and keys by `amplitude` (Peng et al. 2023, "YaRN", section 3). "llama3" blends, too, between
    wavelengths of original context / `slow_turns` and / `fast_turns` (Llama 3.1's released code). "dynamic" raises the
    base with the length of a text beyond the context: up to the context it changes nothing, and a longer row is
    refused, as keys that were rotated for a shorter text cannot follow.
    """

    kind: Literal["none", "linear", "dynamic", "yarn", "llama3"] = "none"
    factor: PositiveFloat = 1.0
    original_context: PositiveInt | None = None  # tokens; None means the model's context
    slow_turns: PositiveFloat = 1.0
    fast_turns: PositiveFloat = 32.0
    amplitude: PositiveFloat = 1.0  # yarn's factor of cosine and sine; the paper's is 0.1 ln(factor) + 1
    whole_pairs: bool = True  # yarn's blend begins and ends at whole pairs of a head

    def check(self) -> None:
        more = self.slow_turns < self.fast_turns
        require(more, "fast_turns", self.fast_turns, f"more than slow_turns {self.slow_turns:g}", "change one")
        longer = self.kind in ("none", "linear") or self.factor >= 1
        require(longer, "factor", self.factor, f"1 or more for {self.kind!r}", "texts are made longer, not shorter")


@dataclass(frozen=True)
class PositionSettings(Settings):
    """How the model knows where a token stands."""

    kind: Literal["learned", "rotary", "relative", "none"] = "learned"
    rotary_base: PositiveFloat = 10_000.0
    rotary_scaling: RotaryScaling = RotaryScaling()
    banded_rotary_base: PositiveFloat | None = None  # of banded layers, unscaled (Gemma 3); None: as of the others
    relative_buckets: PositiveInt = 32  # T5
    relative_max_distance: PositiveInt = 128  # T5, tokens
    # rows of a table for the parts of an input, such as two sentences, added to the embeddings (BERT); 0: no table
    segment_types: NonNegativeInt = 0


@dataclass(frozen=True)
class EmbeddingSettings(Settings):
    """What becomes of the rows of the table of tokens."""

    scaled: bool = False  # x width^0.5 (Vaswani et al. 2017, section 3.4; Gemma)


@dataclass(frozen=True)
class HeadSettings(Settings):
    """What stands between the last hidden states and the logits, or a task's head."""

    transform: bool = False  # a dense layer, the activation and a norm before the table (BERT's masked language model)
    bias: bool = False  # one for each entry of the vocabulary
    scaled: bool = False  # logits x width^-0.5 (T5 v1.0, whose table is also the embeddings')
    logit_cap: PositiveFloat | None = None  # logits become cap x tanh(logits / cap) (Gemma 2)
    pooler: bool = False  # a dense layer and tanh on the first token's hidden state, for tasks' heads (BERT)


@dataclass(frozen=True)
class MuPSettings(Settings):
    """The maximal update parametrisation (muP): the base model, whose rates and deviations models of other widths take.

    Yang & Hu et al. 2022, "Tensor Programs V", Table 8 (the form that allows tied embeddings), for Adam; r is
    base_width / width, and heads x head_dim and feed_forward.width are taken to grow with the width:

    - matrices from width to width begin at init_std x sqrt(r) and learn at the rate x r; weight decay stays as it is
      (lmjax/optim/rates.py);
    - the embeddings, the table of logits, positions, norms and biases begin and learn as in the base model;
    - logits are multiplied by r, and the base model's scale of attention scores by base_head_dim / head_dim: scores
      fall as 1 / head_dim instead of its root.

    A model of the base's shape is what it is without muP, bit for bit. What a task adds to the language model, such as
    a scalar head, is no part of it. Logits of a fresh model still fall as 1 / sqrt(width), as the paper's do.
    """

    base_width: PositiveInt | None = None  # None: the standard parametrisation
    base_head_dim: PositiveInt | None = None  # None: as in this model, whose width then is the base's

    def check(self) -> None:
        known = self.base_width is not None or self.base_head_dim is None
        require(known, "base_width", None, "the base model's, beside base_head_dim", "set both, or neither")


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The shape of a decoder; of an encoder, where attention is not causal; or of an encoder-decoder.

    `encoder_layers` makes an encoder-decoder: the decoder's `layers` attend also to an encoder of so many, which sees
    both sides. All else holds for both stacks.
    """

    layers: PositiveInt = 4
    width: PositiveInt = 128
    context: PositiveInt = 256  # the most positions the model can address
    vocab_size: PositiveInt | None = None  # rows of the embedding; None means the tokenizer's size
    attention: AttentionSettings = AttentionSettings()
    feed_forward: FeedForwardSettings = FeedForwardSettings()
    norm: NormSettings = NormSettings()
    positions: PositionSettings = PositionSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    tied_head: bool = True  # logits from the embedding matrix
    dropout: Fraction = 0.0  # after the embeddings and on each residual branch
    # of what begins as a normal distribution. None is T5's way: matrices at 1 / sqrt(their inputs), those of queries
    # also / sqrt(head_dim) where scores are not scaled, and the embeddings at 1
    init_std: PositiveFloat | None = 0.02
    scaled_residual_init: bool = True  # residual projections at init_std / sqrt(2 x layers) (GPT-2)
    mup: MuPSettings = MuPSettings()
    head: HeadSettings = HeadSettings()
    encoder_layers: PositiveInt | None = None  # None: one stack

    def check(self) -> None:
        heads = self.attention.heads
        divides = self.attention.head_dim is not None or self.width % heads == 0
        require(divides, "width", self.width, f"a multiple of attention.heads {heads}", "or set head_dim")
        period = len(self.attention.pattern)
        repeats = period > 0 and self.layers % period == 0
        require(repeats, "layers", self.layers, f"a multiple of the attention pattern's {period}", "change one")
        even = self.positions.kind != "rotary" or self.head_dim % 2 == 0
        require(even, "attention.head_dim", self.head_dim, "an even number for rotary positions", "change it")
        self._check_attention()
        self._check_stacks()
        if self.mup.base_width is not None:
            self._check_base(self.mup.base_width)

    def _check_attention(self) -> None:
        attention, kind = self.attention, self.positions.kind
        rotary = kind == "rotary" or "nope" not in attention.pattern
        require(rotary, "attention.pattern", attention.pattern, f"no 'nope' with {kind} positions", "use 'dense'")
        capped = kind != "relative" or attention.scores.cap is None
        fix = "leave it out"
        require(capped, "attention.scores.cap", attention.scores.cap, "None with relative positions", fix)
        normed = self.encoder_layers is None or attention.qk_norm == "none"
        require(normed, "attention.qk_norm", attention.qk_norm, "'none' in an encoder-decoder", fix)

    def _check_stacks(self) -> None:
        both, one = self.encoder_layers is not None, self.encoder_layers is None
        causal = one or self.attention.causal
        require(causal, "attention.causal", False, "true for the decoder of an encoder-decoder", "leave it out")
        period = len(self.attention.pattern)
        repeats = one or (self.encoder_layers or 0) % period == 0
        fix = "change one"
        require(repeats, "encoder_layers", self.encoder_layers, f"a multiple of the attention pattern's {period}", fix)
        learned = both and self.positions.kind == "learned"
        fix = "use 'relative', as T5"
        require(not learned, "positions.kind", "learned", "another kind for an encoder-decoder", fix)
        encoder = one and not self.attention.causal
        for name in ("pooler", "transform"):
            fits = encoder or not getattr(self.head, name)
            require(
                fits, f"head.{name}", True, "False but in an encoder", "leave it out, or set attention.causal=False"
            )
        fits = self.init_std is not None or self.mup.base_width is None
        require(fits, "init_std", None, "a number with mup.base_width", "set it to 0.02")

    def _check_base(self, base: int) -> None:
        head_dim, ratio = self.base_head_dim, self.base_ratio
        known = self.mup.base_head_dim is not None or ratio == 1
        expected = f"the head_dim of the base model, whose width {base} is not this one's {self.width}"
        grown = self.head_dim * ratio
        fix = f"use {self.head_dim} if wider models have more heads, {grown:g} if they have wider ones"
        require(known, "mup.base_head_dim", None, expected, fix)
        heads, inner = self.attention.heads * self.head_dim * ratio / head_dim, self.feed_forward_width * ratio
        whole = heads.is_integer() and inner.is_integer() and heads > 0
        expected = (
            f"a base model of whole sizes, not {heads:g} heads of {head_dim} and a feed_forward.width of {inner:g}"
        )
        require(whole, "mup.base_width", base, expected, "name the width and the head_dim of the base model")

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim or self.width // self.attention.heads

    @property
    def base_ratio(self) -> float:
        """base_width / width under muP; 1 in the standard parametrisation."""
        return 1.0 if self.mup.base_width is None else self.mup.base_width / self.width

    @property
    def base_head_dim(self) -> int:
        """That of muP's base model; the model's own in the standard parametrisation."""
        return self.mup.base_head_dim or self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.attention.kv_heads or self.attention.heads

    @property
    def feed_forward_width(self) -> int:
        return self.feed_forward.width or 4 * self.width
