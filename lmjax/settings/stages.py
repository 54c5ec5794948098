"""The kinds of stages, each one frozen dataclass, and a pipeline of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from lmjax.errors import require
from lmjax.fields import (
    Bound,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    at_least,
    check_divides,
    check_name,
    check_weights,
    require_local,
)
from lmjax.settings.conversations import DialogueSettings, DialogueSourceSettings, TemplateSettings
from lmjax.settings.data import DataSettings, RowSettings, SourceSettings, TokenizerSettings
from lmjax.settings.labelled import LabelledSettings
from lmjax.settings.measures import MeasureSettings
from lmjax.settings.model import ModelSettings
from lmjax.settings.rl import KLSettings, Penalty, PPOSettings, RewardSettings, is_function
from lmjax.settings.stage import DialogueStage, Stage, TaskSettings, TrainingStage
from lmjax.settings.training import OptimizerSettings

# the probability that a label is wrong
HalfFraction = Annotated[float, Bound(lambda value: 0 <= value < 0.5, "a fraction in [0, 0.5)")]


@dataclass(frozen=True)
class Pretrain(TrainingStage):
    """Language-model pretraining on raw text, from scratch or, with the tokenizer and the shape of `start`, from it."""

    kind: ClassVar[str] = "pretrain"
    rows_field: ClassVar[str] = "data"

    name: str = "pretrain"
    tokenizer: TokenizerSettings = TokenizerSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()

    def check(self) -> None:
        super().check()
        length, context = self.data.sequence_length, self.model.context
        fits = length <= context or self.model.positions.kind != "learned" or bool(self.start)
        require(fits, "data.sequence_length", length, f"at most model.context {context}", "shorten it or raise context")
        rows = {"data.batch_size": self.data.batch_size}
        rows |= {} if self.data.ramp_from is None else {"data.ramp_from": self.data.ramp_from}
        check_divides("train.microbatches", self.train.parts, rows)
        by = self.checkpoint.best_by
        require(by in self.best_by(), "checkpoint.best_by", by, "'validation_loss' in pretraining", "leave it out")
        table, entries = self.model.vocab_size, self.tokenizer.planned_vocab_size
        fits = table is None or entries is None or entries <= table or bool(self.start)
        fix = "raise it, or leave it out to take the tokenizer's size"
        require(fits, "model.vocab_size", table, f"at least the tokenizer's {entries} entries", fix)

    def texts(self) -> dict[str, tuple[SourceSettings, ...]]:
        return {"data.train": self.data.train, "data.validation": self.data.validation}

    def paths(self) -> set[str]:
        return super().paths() | ({self.tokenizer.path} - {""})

    @property
    def loading(self) -> DataSettings:
        return self.data

    @property
    def own_model(self) -> bool:
        return not self.start

    @property
    def known_model(self) -> ModelSettings | None:
        return None if self.start else self.model

    @property
    def checkpoints_folder(self) -> str:
        return self.kind

    @property
    def trained_dropout(self) -> float | None:
        return None


@dataclass(frozen=True)
class Finetune(TrainingStage):
    """Trains a task on the model of `start`: one of lmjax's own (`lmjax.tasks`), or one of the recipe's.

    CONTRIBUTING.md has an example of the latter: a loss and a head of one's own in one recipe file.
    """

    kind: ClassVar[str] = "finetune"
    rows_field: ClassVar[str] = "rows"

    name: str = "finetune"
    task: TaskSettings | None = None
    rows: RowSettings = RowSettings()
    epochs: PositiveFloat | None = None  # over the task's training rows; None trains for train.steps
    dropout: float | None = None  # of the model in this stage; None keeps what it has
    # the learning rate of each layer is so many times that of the layer above it, and embeddings are below all
    layer_decay: PositiveFloat = 1.0
    frozen_layers: NonNegativeInt = 0  # the first layers that do not learn, with the embeddings below them
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-5, weight_decay=0.0)

    def labelled(self) -> dict[str, tuple[LabelledSettings, ...]]:
        named = {f"task.{name}": getattr(self.task, name, ()) for name in ("train", "validation")}
        read = {field: tuple(getattr(one, "source", one) for one in sources) for field, sources in named.items()}
        return {field: of for field, of in read.items() if all(isinstance(one, LabelledSettings) for one in of)}

    @property
    def rates_by_layer(self) -> tuple[float, int]:
        return self.layer_decay, self.frozen_layers

    def check(self) -> None:
        super().check()
        require(self.layer_decay <= 1, "layer_decay", self.layer_decay, "at most 1", "use 1 for one rate")
        require(self.task is not None, "task", None, "a task", "give an object of a class that extends Task")
        check_divides("train.microbatches", self.train.parts, {"rows.batch_size": self.rows.batch_size})
        by, known = self.checkpoint.best_by, self.best_by()
        unknown = self.task is not None and self.task.metrics is None
        require(unknown or by in known, "checkpoint.best_by", by, " or ".join(sorted(known)), "use one of them")

    def best_by(self) -> set[str]:
        return super().best_by() | {f"validation_{name}" for name in (self.task and self.task.metrics) or ()}

    @property
    def loading(self) -> DataSettings:
        return self.rows.loading

    @property
    def buckets(self) -> tuple[int, ...]:
        return self.rows.buckets

    @property
    def trained_dropout(self) -> float | None:
        return self.dropout

    @property
    def language_model(self) -> tuple[str, ...]:
        assert self.task is not None
        return ("params", *self.task.plain()["trunk"])

    @property
    def steps(self) -> int | None:
        fixed = self.epochs is None and self.evaluation.patience is None
        return self.train.steps if fixed else None


@dataclass(frozen=True)
class SFT(DialogueStage):
    """Supervised fine-tuning on demonstrations, with pretraining text mixed in where `mix` names some."""

    kind: ClassVar[str] = "sft"

    name: str = "sft"
    mix: tuple[SourceSettings, ...] = ()  # pretraining text, in rows beside the demonstrations
    mix_share: OpenFraction = 0.1  # of all rows, where there is a mix
    dropout: Fraction | None = None  # of the model in this stage; None keeps what it has
    reward_model: str = (
        ""  # a reward model: evaluations tell how it scores an answer to each validation prompt, so that
    )
    # checkpoint.best_by = "validation_reward" can select by it (InstructGPT, appendix C.1)
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-5, weight_decay=0.0)

    def check(self) -> None:
        super().check()
        require_local("reward_model", self.reward_model, bucket=True)
        check_weights("mix", self.mix)

    def checkpoints(self) -> dict[str, str]:
        return super().checkpoints() | ({"reward_model": self.reward_model} if self.reward_model else {})

    def texts(self) -> dict[str, tuple[SourceSettings, ...]]:
        return {"mix": self.mix}

    @property
    def reward_model_source(self) -> tuple[str, str]:
        return "reward_model", self.reward_model

    @property
    def trained_dropout(self) -> float | None:
        return self.dropout

    def best_by(self) -> set[str]:
        return {"validation_loss"} | ({"validation_reward"} if self.reward_model else set())


@dataclass(frozen=True)
class RewardModel(DialogueStage):
    """A reward model from rankings: a scalar head on the start, whose demonstrations score 0 on average."""

    kind: ClassVar[str] = "reward"
    scores: ClassVar[bool] = True

    name: str = "reward"
    demonstrations: tuple[DialogueSourceSettings, ...] = ()  # that score 0; none: the best-ranked training answers
    # rankings by people of whom training has none: evaluations tell the accuracy on them beside that of validation
    # (InstructGPT, section 4.1)
    held_out_labelers: tuple[DialogueSourceSettings, ...] = ()
    label_smoothing: HalfFraction = 0.0  # the probability that two answers are the wrong way round
    margin: NonNegativeFloat = 0.0  # by how much a score is to be above that of the next rank
    centring: NonNegativeFloat = 0.0  # coefficient of the squared sum of a pair's scores
    reads: Literal["first", "last", "mean"] = "last"  # the real tokens that are scored; an encoder may read its first
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=9e-6, weight_decay=0.0)

    def check_best(self) -> None:
        fix = "leave it out: only the last checkpoint's demonstrations score 0"
        selects = self.checkpoint.select_best
        require(not selects, "checkpoint.select_best", True, "False for a reward model", fix)
        super().check_best()

    def dialogues(self) -> dict[str, tuple[DialogueSourceSettings, ...]]:
        more = {"demonstrations": self.demonstrations, "held_out_labelers": self.held_out_labelers}
        return super().dialogues() | more

    @property
    def language_model(self) -> tuple[str, ...]:
        return "params", "trunk"


@dataclass(frozen=True)
class DPO(DialogueStage):
    """Direct preference optimisation on rankings, against the start as the reference."""

    kind: ClassVar[str] = "dpo"

    name: str = "dpo"
    beta: PositiveFloat = 0.1
    label_smoothing: HalfFraction = 0.0
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=5e-7, weight_decay=0.0)


@dataclass(frozen=True)
class PPO(DialogueStage):
    """PPO from a reward model or a Python function; PPO-ptx with `mix`, GRPO with ppo.baseline = "group".

    A step is an iteration: dialogue.batch_size prompts, each answered ppo.group times. A learning-rate schedule counts
    the optimizer's updates.
    """

    kind: ClassVar[str] = "ppo"

    name: str = "ppo"
    reference: str = ""  # the reference policy: a stage or a checkpoint of the same shape; none: the initial checkpoint
    reward: RewardSettings = RewardSettings()
    ppo: PPOSettings = PPOSettings()
    kl: KLSettings = KLSettings()
    mix: tuple[SourceSettings, ...] = ()  # the pretraining text of PPO-ptx
    mix_length: int = 128  # tokens of its rows
    epochs: PositiveFloat | None = None  # over the prompts; None trains for train.steps
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-5, weight_decay=0.0)  # the policy's
    value_optimizer: OptimizerSettings = OptimizerSettings(learning_rate=9e-6, weight_decay=0.0)

    def check(self) -> None:
        super().check()
        require_local("reference", self.reference, bucket=True)
        check_weights("mix", self.mix)
        require(bool(self.reward.source), "reward.source", "", "a reward model or a function", "name one")
        responses, parts = self.dialogue.batch_size * self.ppo.group, self.ppo.minibatches * self.train.parts
        check_divides("ppo.minibatches x train.microbatches", parts, {"dialogue.batch_size x ppo.group": responses})
        mixes = self.ppo.ptx_coefficient > 0
        require(
            mixes == bool(self.mix),
            "ppo.ptx_coefficient",
            self.ppo.ptx_coefficient,
            "above 0 with a mix, 0 without",
            "set both, or neither",
        )
        grouped = self.ppo.baseline == "group"
        require(
            not (mixes and grouped),
            "ppo.ptx_coefficient",
            self.ppo.ptx_coefficient,
            "0 for a group baseline",
            "use a value baseline",
        )
        whitens = self.reward.whiten and grouped
        require(
            not whitens, "reward.whiten", True, "False for a group baseline, which has no per-token rewards", "drop it"
        )
        fixed = self.kl.target is None or not grouped
        require(fixed, "kl.target", self.kl.target, "none for a group baseline", "leave it out")

    def checkpoints(self) -> dict[str, str]:
        named = super().checkpoints() | {"reward.source": self.reward.source}
        return named | ({"reference": self.reference} if self.reference else {})

    def functions(self) -> dict[str, str]:
        named = self.reward.functions_by_field | {"reward.known_reward": self.reward.known_reward}
        return {field: function for field, function in named.items() if is_function(function)}

    def texts(self) -> dict[str, tuple[SourceSettings, ...]]:
        return {"mix": self.mix}

    @property
    def sampled(self) -> tuple[str, int]:
        return "ppo.response_tokens", self.ppo.response_tokens

    @property
    def language_model(self) -> tuple[str, ...]:
        """The policy, or the average of its weights where that is kept."""
        return ("params", "policy") if self.ppo.ema_decay is None else ("opt_state", "average")

    @property
    def reward_model_source(self) -> tuple[str, str]:
        return "reward.source", "" if is_function(self.reward.source) else self.reward.source

    def best_by(self) -> set[str]:
        return {"validation_reward"}


@dataclass(frozen=True)
class Compare(Stage):
    """Comparisons without people: answers sampled from the start, ranked by a known reward with a chosen noise.

    They are written to `comparisons.jsonl` in the stage's folder, which a reward model behind it reads by the path
    "compare/comparisons.jsonl". With a `reward_model` it also tells how good the best of n answers is, for each n up to
    `answers`: the baseline of PPO (Gao et al. 2022, "Scaling laws for reward model overoptimization").
    """

    kind: ClassVar[str] = "compare"

    name: str = "compare"
    dialogue: DialogueSettings = DialogueSettings()  # its prompts
    known_reward: str = ""  # of the simulated labeler: a Python function, as in RewardSettings
    noise: NonNegativeFloat = 0.0  # deviation of what the labeler adds to the known reward of an answer
    reward_model: str = ""  # a reward model's stage or checkpoint
    no_eos_penalty: Penalty = 0.0  # taken from the reward of a chosen answer that did not end by itself
    answers: Annotated[int, at_least(2)] = 4  # per prompt
    response_tokens: PositiveInt = 64
    temperature: PositiveFloat = 1.0
    seed: int = 0

    def check(self) -> None:
        super().check()
        require_local("reward_model", self.reward_model, bucket=True)
        require_local("known_reward", self.known_reward)
        require(
            bool(self.known_reward),
            "known_reward",
            self.known_reward,
            "a Python function",
            'name it "file.py:function"',
        )

    def checkpoints(self) -> dict[str, str]:
        return super().checkpoints() | ({"reward_model": self.reward_model} if self.reward_model else {})

    def dialogues(self) -> dict[str, tuple[DialogueSourceSettings, ...]]:
        return {"dialogue.train": self.dialogue.train, "dialogue.validation": self.dialogue.validation}

    def functions(self) -> dict[str, str]:
        return {"known_reward": self.known_reward} if is_function(self.known_reward) else {}

    @property
    def loading(self) -> DataSettings:
        return self.dialogue.loading

    @property
    def sampled(self) -> tuple[str, int]:
        return "response_tokens", self.response_tokens

    @property
    def reward_model_source(self) -> tuple[str, str]:
        return "reward_model", self.reward_model

    @property
    def template(self) -> TemplateSettings | None:
        return self.dialogue.template


@dataclass(frozen=True)
class Pipeline:
    """Stages that run one after the other, each in a folder of its own name in the pipeline's workdir."""

    name: str
    stages: tuple[Stage, ...]
    measures: MeasureSettings | None = None  # of the models that they make

    def __post_init__(self) -> None:
        check_name(self.name)
        names = [stage.name for stage in self.stages]
        require(bool(names), "stages", (), "at least one stage", "add a Pretrain")
        twice = sorted({name for name in names if names.count(name) > 1})
        require(not twice, "stages", twice, "stages of different names", "set the name of each")
        for place, stage in enumerate(self.stages):
            for field, source in stage.sources().items():
                later = source in names[place:]
                fix = f"move it behind {source!r}"
                require(not later, f"{stage.name}.{field}", source, f"a stage before {stage.name!r}", fix)
