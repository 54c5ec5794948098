"""The stages that go on from a trained model: supervised fine-tuning, reward models, DPO and PPO, each one dataclass.

Each names what it `start`s from: an earlier stage of its pipeline, or a workdir or checkpoint. Model and tokenizer are
those of the start; `model` is filled in when the stage runs, so that its checkpoints say all that is needed to read
them, and tells `lmjax plan` of a start that does not exist yet. Only SFT has dropout: reward models, DPO and PPO train
without, whatever the start had.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmjax.errors import require
from lmjax.fields import check_divides, check_name, check_types, check_weights, require_local
from lmjax.settings import (
    CheckpointSettings,
    ComputeSettings,
    EvaluationSettings,
    LogSettings,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    PlanSettings,
    SourceSettings,
    TrainSettings,
)
from lmjax.settings.conversations import (
    DialogueSettings,
    DialogueSourceSettings,
    KLSettings,
    PPOSettings,
    RewardSettings,
)


def _check_start(stage: SFT | RewardModel | DPO | PPO | Compare) -> None:
    check_types("", stage)
    check_name(stage.name)
    for field in ("start", "reference", "judge", "proxy", "gold"):
        require_local(field, getattr(stage, field, None), bucket=field != "gold")
    require(stage.start != stage.name, "start", stage.start, "another stage or a checkpoint", "name the one before")


def _check(stage: SFT | RewardModel | DPO | PPO) -> None:
    """What all that train need."""
    _check_start(stage)
    require(stage.epochs is None or stage.epochs > 0, "epochs", stage.epochs, "a number above 0", "use 1.0")
    _check_selection(stage)
    check_divides("train.microbatches", stage.train.microbatches, {"dialogue.batch_size": stage.dialogue.batch_size})


def _check_selection(stage: SFT | RewardModel | DPO | PPO) -> None:
    """Checkpoints are told apart by what the stage's evaluations tell."""
    if not stage.checkpoint.select_best:
        return
    last = not isinstance(stage, RewardModel)
    fix = "leave it out: only the last checkpoint's demonstrations score 0"
    require(last, "checkpoint.select_best", True, "False for a reward model", fix)
    check_best(stage)


def check_best(stage: SFT | RewardModel | DPO | PPO) -> None:
    """Raises UserError where checkpoints are to be kept as the best by a number that no evaluation tells.

    Without checkpoint.select_best, recipes of older runs are read and only refused when they run.
    """
    settings, given = stage.checkpoint, stage.dialogue.validation
    if not settings.keep_best:
        return
    asked = "select_best" if settings.select_best else "checkpoint.keep_best"
    require(bool(given), "dialogue.validation", given, f"at least one source with {asked}", "add one")
    known = set() if isinstance(stage, PPO) else {"validation_loss"}
    if isinstance(stage, PPO) or (isinstance(stage, SFT) and stage.judge):
        known.add("validation_reward")
    fits = settings.best_by in known
    require(fits, "checkpoint.best_by", settings.best_by, " or ".join(sorted(known)), "use it, or name a judge")


@dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning on demonstrations, with pretraining text mixed in where `mix` names some."""

    name: str = "sft"
    start: str = ""
    dialogue: DialogueSettings = DialogueSettings()
    mix: tuple[SourceSettings, ...] = ()  # pretraining text, in rows beside the demonstrations
    mix_share: float = 0.1  # of all rows, where there is a mix
    epochs: float | None = 1.0  # over the demonstrations; None trains for train.steps
    dropout: float | None = None  # of the model in this stage; None keeps what it has
    judge: str = ""  # a reward model: evaluations tell how it scores an answer to each validation prompt, so that
    # checkpoint.best_by = "validation_reward" can select by it (InstructGPT, appendix C.1)
    model: ModelSettings | None = None
    compute: ComputeSettings = ComputeSettings()
    mesh: MeshSettings = MeshSettings()
    plan: PlanSettings = PlanSettings()
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-5, weight_decay=0.0)
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        _check(self)
        check_weights("mix", self.mix)
        require(0 < self.mix_share < 1, "mix_share", self.mix_share, "a share in (0, 1)", "use 0.1, or leave mix out")
        low = self.dropout is None or 0 <= self.dropout < 1
        require(low, "dropout", self.dropout, "a fraction in [0, 1)", "use 0.2, or leave it out")


@dataclass(frozen=True)
class RewardModel:
    """A reward model from rankings: a scalar head on the start, whose demonstrations score 0 on average."""

    name: str = "reward"
    start: str = ""
    dialogue: DialogueSettings = DialogueSettings()
    demonstrations: tuple[DialogueSourceSettings, ...] = ()  # that score 0; none: the best-ranked training answers
    # rankings by people of whom training has none: evaluations tell the accuracy on them beside that of validation
    # (InstructGPT, section 4.1)
    held_out_labelers: tuple[DialogueSourceSettings, ...] = ()
    epochs: float | None = 1.0
    label_smoothing: float = 0.0  # the probability that two answers are the wrong way round
    margin: float = 0.0  # by how much a score is to be above that of the next rank
    centring: float = 0.0  # coefficient of the squared sum of a pair's scores
    model: ModelSettings | None = None
    compute: ComputeSettings = ComputeSettings()
    mesh: MeshSettings = MeshSettings()
    plan: PlanSettings = PlanSettings()
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=9e-6, weight_decay=0.0)
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        _check(self)
        smooth = 0 <= self.label_smoothing < 0.5
        require(smooth, "label_smoothing", self.label_smoothing, "a probability below 0.5", "use 0 for none")
        for name in ("margin", "centring"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more", "use 0 for none")


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation on rankings, against the start as the reference."""

    name: str = "dpo"
    start: str = ""
    dialogue: DialogueSettings = DialogueSettings()
    epochs: float | None = 1.0
    beta: float = 0.1
    label_smoothing: float = 0.0
    model: ModelSettings | None = None
    compute: ComputeSettings = ComputeSettings()
    mesh: MeshSettings = MeshSettings()
    plan: PlanSettings = PlanSettings()
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=5e-7, weight_decay=0.0)
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        _check(self)
        require(self.beta > 0, "beta", self.beta, "a number above 0", "use 0.1")
        smooth = 0 <= self.label_smoothing < 0.5
        require(smooth, "label_smoothing", self.label_smoothing, "a probability below 0.5", "use 0 for none")


@dataclass(frozen=True)
class PPO:
    """PPO from a reward model or a Python function; PPO-ptx with `mix`, GRPO with ppo.baseline = "group".

    A step is an iteration: dialogue.batch_size prompts, each answered ppo.group times. A learning-rate schedule counts
    the optimizer's updates.
    """

    name: str = "ppo"
    start: str = ""  # the policy
    reference: str = ""  # what the policy is held near to: a stage or a checkpoint of the same shape; none: the start
    reward: RewardSettings = RewardSettings()
    dialogue: DialogueSettings = DialogueSettings()  # its prompts
    ppo: PPOSettings = PPOSettings()
    kl: KLSettings = KLSettings()
    mix: tuple[SourceSettings, ...] = ()  # the pretraining text of PPO-ptx
    mix_length: int = 128  # tokens of its rows
    epochs: float | None = None  # over the prompts; None trains for train.steps
    model: ModelSettings | None = None
    compute: ComputeSettings = ComputeSettings()
    mesh: MeshSettings = MeshSettings()
    plan: PlanSettings = PlanSettings()
    optimizer: OptimizerSettings = OptimizerSettings(learning_rate=1e-5, weight_decay=0.0)  # the policy's
    value_optimizer: OptimizerSettings = OptimizerSettings(learning_rate=9e-6, weight_decay=0.0)
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    def __post_init__(self) -> None:
        _check(self)
        check_weights("mix", self.mix)
        require(bool(self.reward.source), "reward.source", "", "a reward model or a function", "name one")
        responses, parts = self.dialogue.batch_size * self.ppo.group, self.ppo.minibatches * self.train.microbatches
        check_divides("ppo.minibatches x train.microbatches", parts, {"dialogue.batch_size x ppo.group": responses})
        mixes = self.ppo.mix_coefficient > 0
        require(
            mixes == bool(self.mix),
            "ppo.mix_coefficient",
            self.ppo.mix_coefficient,
            "above 0 with a mix, 0 without",
            "set both, or neither",
        )
        grouped = self.ppo.baseline == "group"
        require(
            not (mixes and grouped),
            "ppo.mix_coefficient",
            self.ppo.mix_coefficient,
            "0 for a group baseline",
            "use a value baseline",
        )
        whitens = self.reward.whiten and grouped
        require(
            not whitens, "reward.whiten", True, "False for a group baseline, which has no per-token rewards", "drop it"
        )
        fixed = self.kl.target is None or not grouped
        require(fixed, "kl.target", self.kl.target, "none for a group baseline", "leave it out")


@dataclass(frozen=True)
class Compare:
    """Comparisons without people: answers sampled from the start, ranked by a known reward with a chosen noise.

    They are written to `comparisons.jsonl` in the stage's folder, which a reward model behind it reads by the path
    "compare/comparisons.jsonl". With a `proxy` it also tells how good the best of n answers is, for each n up to
    `answers`: the baseline of PPO (Gao et al. 2022, "Scaling laws for reward model overoptimization").
    """

    name: str = "compare"
    start: str = ""
    dialogue: DialogueSettings = DialogueSettings()  # its prompts
    gold: str = ""  # the known reward: a Python function, as in RewardSettings
    noise: float = 0.0  # deviation of what the labeler adds to the known reward of an answer
    proxy: str = ""  # a reward model's stage or checkpoint
    missing_end_penalty: float = 0.0  # taken from the proxy of an answer that did not end by itself, when one is chosen
    answers: int = 4  # per prompt
    response_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0
    model: ModelSettings | None = None
    compute: ComputeSettings = ComputeSettings()
    mesh: MeshSettings = MeshSettings()

    def __post_init__(self) -> None:
        _check_start(self)
        require(self.answers > 1, "answers", self.answers, "2 or more", "use 4")
        require(self.response_tokens > 0, "response_tokens", self.response_tokens, "a number above 0", "use 64")
        require(self.temperature > 0, "temperature", self.temperature, "a number above 0", "use 1.0")
        require(self.noise >= 0, "noise", self.noise, "0 or more", "use 0 for a labeler without mistakes")
        penalty, lowest = self.missing_end_penalty, "0 or more; it is subtracted"
        require(penalty >= 0, "missing_end_penalty", penalty, lowest, "use 0 for none, or what reward's is in PPO")
        require(bool(self.gold), "gold", self.gold, "a Python function", 'name it "file.py:function"')
