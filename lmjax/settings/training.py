"""What a recipe says of computing, devices, optimizer, steps, evaluations, checkpoints and records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from lmjax.errors import require
from lmjax.fields import check_fraction, check_positive, check_types


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
