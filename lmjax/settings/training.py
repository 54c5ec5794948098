"""What a recipe says of computing, devices, optimizer, steps, evaluations, checkpoints and records."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from lmjax.errors import require
from lmjax.fields import (
    ClosedFraction,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Seed,
    Settings,
    at_least,
)


@dataclass(frozen=True)
class ComputeSettings(Settings):
    """How the model is computed, which never changes what it computes beyond rounding.

    What is "auto" or None is chosen: for pretraining on a TPU as `lmjax.plan.layout` says, else as written here.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on TPU and GPU, float32 on CPU
    scan_layers: bool = True  # one compiled layer, stacked parameters
    unroll_layers: bool | None = None  # of stacked parameters: each layer is compiled apart; None: no
    # what the backward pass works out again: nothing, or ever more (lmjax/model/remat.py); auto: nothing
    remat: Literal[
        "auto",
        "none",
        "dots",
        "projections",
        "minimal",
        "all_but_attended",
        "all_but_query",
        "key_value_up",
        "attention",
        "up",
        "full",
        # on TPU and GPU: what the policy of that name keeps goes to the host's memory
        "projections_offloaded",
        "all_but_attended_offloaded",
        "all_but_query_offloaded",
        "key_value_up_offloaded",
        "attention_offloaded",
        "up_offloaded",
    ] = "auto"
    loss_chunk: PositiveInt | None = None  # tokens whose float32 logits exist at once on a device; None: by the shapes
    attention_block: PositiveInt | None = None  # the most queries, and keys, of a step of splash attention; None: 1,024
    vector_memory: PositiveInt | None = None  # MiB of a TPU that a fusion may use; None: parallel/compiler_options.py

    @property
    def remat_policy(self) -> str:
        return "none" if self.remat == "auto" else self.remat

    def check(self) -> None:
        block = self.attention_block
        fits = block is None or block % 128 == 0
        require(fits, "attention_block", block, "a multiple of 128, a register's width", "use 512 or 1024")


@dataclass(frozen=True)
class MeshSettings(Settings):
    """Devices along each mesh axis; one axis may be -1 and takes what is left.

    Of axes that are None, data takes what is left and the others are 1. Where all are None, the sizes are chosen for
    pretraining on a TPU as `lmjax.plan.layout` says.
    """

    replica: int | None = None  # across slices, over the data-centre network
    data: int | None = None
    fsdp: int | None = None
    sequence: int | None = None
    tensor: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """All sizes, one of which may be -1."""
        given = {name: size for name, size in dataclasses.asdict(self).items() if size is not None}
        rest = 1 if -1 in given.values() else -1
        usual = {"replica": 1, "data": rest, "fsdp": 1, "sequence": 1, "tensor": 1}
        return usual | given

    @property
    def is_open(self) -> bool:
        """Whether no axis is given."""
        return all(size is None for size in dataclasses.asdict(self).values())

    def check(self) -> None:
        sizes = self.sizes
        for name, size in sizes.items():
            require(size == -1 or size > 0, name, size, "a size above 0, or -1 once", "use 1")
        inferred = [name for name, size in sizes.items() if size == -1]
        fix = f"give all but one of {', '.join(inferred)} a size, such as 1"
        require(len(inferred) <= 1, "", sizes, "at most one axis at -1", fix)


@dataclass(frozen=True)
class PlanSettings(Settings):
    """For which slice `lmjax plan` compiles, where the command does not say."""

    topology: str = ""  # such as "v5e-256" or "2xv5p-512"


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """Learning rate over time, as a multiple of the peak."""

    kind: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = "cosine"
    unit: Literal["steps", "tokens"] = "steps"
    warmup: Annotated[int, at_least(0, "use 0 for no warmup")] = 0  # in `unit`, linear
    # the multiple of the peak where the warmup starts: 0 loses the first update, 1 holds the peak, as T5 does;
    # None: one step up, as nanoGPT: the first of warmup + 1 equal rises to the peak
    warmup_from: ClosedFraction | None = None
    decay: PositiveInt | None = None  # in `unit`: where the decay ends, warmup included; None means the run's end
    final: ClosedFraction = 0.1  # the multiple of the peak at the end of the decay
    stable: OpenFraction = 0.8  # "wsd": the fraction of `decay` after which the rate falls

    def check(self) -> None:
        fits = self.decay is None or self.warmup < self.decay
        less = f"less than decay = {self.decay}, where the schedule ends"
        require(fits, "warmup", self.warmup, less, "shorten it")


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """The optimizer and its schedule."""

    name: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: PositiveFloat = 3e-4  # the peak
    schedule: ScheduleSettings = ScheduleSettings()
    b1: Fraction = 0.9  # b1, b2, eps and bias_correction are Adam's
    b2: Fraction = 0.95
    eps: PositiveFloat = 1e-8
    bias_correction: bool = True  # BERT's has none
    parameter_scale: bool = True  # Adafactor: the rate is relative to each parameter's root mean square
    weight_decay: NonNegativeFloat = 0.1  # decoupled, times the learning rate; never on norms and biases
    decay_embeddings: bool = False
    clip_norm: PositiveFloat | None = 1.0  # of the global gradient
    state_dtype: Literal["float32", "bfloat16"] = "float32"  # of Adam's first moment

    def check(self) -> None:
        kept = self.name == "adamw" or self.state_dtype == "float32"
        fix = "use 'float32', or name = 'adamw'"
        require(kept, "state_dtype", self.state_dtype, "'float32': Adafactor has no first moment", fix)


@dataclass(frozen=True)
class TrainSettings(Settings):
    """How long, and what each update does."""

    steps: PositiveInt = 1000
    # gradient accumulation: the batch is cut in this many equal parts; None: one, or as lmjax.plan.layout chooses
    microbatches: PositiveInt | None = None
    seed: Seed = 0
    z_loss: NonNegativeFloat = 0.0  # coefficient of log(Z)^2
    label_smoothing: Fraction = 0.0
    abort_after_skipped: PositiveInt = 10  # non-finite steps in a row before the run stops

    @property
    def parts(self) -> int:
        """The microbatches of a batch."""
        return self.microbatches or 1


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """Evaluation on the fixed validation set, and samples on the way."""

    every: PositiveInt = 100  # steps; it is also done at the end
    # so many evaluations in a row without a better checkpoint.best_by end the run (early stopping); None: none do
    patience: PositiveInt | None = None
    batches: PositiveInt | None = None  # evenly from every source, at least one of each; None: the whole validation set
    prompts: tuple[str, ...] = ()  # continued at each evaluation
    sample_tokens: PositiveInt = 64
    temperature: Annotated[float, at_least(0, "use 0 for greedy")] = 0.8


@dataclass(frozen=True)
class CheckpointSettings(Settings):
    """When a checkpoint is written and which are kept."""

    every: PositiveInt = 500  # steps; the last step is always saved
    keep_last: PositiveInt = 2
    keep_every: PositiveInt | None = None  # steps whose multiples are never deleted
    at: tuple[int, ...] = ()  # further steps that are saved, and never deleted
    keep_best: NonNegativeInt = 0  # by best_by: then every step that is saved is evaluated, too
    # a low loss, a high reward, or a high metric of a task, such as "validation_accuracy"
    best_by: str = "validation_loss"
    select_best: bool = False  # others load and are initialised from the best one that was kept, not the last

    def check(self) -> None:
        kept = not self.select_best or self.keep_best > 0
        require(kept, "keep_best", self.keep_best, "1 or more with select_best", "set it to 1")
        require(all(step > 0 for step in self.at), "at", self.at, "steps above 0", "leave the others out")


@dataclass(frozen=True)
class LogSettings(Settings):
    """What is recorded beside the checkpoints."""

    every: PositiveInt = 10  # steps
    tensorboard: bool = True
    # services that receive the record, too; pip install 'lmjax[track]'
    trackers: tuple[Literal["wandb", "trackio"], ...] = ()
    profile: tuple[int, int] | None = None  # first and last step of an XLA profile

    def check(self) -> None:
        ordered = self.profile is None or 0 <= self.profile[0] <= self.profile[1]
        require(ordered, "profile", self.profile, "(first, last) with first <= last", "use (10, 12)")
