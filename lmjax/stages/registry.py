"""The kinds of stages by name. A new kind is a class of settings, a module with its `StageKind`, and an entry here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lmjax.settings import Stage

if TYPE_CHECKING:
    from lmjax.stages.kind import StageKind

MODULES = {  # imported when a stage of the kind is first asked for
    "pretrain": "lmjax.stages.pretrain",
    "pretrain_together": "lmjax.stages.pretrain_together",
    "pretrain_masked": "lmjax.stages.pretrain_masked",
    "pretrain_spans": "lmjax.stages.pretrain_spans",
    "finetune": "lmjax.stages.finetune",
    "sft": "lmjax.stages.sft",
    "compare": "lmjax.stages.compare",
    "reward": "lmjax.stages.reward_model",
    "dpo": "lmjax.stages.dpo",
    "ppo": "lmjax.stages.ppo",
}
STAGES: dict[str, StageKind] = {}  # those that are imported, and those that a program adds


def kind_of(stage: Stage) -> StageKind:
    """What a stage's kind does. Raises KeyError for a kind that is not registered."""
    if stage.kind not in STAGES:
        STAGES[stage.kind] = importlib.import_module(MODULES[stage.kind]).KIND
    return STAGES[stage.kind]
