"""What can be known to be wrong with a pipeline's later stages before the first of them has run."""

from __future__ import annotations

from collections.abc import Sequence

from lmjax.settings import Stage
from lmjax.settings.stage import naming
from lmjax.tasks.resolved import resolve


def check_ahead(stages: Sequence[Stage], to_run: Sequence[str]) -> None:
    """Raises UserError, naming the stage, where a function or a file is absent or rows are too long for their model.

    Files in the folders of other stages may still be to be made, and models of unknown shapes are not judged.
    """
    names = {stage.name for stage in stages}
    for place, stage in enumerate(stages):
        if stage.name in to_run:
            with naming(stage):
                resolved = resolve(stage, stages[:place])
                resolved.check_files(names)
                resolved.check_lengths()
