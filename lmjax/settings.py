"""The parts of a recipe: one frozen dataclass per part, checked when it is made.

A setting lives in the dataclass of the part it sets and nowhere else. Values come from a recipe file or from
the command line; what comes out is handed whole to the part. Units stand beside each field.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from lmjax.errors import require
from lmjax.fields import check_fraction, check_positive, check_types, check_weights, require_local
from lmjax.kinds import check_unused, source_kind

BYTE_ENTRIES = 257  # of the byte tokenizer: the bytes and the end of a text


@dataclass(frozen=True)
class TokenizerSettings:
    """Which tokenizer, and how to train it when `path` is empty."""

    kind: Literal["byte", "sentencepiece", "bpe", "wordpiece", "huggingface"] = "byte"  # "byte": what `path` holds
    path: str = ""  # a trained tokenizer: a folder that lmjax or transformers wrote, a .model file or a vocab.txt
    vocab_size: int = 4096  # entries, when trained here; the byte tokenizer has its own
    sentencepiece_model: Literal["unigram", "bpe"] = "unigram"
    byte_fallback: bool = True  # SentencePiece: unknown characters become bytes
    user_symbols: tuple[str, ...] = ()  # strings that are always one token
    split_digits: bool = False  # SentencePiece: each digit is a piece of its own
    lowercase: bool = True  # WordPiece: the "uncased" convention, which also strips accents
    training_bytes: int = 10_000_000  # at most this much text trains a tokenizer, of every source by its weight

    def __post_init__(self) -> None:
        check_types("tokenizer", self)
        require_local("tokenizer.path", self.path)
        check_positive("tokenizer", self, "vocab_size", "training_bytes")
        check_unused("tokenizer", self)

    @property
    def planned_vocab_size(self) -> int | None:
        """The entries that the settings alone tell; None where they are in a file."""
        return None if self.path else BYTE_ENTRIES if self.kind == "byte" else self.vocab_size


@dataclass(frozen=True)
class SourceSettings:
    """One random-access source of documents. The kind of a `path` is found where none is given (lmjax/kinds.py)."""

    kind: Literal["embedded", "text", "jsonl", "csv", "parquet", "tfds", "shards"] = "embedded"
    path: str = ""  # a file, a folder or a glob; for TFDS the builder's name or prepared folder
    split: str = "train"  # of the embedded corpus or of a TFDS builder
    field: str = "text"  # the record's field that holds the text
    documents: Literal["file", "line", "paragraph"] = "file"  # what one document is in plain text
    begin: float = 0.0  # the part of the source that is read, as fractions of its documents,
    end: float = 1.0  # or of its characters, cut at line ends, where the source is a single document
    weight: float | None = None  # of this source in a mixture; where none has one, sources count by their tokens
    on_bad_record: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        check_types("source", self)
        fix = "leave the source out instead"
        require(self.weight is None or self.weight > 0, "source.weight", self.weight, "a number above 0", fix)
        inside = 0.0 <= self.begin < self.end <= 1.0
        require(inside, "source.begin, source.end", (self.begin, self.end), "0 <= begin < end <= 1", "use 0 and 1")
        object.__setattr__(self, "kind", source_kind(self.path, self.kind))
        needs_path = self.kind != "embedded"
        require_local("source.path", self.path)
        require(bool(self.path) or not needs_path, "source.path", self.path, f"a path for {self.kind!r}", "set path")
        check_unused("source", self)


@dataclass(frozen=True)
class DataSettings:
    """What a batch holds. A batch is a pure function of these settings and the step."""

    train: tuple[SourceSettings, ...] = (SourceSettings(),)
    validation: tuple[SourceSettings, ...] = (SourceSettings(split="validation"),)
    sequence_length: int = 256  # tokens per row
    batch_size: int = 8  # rows per step, over all devices
    packing: Literal["split", "first_fit"] = "split"  # concatenate and split, or whole documents with segments
    isolate_documents: bool = False  # under "split": attention and positions stop at document ends
    shuffle: bool = True
    seed: int = 0
    ramp_from: int | None = None  # rows of the first steps, when the batch size ramps up linearly
    ramp_tokens: int = 0  # tokens over which it ramps
    ramp_sizes: int = 4  # how many batch sizes the ramp passes through, the last included
    prefetch: int = 2  # batches prepared ahead
    # sizes of before they changed, which a resumed run fills in: (first step without them, batch_size,
    # sequence_length, ramp_from or 0, ramp_tokens, ramp_sizes)
    earlier_batches: tuple[tuple[int, int, int, int, int, int], ...] = ()

    def __post_init__(self) -> None:
        check_types("data", self)
        check_positive("data", self, "sequence_length", "batch_size", "ramp_from", "ramp_sizes", "prefetch")
        ends = [earlier[0] for earlier in self.earlier_batches]
        require(ends == sorted({*ends} - {0}), "data.earlier_batches", ends, "rising steps", "leave it out")
        for name in ("train", "validation"):
            sources = getattr(self, name)
            require(bool(sources), f"data.{name}", sources, "at least one source", "add a SourceSettings")
        check_weights("data.train", self.train)
        if self.ramp_from is None:
            fix = "set data.ramp_from too, or leave it out"
            require(self.ramp_tokens == 0, "data.ramp_tokens", self.ramp_tokens, "0 where nothing ramps", fix)
        else:
            fits = self.ramp_from <= self.batch_size
            require(fits, "data.ramp_from", self.ramp_from, f"at most batch_size {self.batch_size}", "lower it")
            require(self.ramp_tokens > 0, "data.ramp_tokens", self.ramp_tokens, "tokens above 0", "set its length")


@dataclass(frozen=True)
class AttentionSettings:
    """Heads, pattern and kernel of the attention."""

    heads: int = 4
    kv_heads: int | None = None  # below `heads`: grouped-query attention; None means `heads`
    head_dim: int | None = None  # None means width / heads
    pattern: tuple[Literal["dense", "banded"], ...] = ("dense",)  # one entry per layer, repeated to the depth
    band: int | None = None  # keys that a query of a banded layer sees, itself included
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
    """The shape of a decoder."""

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


@dataclass(frozen=True)
class ComputeSettings:
    """How the model is computed, which never changes what it computes beyond rounding."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on TPU and GPU, float32 on CPU
    scan_layers: bool = True  # one compiled layer, stacked parameters
    # what the backward pass works out again: nothing, or ever more (lmjax/model/remat.py)
    remat: Literal[
        "none",
        "dots",
        "projections",
        "minimal",
        "key_value_up",
        "attention",
        "up",
        "full",
        # on TPU and GPU: what the policy of that name keeps goes to the host's memory
        "projections_offloaded",
        "key_value_up_offloaded",
        "attention_offloaded",
        "up_offloaded",
    ] = "none"
    loss_chunk: int | None = None  # tokens whose float32 logits exist at once on a device; None: by the shapes
    attention_block: int | None = None  # the most queries, and keys, of a step of splash attention; None: 1,024
    vector_memory: int | None = None  # of a TPU, MiB that one fusion may use; None: parallel/compiler_options.py

    def __post_init__(self) -> None:
        check_types("compute", self)
        check_positive("compute", self, "loss_chunk", "attention_block", "vector_memory")
        block = self.attention_block
        fits = block is None or block % 128 == 0
        require(fits, "compute.attention_block", block, "a multiple of 128, a register's width", "use 512 or 1024")


@dataclass(frozen=True)
class MeshSettings:
    """Devices along each mesh axis; one axis may be -1 and takes what is left."""

    replica: int = 1  # across slices, over the data-centre network
    data: int = -1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        check_types("mesh", self)
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size == -1 or size > 0, f"mesh.{name}", size, "a size above 0, or -1 once", "use 1")
        inferred = [f"mesh.{name}" for name, size in sizes.items() if size == -1]
        fix = f"give all but one of {', '.join(inferred)} a size, such as 1"
        require(len(inferred) <= 1, "mesh", sizes, "at most one axis at -1", fix)


@dataclass(frozen=True)
class PlanSettings:
    """For which slice `lmjax plan` compiles, where the command does not say."""

    topology: str = ""  # such as "v5e-256" or "2xv5p-512"

    def __post_init__(self) -> None:
        check_types("plan", self)


@dataclass(frozen=True)
class ScheduleSettings:
    """Learning rate over time, as a multiple of the peak."""

    kind: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = "cosine"
    unit: Literal["steps", "tokens"] = "steps"
    warmup: int = 0  # in `unit`, linear
    warmup_from: float = 0.0  # the multiple of the peak where the warmup starts; 1 holds the peak, as T5 does
    decay: int | None = None  # in `unit`: where the decay ends, warmup included; None means the run's end
    final: float = 0.1  # the multiple of the peak at the end of the decay
    stable: float = 0.8  # "wsd": the fraction of `decay` after which the rate falls

    def __post_init__(self) -> None:
        check_types("optimizer.schedule", self)
        require(self.warmup >= 0, "optimizer.schedule.warmup", self.warmup, "0 or more", "use 0 for no warmup")
        check_positive("optimizer.schedule", self, "decay")
        fits = self.decay is None or self.warmup < self.decay
        less = f"less than decay = {self.decay}, where the schedule ends"
        require(fits, "optimizer.schedule.warmup", self.warmup, less, "shorten it")
        start = self.warmup_from
        require(0 <= start <= 1, "optimizer.schedule.warmup_from", start, "a multiple in [0, 1]", "use 0")
        require(0 <= self.final <= 1, "optimizer.schedule.final", self.final, "a multiple in [0, 1]", "use 0.1")
        require(0 < self.stable < 1, "optimizer.schedule.stable", self.stable, "a fraction in (0, 1)", "use 0.8")


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its schedule."""

    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 3e-4  # the peak
    schedule: ScheduleSettings = ScheduleSettings()
    b1: float = 0.9  # b1, b2, eps and bias_correction are Adam's
    b2: float = 0.95
    eps: float = 1e-8
    bias_correction: bool = True  # BERT's has none
    parameter_scale: bool = True  # Adafactor: the rate is relative to each parameter's root mean square
    weight_decay: float = 0.1  # decoupled, times the learning rate; never on norms and biases
    decay_embeddings: bool = False
    clip_norm: float | None = 1.0  # of the global gradient
    state_dtype: Literal["float32", "bfloat16"] = "float32"  # of Adam's first moment

    def __post_init__(self) -> None:
        check_types("optimizer", self)
        check_positive("optimizer", self, "learning_rate", "eps", "clip_norm")
        check_fraction("optimizer", self, "b1", "b2")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more", "use 0 for none")
        kept = self.name == "adamw" or self.state_dtype == "float32"
        fix = "use 'float32', or name = 'adamw'"
        require(kept, "optimizer.state_dtype", self.state_dtype, "'float32': Adafactor has no first moment", fix)


@dataclass(frozen=True)
class TrainSettings:
    """How long, and what each update does."""

    steps: int = 1000
    microbatches: int = 1  # gradient accumulation: the batch is cut in this many equal parts
    seed: int = 0
    z_loss: float = 0.0  # coefficient of log(Z)^2
    label_smoothing: float = 0.0
    abort_after_skipped: int = 10  # non-finite steps in a row before the run stops

    def __post_init__(self) -> None:
        check_types("train", self)
        check_positive("train", self, "steps", "microbatches", "abort_after_skipped")
        check_fraction("train", self, "label_smoothing")
        require(self.z_loss >= 0, "train.z_loss", self.z_loss, "0 or more", "use 0 for none")


@dataclass(frozen=True)
class EvaluationSettings:
    """Evaluation on the fixed validation set, and samples on the way."""

    every: int = 100  # steps; it is also done at the end
    batches: int | None = None  # evenly from every source, one of each at least; None means the whole validation set
    prompts: tuple[str, ...] = ()  # continued at each evaluation
    sample_tokens: int = 64
    temperature: float = 0.8

    def __post_init__(self) -> None:
        check_types("evaluation", self)
        check_positive("evaluation", self, "every", "batches", "sample_tokens")
        require(self.temperature >= 0, "evaluation.temperature", self.temperature, "0 or more", "use 0 for greedy")


@dataclass(frozen=True)
class CheckpointSettings:
    """When a checkpoint is written and which are kept."""

    every: int = 500  # steps; the last step is always saved
    keep_last: int = 2
    keep_every: int | None = None  # steps whose multiples are kept for good
    keep_best: int = 0  # by best_by: then every step that is saved is evaluated, too
    best_by: Literal["validation_loss", "validation_reward"] = "validation_loss"  # a low loss, or a high reward
    select_best: bool = False  # others load and start from the best one that was kept, and not from the last

    def __post_init__(self) -> None:
        check_types("checkpoint", self)
        check_positive("checkpoint", self, "every", "keep_last", "keep_every")
        require(self.keep_best >= 0, "checkpoint.keep_best", self.keep_best, "0 or more", "use 0 for none")
        kept = not self.select_best or self.keep_best > 0
        require(kept, "checkpoint.keep_best", self.keep_best, "1 or more with select_best", "set it to 1")


@dataclass(frozen=True)
class LogSettings:
    """What is recorded beside the checkpoints."""

    every: int = 10  # steps
    tensorboard: bool = True
    profile: tuple[int, int] | None = None  # first and last step of an XLA profile

    def __post_init__(self) -> None:
        check_types("log", self)
        check_positive("log", self, "every")
        ordered = self.profile is None or 0 <= self.profile[0] <= self.profile[1]
        require(ordered, "log.profile", self.profile, "(first, last) with first <= last", "use (10, 12)")


__all__ = [name for name, value in list(globals().items()) if dataclasses.is_dataclass(value)]
