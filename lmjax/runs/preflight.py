"""What can be known to be wrong with stages before the first of them has run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmjax.errors import UserError
from lmjax.settings import Stage
from lmjax.settings.stage import naming
from lmjax.tasks.missing import missing
from lmjax.tasks.resolved import resolve


def check_ahead(stages: Sequence[Stage], to_run: Sequence[str], folders: Sequence[Path]) -> None:
    """Raises UserError for all functions, files and checkpoints that are absent, else for rows too long for a model.

    `folders` are the stages' workdirs. Of several stages the error names its own. Files in the folders of other stages
    may still be to be made, and models of unknown shapes are not judged.
    """
    check_missing(stages, to_run, folders)
    for place, stage in enumerate(stages):
        if stage.name in to_run:
            with naming(stage):
                resolve(stage, stages[:place]).check_lengths()


def check_missing(stages: Sequence[Stage], to_run: Sequence[str], folders: Sequence[Path]) -> None:
    """Raises UserError for all functions, files and checkpoints that are absent, as `check_ahead` does."""
    absent = missing_ahead(stages, to_run, folders)
    if absent:
        raise UserError("\n".join(absent))


def missing_ahead(stages: Sequence[Stage], to_run: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """All that is absent, a message each."""
    names, found = {stage.name for stage in stages}, []
    for stage, folder in zip(stages, folders, strict=True):
        for error in missing(stage, names - {stage.name}, folder) if stage.name in to_run else ():
            found.append(_said(stage, error) if len(stages) > 1 else str(error))
    return found


def _said(stage: Stage, error: UserError) -> str:
    try:
        with naming(stage):
            raise error
    except UserError as named:
        return str(named)
