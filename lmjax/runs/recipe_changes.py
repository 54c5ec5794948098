"""What may change in a recipe between two runs of one workdir, and what a change does to the batches that follow.

In: the recipe that the workdir's newest steps were trained with, and the one that is asked for. Out: the recipe to
train with, and the changes in words; or a UserError. Every field of every stage is of one kind:

- free: the rest of the run computes the same, up to rounding;
- consequential: the rest of the run is another one; taken with --force;
- breaking: the weights, their optimizer state or their tokens do not fit any more; refused always.
"""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any, NamedTuple

from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError, require, shortened
from lmjax.settings import DataSettings, OptimizerSettings, ScheduleSettings
from lmjax.settings.recipe_files import Pretrain, Stage, flat
from lmjax.settings.stages import DPO, PPO, SFT, Compare, RewardModel

EARLIER = "earlier_batches"  # the loader's field that this module fills in


class Kind(Enum):
    FREE = "free"
    CONSEQUENTIAL = "consequential"
    BREAKING = "breaking"


class Change(NamedTuple):
    """One field that differs, and the words that tell it."""

    field: str
    kind: Kind
    told: str


Table = dict[Kind, tuple[str, ...]]

# An entry that ends with a dot stands for all fields below it.
_TRAINING: Table = {
    Kind.FREE: (
        *("name", "mesh.", "plan.", "evaluation.", "checkpoint.", "log."),
        *("train.microbatches", "train.abort_after_skipped"),
        *("compute.remat", "compute.loss_chunk", "compute.attention_block", "compute.vector_memory"),
    ),
    Kind.CONSEQUENTIAL: (
        *("train.steps", "train.seed", "train.z_loss", "train.label_smoothing", "compute.dtype"),
        *("optimizer.learning_rate", "optimizer.schedule.", "optimizer.b1", "optimizer.b2", "optimizer.eps"),
        *("optimizer.bias_correction", "optimizer.parameter_scale", "optimizer.weight_decay"),
        *("optimizer.decay_embeddings", "optimizer.clip_norm"),
    ),
    Kind.BREAKING: ("optimizer.name", "optimizer.state_dtype", "compute.scan_layers"),
}
_DIALOGUE: Table = {
    Kind.FREE: ("dialogue.validation.", "dialogue.prefetch", f"dialogue.{EARLIER}.", "model."),
    Kind.CONSEQUENTIAL: (
        *("dialogue.train.", "dialogue.template.", "dialogue.sequence_length", "dialogue.batch_size"),
        *("dialogue.packing", "dialogue.too_long", "dialogue.prompt_weight", "dialogue.most_answers"),
        *("dialogue.shuffle", "dialogue.seed", "epochs"),
    ),
    Kind.BREAKING: ("start",),
}
_PRETRAIN: Table = {
    Kind.FREE: ("data.validation.", "data.prefetch", f"data.{EARLIER}.", "model.attention.implementation"),
    Kind.CONSEQUENTIAL: (
        *("data.train.", "data.sequence_length", "data.batch_size", "data.packing", "data.isolate_documents"),
        *("data.shuffle", "data.seed", "data.ramp_from", "data.ramp_tokens", "data.ramp_sizes"),
        *("model.dropout", "model.attention.dropout", "model.attention.pattern", "model.attention.band"),
        *("model.norm.eps", "model.positions.rotary_base", "model.feed_forward.activation"),
    ),
    Kind.BREAKING: (
        *("tokenizer.", "model.layers", "model.width", "model.context", "model.vocab_size", "model.tied_head"),
        *("model.init_std", "model.scaled_residual_init", "model.attention.heads", "model.attention.kv_heads"),
        *("model.attention.head_dim", "model.attention.bias", "model.attention.scaled"),
        "model.attention.causal",
        *("model.feed_forward.width", "model.feed_forward.gated", "model.feed_forward.bias"),
        *("model.norm.kind", "model.norm.position", "model.norm.final", "model.norm.bias"),
        *("model.positions.kind", "model.positions.relative_buckets", "model.positions.relative_max_distance"),
    ),
}
_SFT: Table = {Kind.FREE: ("judge",), Kind.CONSEQUENTIAL: ("mix.", "mix_share", "dropout")}
_REWARD: Table = {
    Kind.FREE: ("held_out_labelers.",),
    Kind.CONSEQUENTIAL: ("demonstrations.", "label_smoothing", "margin", "centring"),
}
_DPO: Table = {Kind.CONSEQUENTIAL: ("beta", "label_smoothing")}
_PPO: Table = {
    Kind.CONSEQUENTIAL: (
        *("reference", "reward.", "kl.", "mix.", "mix_length"),
        *("ppo.response_tokens", "ppo.temperature", "ppo.group", "ppo.epochs", "ppo.minibatches", "ppo.clip"),
        *("ppo.value_clip", "ppo.value_coefficient", "ppo.discount", "ppo.decay"),
        *("ppo.mix_coefficient", "ppo.mix_rows"),
        *(f"value_optimizer.{name}" for name in ("learning_rate", "schedule.", "b1", "b2", "eps", "weight_decay")),
        *(f"value_optimizer.{name}" for name in ("bias_correction", "parameter_scale", "decay_embeddings")),
        "value_optimizer.clip_norm",
    ),
    Kind.BREAKING: ("ppo.baseline", "ppo.average", "value_optimizer.name", "value_optimizer.state_dtype"),
}
_COMPARE: Table = {  # answers that were sampled are kept, and belong to what they were sampled with
    Kind.FREE: (
        *("name", "mesh.", "model.", "compute.remat", "compute.loss_chunk", "compute.attention_block"),
        *("compute.vector_memory", "compute.scan_layers", "dialogue.validation.", "dialogue.prefetch"),
        f"dialogue.{EARLIER}.",
    ),
    Kind.BREAKING: (
        *("start", "gold", "noise", "proxy", "missing_end_penalty", "answers", "response_tokens", "temperature"),
        *("seed", "compute.dtype", "dialogue.train.", "dialogue.template.", "dialogue.sequence_length"),
        *("dialogue.batch_size", "dialogue.packing", "dialogue.too_long", "dialogue.prompt_weight"),
        *("dialogue.most_answers", "dialogue.shuffle", "dialogue.seed"),
    ),
}
TABLES: dict[type[Any], tuple[Table, ...]] = {
    Pretrain: (_TRAINING, _PRETRAIN),
    SFT: (_TRAINING, _DIALOGUE, _SFT),
    RewardModel: (_TRAINING, _DIALOGUE, _REWARD),
    DPO: (_TRAINING, _DIALOGUE, _DPO),
    PPO: (_TRAINING, _DIALOGUE, _PPO),
    Compare: (_COMPARE,),
}


def kinds_of(stage: type[Any], field: str) -> list[Kind]:
    """The kinds that the tables give a field of a stage: one, unless a table is wrong."""
    return [
        kind
        for table in TABLES[stage]
        for kind, entries in table.items()
        for entry in entries
        if field == entry or (entry.endswith(".") and f"{field}.".startswith(entry))
    ]


def changes_of(old: Stage, new: Stage, step: int) -> list[Change]:
    """What differs, with the kind that it has `step` steps after the beginning."""
    before, after = flat(dataclasses.asdict(old)), flat(dataclasses.asdict(new))
    found = []
    for field in [*before, *(name for name in after if name not in before)]:
        a, b = before.get(field, "(absent)"), after.get(field, "(absent)")
        if a != b and not _filled_in(type(new), field):
            kind = _kind(old, new, field, step)
            found.append(Change(field, kind, f"{field}: {shortened(a)} -> {shortened(b)}"))
    return found


def adopted(old: Stage, new: Stage, step: int, force: bool, where: object) -> tuple[Stage, list[str]]:
    """The recipe to train with after `step` steps of `old`, which read on where those ended; and what has changed.

    Raises UserError for a change that breaks the run, and for one that changes the rest of it unless `force`.
    """
    if type(old) is not type(new):
        raise UserError(f"{where}: holds a {type(old).__name__}, not a {type(new).__name__}; choose another --workdir")
    changes = changes_of(old, new, step)
    breaking = [change.told for change in changes if change.kind is Kind.BREAKING]
    if breaking:
        fields = "\n  ".join(breaking)
        raise UserError(
            f"{where}: its recipe differs from this one in\n  {fields}\n"
            f"which its {'answers' if isinstance(new, Compare) else f'weights of step {step}'} cannot change to, "
            "also not by --force; choose another --workdir"
        )
    consequential = [change.told for change in changes if change.kind is Kind.CONSEQUENTIAL]
    if consequential and not force:
        fields = "\n  ".join(consequential)
        raise UserError(
            f"{where}: its recipe differs from this one in\n  {fields}\n"
            "which changes the rest of the run; choose another --workdir, or go on with the new recipe by --force"
        )
    if not isinstance(new, Pretrain | Compare) and new.epochs is not None:
        return _read_on(old, new, step), [change.told for change in changes]
    if not isinstance(new, Compare):
        fix = f"raise it, or choose another --workdir than {where}"
        require(step <= new.train.steps, "train.steps", new.train.steps, f"{step}, the step reached, or more", fix)
    return _read_on(old, new, step), [change.told for change in changes]


def _kind(old: Stage, new: Stage, field: str, step: int) -> Kind:
    (kind,) = kinds_of(type(new), field) or [Kind.BREAKING]
    if field == "train.steps" and not _end_matters(old, new, step):
        return Kind.FREE
    if field == "epochs" and not any(_knows_end(schedule) for schedule in _schedules(new)):
        return Kind.FREE
    if field == "model.context" and isinstance(new, Pretrain) and new.model.positions.kind != "learned":
        return Kind.CONSEQUENTIAL
    return kind


def _filled_in(stage: type[Any], field: str) -> bool:
    """Whether a run fills the field in: its differences are not the user's."""
    return EARLIER in field.split(".") or (stage is not Pretrain and field.split(".")[0] == "model")


def _schedules(stage: Any) -> list[ScheduleSettings]:
    values = [getattr(stage, field.name) for field in dataclasses.fields(stage)]
    return [value.schedule for value in values if isinstance(value, OptimizerSettings)]


def _knows_end(schedule: ScheduleSettings) -> bool:
    return schedule.decay is None and schedule.kind in ("cosine", "linear", "wsd")


def _end_matters(old: Any, new: Any, step: int) -> bool:
    """Whether another number of steps changes a learning rate up to `step`, or the shape of what follows."""
    if getattr(new, "epochs", None) is not None:
        return False
    shorter = new if new.train.steps < old.train.steps else old
    for schedule in _schedules(new):
        if _knows_end(schedule):
            now, end = step, shorter.train.steps
            if schedule.unit == "tokens" and isinstance(shorter, Pretrain):
                ramp = BatchRamp(shorter.data)
                now, end = ramp.tokens_at(now), ramp.tokens_at(end)
            if schedule.kind != "wsd" or now > schedule.stable * end:
                return True
    return False


def _read_on(old: Any, new: Any, step: int) -> Any:
    """`new`, whose batches go on after the rows of the first `step` steps of `old`."""
    part = "data" if isinstance(new, Pretrain) else "dialogue"
    before, after = getattr(old, part), getattr(new, part)
    then = _sizes(before if isinstance(before, DataSettings) else before.loading, step)
    now = _sizes(after if isinstance(after, DataSettings) else after.loading, step)
    earlier = before.earlier_batches
    if then != now:
        earlier = ()
        for until, *sizes in (*before.earlier_batches, then):
            if (earlier[-1][0] if earlier else 0) < step:
                earlier = (*earlier, (min(until, step), *sizes))
    return dataclasses.replace(new, **{part: dataclasses.replace(after, earlier_batches=earlier)})


def _sizes(data: DataSettings, until: int) -> tuple[int, ...]:
    """The entry of `earlier_batches` for batches that end before step `until`."""
    ramp = data.ramp_from or 0
    return until, data.batch_size, data.sequence_length, ramp, data.ramp_tokens, data.ramp_sizes
