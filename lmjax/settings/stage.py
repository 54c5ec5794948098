"""What stages have in common: fields, and the questions that a stage answers from its settings alone.

Which files, functions and other stages does it read? How many rows has a batch, and how many tokens are sampled behind
each? What a stage does is registered under its `kind` in lmjax/stages/registry.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lmjax.errors import FieldError, UserError, require
from lmjax.fields import PositiveFloat, Settings, check_divides, check_name, require_local
from lmjax.settings.conversations import DialogueSettings, DialogueSourceSettings, TemplateSettings
from lmjax.settings.data import DataSettings, SourceSettings
from lmjax.settings.labelled import LabelledSettings
from lmjax.settings.model import ModelSettings
from lmjax.settings.training import (
    CheckpointSettings,
    ComputeSettings,
    EvaluationSettings,
    LogSettings,
    MeshSettings,
    OptimizerSettings,
    PlanSettings,
    TrainSettings,
)

KINDS: dict[str, type[Stage]] = {}  # every kind of stage by its name in recipe.json; a subclass enters itself


class TaskSettings:
    """What a task (lmjax/tasks/task.py) is to a recipe: a frozen dataclass of plain values, known by its class's name.

    `trunk` says where in its parameters those of the language model are.
    """

    trunk: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...] | None] = ()  # of its evaluations, beside the loss; None: they are not known
    filled: ClassVar[tuple[str, ...]] = ()  # fields that are filled in from its data, where they are empty

    @property
    def task(self) -> str:
        """The name of its class, after the module or the recipe file that defines it."""
        return f"{type(self).__module__}:{type(self).__qualname__}"

    def plain(self) -> dict[str, Any]:
        """What recipe.json keeps of it: names and values, and no code."""
        fields: dict[str, Any] = dataclasses.asdict(self)  # type: ignore[call-overload]
        as_saved = json.loads(json.dumps(fields))  # tuples are lists, so that it equals what was read again
        return {"task": self.task, "trunk": list(self.trunk), "fields": as_saved}


@dataclass(frozen=True)
class SavedTask(TaskSettings):
    """A task as recipe.json has it: its name and its values. Only lmjax's own are made of it again."""

    metrics: ClassVar[tuple[str, ...] | None] = None

    name: str
    keys: tuple[str, ...]
    values: tuple[tuple[str, Any], ...]

    def plain(self) -> dict[str, Any]:
        return {"task": self.name, "trunk": list(self.keys), "fields": dict(self.values)}


@contextmanager
def naming(stage: Stage) -> Iterator[None]:
    """Names the stage of a pipeline in a user's error: before the path of its field, or else before the message."""
    try:
        yield
    except FieldError as error:
        names = {field.name for field in dataclasses.fields(stage)}
        if error.owner or re.split(r"\W", error.field)[0] not in names:
            raise UserError(f"stage {stage.name}: {error}") from error
        raise error.within(stage.name) from error
    except UserError as error:
        raise UserError(f"stage {stage.name}: {error}") from error


@dataclass(frozen=True)
class Stage(Settings):
    """What every stage has. Subclasses set `kind`, by which recipe.json and the registry know them."""

    kind: ClassVar[str] = ""
    rows_field: ClassVar[str] = "dialogue"  # the field that says how long rows are and how many a batch has
    scores: ClassVar[bool] = False  # whether its checkpoints hold a reward model

    name: str = ""
    start: str = ""  # a stage of the same pipeline, a workdir or a checkpoint
    model: ModelSettings | None = None
    compute: ComputeSettings = ComputeSettings()
    mesh: MeshSettings = MeshSettings()
    reasons: tuple[str, ...] = ()  # why a recipe chose its values, a line each, which a run says first

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    @classmethod
    def own_name(cls) -> str:
        """A stage may be the whole recipe, whose fields have nothing before their names."""
        return ""

    def check(self) -> None:
        check_name(self.name)
        require_local("start", self.start, bucket=True)
        require(self.start != self.name, "start", self.start, "another stage or a checkpoint", "name the one before")

    def checkpoints(self) -> dict[str, str]:
        """The stages, workdirs and checkpoints that it reads, by the fields that name them."""
        return {"start": self.start} if self.start else {}

    def dialogues(self) -> dict[str, tuple[DialogueSourceSettings, ...]]:
        """The conversations that it reads, by the fields that name them."""
        return {}

    def texts(self) -> dict[str, tuple[SourceSettings, ...]]:
        """The plain text that it reads, by the fields that name it."""
        return {}

    def labelled(self) -> dict[str, tuple[LabelledSettings, ...]]:
        """The labelled examples that it reads, by the fields that name them."""
        return {}

    def functions(self) -> dict[str, str]:
        """The Python functions that it calls, by the fields that name them."""
        return {}

    def sources(self) -> dict[str, str]:
        """What it needs that another stage may make: its checkpoints, and the first part of its files' paths."""
        named = self.checkpoints()
        for role, sources in self.dialogues().items():
            for number, source in enumerate(sources):
                folder, *inside = Path(source.path).parts or ("",)
                if inside:
                    named[f"{role}[{number}].path"] = folder
        return named

    def paths(self) -> set[str]:
        """Every file, folder and glob that it reads, but checkpoints."""
        found = {source.path for sources in self.texts().values() for source in sources}
        found |= {source.path for sources in self.dialogues().values() for source in sources}
        return (found | {function.rpartition(":")[0] for function in self.functions().values()}) - {""}

    @property
    def loading(self) -> DataSettings:
        """The sizes and the order of its batches; the default's where it reads none."""
        return DataSettings()

    def with_earlier_batches(self, earlier: tuple[tuple[int, int, int, int, int, int], ...]) -> Stage:
        """The same stage, whose batches follow those of other sizes: see DataSettings.earlier_batches."""
        if earlier == self.loading.earlier_batches:
            return self
        rows = dataclasses.replace(getattr(self, self.rows_field), earlier_batches=earlier)
        return dataclasses.replace(self, **{self.rows_field: rows})

    @property
    def buckets(self) -> tuple[int, ...]:
        """The lengths of its batches, beside the full one, where rows of several lengths are in buckets."""
        return ()

    @property
    def sampled(self) -> tuple[str, int]:
        """The field that says how many tokens are sampled behind each row, and how many; 0 where none are."""
        return "", 0

    @property
    def reward_model_source(self) -> tuple[str, str]:
        """The field that names a reward model, and what it names; "" where it reads none."""
        return "", ""

    @property
    def template(self) -> TemplateSettings | None:
        """How its conversations are written; None where it reads plain text."""
        return None

    def with_template(self, template: TemplateSettings) -> Stage:
        """The same stage, whose conversations are written otherwise."""
        dialogue = getattr(self, "dialogue", None)
        if dialogue is None or dialogue.template == template:
            return self
        changed: Any = {"dialogue": dataclasses.replace(dialogue, template=template)}
        return dataclasses.replace(self, **changed)

    @property
    def own_model(self) -> bool:
        """Whether `model` says what is trained; else that is filled in from `start`."""
        return False

    @property
    def known_model(self) -> ModelSettings | None:
        """The model, where the recipe says what it is without looking at `start`."""
        return self.model

    @property
    def trained_dropout(self) -> float | None:
        """The dropout of its model where that is filled in; None keeps the start's."""
        return 0.0

    @property
    def language_model(self) -> tuple[str, ...]:
        """Where in its checkpoints the parameters of a language model are."""
        return ("params",)

    @property
    def checkpoints_folder(self) -> str:
        """What the folder of its checkpoints is called, in its workdir."""
        return self.name

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Itself: a recipe is one stage, or a Pipeline of several."""
        return (self,)

    @property
    def steps(self) -> int | None:
        """How many steps the recipe says that it has; None where its data say so, or it has none."""
        return None


@dataclass(frozen=True)
class TrainingStage(Stage):
    """A stage that trains: the fields that all of them share."""

    plan: PlanSettings = PlanSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    @property
    def steps(self) -> int | None:
        return self.train.steps

    @property
    def rates_by_layer(self) -> tuple[float, int]:
        """The factor of the learning rate from each layer to the one below it, and how many layers do not learn."""
        return 1.0, 0

    def check(self) -> None:
        super().check()
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        named = {name: value.name for name, value in values.items() if isinstance(value, OptimizerSettings)}
        for field, name in named.items() if self.model is not None and self.model.mup.base_width is not None else ():
            fix = "use it, or leave model.mup.base_width out"
            require(
                name == "adamw", f"{field}.name", name, "'adamw' with model.mup.base_width, whose rates are Adam's", fix
            )

    def best_by(self) -> set[str]:
        """The metrics of its evaluations by which a best checkpoint can be chosen."""
        return {"validation_loss"}


@dataclass(frozen=True)
class DialogueStage(TrainingStage):
    """A stage that trains a model that is there already on conversations.

    Model and tokenizer are those of `start`. `model` is filled in when the stage runs, so that its checkpoints say all
    that is needed to read them, and tells `lmjax plan` of a start that does not exist yet. Only SFT has dropout: the
    others train without, whatever the start had.
    """

    dialogue: DialogueSettings = DialogueSettings()
    epochs: PositiveFloat | None = 1.0  # over the conversations; None trains for train.steps

    def check(self) -> None:
        super().check()
        if self.checkpoint.select_best:
            self.check_best()
        rows = {"dialogue.batch_size": self.dialogue.batch_size}
        check_divides("train.microbatches", self.train.parts, rows)

    def check_best(self) -> None:
        """Raises FieldError where checkpoints are kept as the best by a metric that no evaluation has.

        Without checkpoint.select_best, recipes of older runs are read, and refused only when they run.
        """
        settings, validation = self.checkpoint, self.dialogue.validation
        if not settings.keep_best:
            return
        asked = "select_best" if settings.select_best else "checkpoint.keep_best"
        require(bool(validation), "dialogue.validation", validation, f"at least one source with {asked}", "add one")
        known = self.best_by()
        fits = settings.best_by in known
        fix = "use it, or name a reward_model"
        require(fits, "checkpoint.best_by", settings.best_by, " or ".join(sorted(known)), fix)

    def dialogues(self) -> dict[str, tuple[DialogueSourceSettings, ...]]:
        return {"dialogue.train": self.dialogue.train, "dialogue.validation": self.dialogue.validation}

    @property
    def loading(self) -> DataSettings:
        return self.dialogue.loading

    @property
    def template(self) -> TemplateSettings | None:
        return self.dialogue.template

    @property
    def steps(self) -> int | None:
        return self.train.steps if self.epochs is None else None
