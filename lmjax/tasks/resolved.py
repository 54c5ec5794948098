"""What a stage needs to begin, worked out once: its model, initial checkpoint, tokenizer and reward model.

In: a stage's settings and the stages before it; for a run, its workdir too. Out: a `ResolvedStage`, which a run, its
preflight check, a plan and a program are all made from. Without a workdir nothing is opened but what is there already:
what a stage is initialised from may still be to be trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jax.sharding import Mesh

from lmjax.bucket import located
from lmjax.checkpoints.initial import InitialCheckpoint, found_checkpoint, open_initial, open_reward_model, recipe_of
from lmjax.errors import UserError, require
from lmjax.interop.chat_template import filled_template, require_end_of_text
from lmjax.parallel.mesh import check_mesh, make_mesh
from lmjax.settings import ModelSettings, Stage, TokenizerSettings, TrainingStage
from lmjax.tokenizers.tokenizer import Tokenizer, build_tokenizer

Kind = TypeVar("Kind", bound=Stage)


@dataclass(frozen=True)
class ResolvedStage:
    """A stage's settings, their model filled in as far as it is known, and what belongs to them."""

    recipe: Stage  # as it is written
    settings: Stage  # with its model filled in, and laid out
    folder: Path  # its workdir; a plan has none, and reads "."
    entries: int | None = None  # of the tokenizer, where they are known: rows of the model's table beyond are padding
    tokenizer: Tokenizer | None = None  # once it is opened, and where it is kept
    tokenizer_folder: Path | None = None
    start: InitialCheckpoint | None = None  # once it is opened
    scorer: InitialCheckpoint | None = None  # the reward model, once it is opened
    reward_model: ModelSettings | None = None  # the reward model's shape, where it is known
    layout: Stage | None = None  # the recipe with the mesh and what else of its computation was chosen for the devices

    def of(self, kind: type[Kind]) -> Kind:
        """The settings, as those of a kind of stage."""
        assert isinstance(self.settings, kind), f"{self.settings.name}: a {type(self.settings)}, not a {kind}"
        return self.settings

    @property
    def decided(self) -> Stage:
        """The recipe, with what it leaves open chosen where there was a choice."""
        return self.layout or self.recipe

    def laid_out(self, layout: Stage) -> ResolvedStage:
        """With these choices of how it is computed, which never change what is computed beyond rounding."""
        return dataclasses.replace(self, settings=dataclasses.replace(layout, model=self.settings.model), layout=layout)

    def with_fields(self, **fields: Any) -> ResolvedStage:
        """The same stage with other settings, such as another mesh."""
        layout = self.layout and dataclasses.replace(self.layout, **fields)
        recipe, settings = (dataclasses.replace(each, **fields) for each in (self.recipe, self.settings))
        return dataclasses.replace(self, recipe=recipe, settings=settings, layout=layout)

    @property
    def model(self) -> ModelSettings:
        """The model that the stage trains or reads. Raises UserError where the recipe does not tell."""
        model = self.settings.model
        if model is None or model.vocab_size is None:
            raise UserError(
                f"{self.settings.name}.model: expected the settings of what {self.settings.start!r} holds, vocabulary "
                'included, as it does not exist yet; set model, for instance to preset("gpt3_1300m")'
            )
        return model

    @property
    def vocabulary(self) -> int:
        """The entries of the tokenizer, or as many as the model's table has rows."""
        return self.entries or self.model.vocab_size or 0

    def opened(self) -> ResolvedStage:
        """With the initial checkpoint, its tokenizer and model, and the reward model. Raises UserError."""
        stage = self.decided
        start = open_initial(stage.start, self.folder)
        if stage.template is not None:
            template = filled_template(stage.template, start.tokenizer, start.tokenizer_folder)
            if stage.sampled[1]:
                require_end_of_text(template, "sampling")
            stage = stage.with_template(template)
        field, source = stage.reward_model_source
        scorer = open_reward_model(source, self.folder, start, field) if source else None
        return dataclasses.replace(
            self,
            settings=dataclasses.replace(stage, model=with_dropout(start.settings, stage.trained_dropout)),
            entries=start.tokenizer.vocab_size,
            tokenizer=start.tokenizer,
            tokenizer_folder=start.tokenizer_folder,
            start=start,
            scorer=scorer,
            reward_model=None if scorer is None else scorer.settings,
        )

    def with_tokenizer(self, tokenizer: Tokenizer, folder: Path) -> ResolvedStage:
        """With the tokenizer that was made for a model of the recipe's own."""
        model = self.recipe.model
        assert model is not None
        model = dataclasses.replace(model, vocab_size=model.vocab_size or tokenizer.vocab_size)
        return dataclasses.replace(
            self,
            settings=dataclasses.replace(self.decided, model=model),
            entries=tokenizer.vocab_size,
            tokenizer=tokenizer,
            tokenizer_folder=folder,
        )

    def mesh(self) -> Mesh:
        """The devices that are attached, as the recipe arranges them. Raises UserError where it cuts unevenly."""
        mesh = make_mesh(self.settings.mesh)
        self.check_mesh(dict(mesh.shape))
        return mesh

    def check_mesh(self, mesh: dict[str, int]) -> None:
        """Raises UserError where the mesh does not divide the rows or a model."""
        stage = self.settings
        microbatches = stage.train.parts if isinstance(stage, TrainingStage) else 1
        for model in (stage.model, self.reward_model):
            if model is not None:
                check_mesh(mesh, model, stage.loading, microbatches, stage.rows_field)

    def check_lengths(self) -> None:
        """Raises UserError where rows are longer than what reads them can read.

        A model whose positions are computed reads rows of any length, but samples only within its context.
        """
        stage = self.settings
        field, longest = f"{stage.rows_field}.sequence_length", stage.loading.sequence_length
        sampling, sampled = stage.sampled
        if sampled:
            field, longest = f"{field} + {sampling}", longest + sampled
        for whose, model in (("policy" if sampled else "model", stage.model), ("reward model", self.reward_model)):
            if model is not None and (sampled or model.positions.kind == "learned"):
                expected = f"at most the {whose}'s context of {model.context}"
                fix = "shorten prompts or responses" if sampled else "shorten the rows"
                require(longest <= model.context, field, longest, expected, fix)


def resolve(stage: Stage, before: Sequence[Stage] = (), folder: Path = Path()) -> ResolvedStage:
    """The stage, with its model and reward model as far as settings, files and checkpoints tell of them already."""
    model = model_of(stage, before)
    return ResolvedStage(
        recipe=stage,
        settings=dataclasses.replace(stage, model=model and with_dropout(model, stage.trained_dropout)),
        folder=folder,
        entries=planned_entries(stage),
        reward_model=model_named(stage.reward_model_source[1], before),
    )


def model_of(stage: Stage, before: Sequence[Stage] = ()) -> ModelSettings | None:
    """The model that a stage trains or reads, with the vocabulary that is known before there are data."""
    if not stage.own_model:
        return stage.known_model or model_named(stage.start, before) or stage.model
    assert stage.model is not None
    return dataclasses.replace(stage.model, vocab_size=stage.model.vocab_size or planned_entries(stage))


def known_model(stage: Stage) -> ModelSettings:
    """The model of a stage whose recipe says what it is."""
    model = model_of(stage)
    assert model is not None
    return model


def model_named(source: str, stages: Sequence[Stage]) -> ModelSettings | None:
    """The model that a stage leaves, or that a checkpoint holds; None where it is not known yet."""
    for place, stage in enumerate(stages):
        if stage.name == source:
            return model_of(stage, stages[:place])
    if not source or not located(source).exists():
        return None
    return model_of(recipe_of(found_checkpoint(located(source))))


def planned_entries(stage: Stage) -> int | None:
    """The tokenizer's entries, as far as the settings or its files tell: later rows of the table are padding."""
    settings = getattr(stage, "tokenizer", None)
    if not isinstance(settings, TokenizerSettings) or not stage.own_model:
        return None
    if settings.path and Path(settings.path).exists():
        return build_tokenizer(settings, ()).vocab_size
    return settings.planned_vocab_size


def with_dropout(settings: ModelSettings, dropout: float | None) -> ModelSettings:
    """The same model with this dropout everywhere; None keeps what it has."""
    if dropout is None:
        return settings
    attention = dataclasses.replace(settings.attention, dropout=dropout)
    return dataclasses.replace(settings, dropout=dropout, attention=attention)
