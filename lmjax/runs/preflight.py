"""What can be known to be wrong with a pipeline's later stages before the first of them has run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmjax.bucket import located
from lmjax.data.conversation_files import SUFFIXES
from lmjax.data.open_files import list_files
from lmjax.errors import UserError
from lmjax.rl.reward_function import load_function
from lmjax.settings import ModelSettings
from lmjax.settings.recipe_files import PPO, Compare, Pretrain, Stage, dialogue_sources, from_json, functions_of
from lmjax.stages.finetune import check_lengths
from lmjax.stages.initial import found_checkpoint
from lmjax.stages.pretrain import planned_model


def check_ahead(stages: Sequence[Stage], to_run: Sequence[str]) -> None:
    """Raises UserError, naming the stage, where a function or a file is absent or rows are too long for their model.

    Files in the folders of other stages may still be to be made, and models of unknown shapes are not judged.
    """
    names = {stage.name for stage in stages}
    for place, stage in enumerate(stages):
        if stage.name in to_run and not isinstance(stage, Pretrain):
            try:
                _check_functions_and_files(stage, names)
                _check_rows(stage, stages[:place])
            except UserError as error:
                raise UserError(f"stage {stage.name}: {error}") from error


def model_of(source: str, stages: Sequence[Stage]) -> ModelSettings | None:
    """The settings of the model that a stage leaves, or that a checkpoint holds; None where they are not known yet."""
    for place, stage in enumerate(stages):
        if stage.name == source:
            if isinstance(stage, Pretrain):
                return planned_model(stage)
            return stage.model or model_of(stage.start, stages[:place])
    if not source or not located(source).exists():
        return None
    checkpoint = found_checkpoint(located(source))
    made_by = from_json(checkpoint.extras()["recipe"], f"{checkpoint.path}: recipe")
    return planned_model(made_by) if isinstance(made_by, Pretrain) else made_by.model


def _check_functions_and_files(stage: Stage, names: set[str]) -> None:
    for field, function in functions_of(stage).items():
        load_function(function, field)
    for sources in dialogue_sources(stage).values():
        for source in sources:
            if source.path and Path(source.path).parts[0] not in names:
                list_files(source.path, SUFFIXES)


def _check_rows(stage: Stage, before: Sequence[Stage]) -> None:
    assert not isinstance(stage, Pretrain)
    model = model_of(stage.start, before)
    judge = stage.reward.source if isinstance(stage, PPO) else stage.proxy if isinstance(stage, Compare) else ""
    if model is not None:
        check_lengths(stage, model, model_of(judge, before))
