"""The parts of a recipe: one frozen dataclass per part, checked when it is made.

A setting lives in the dataclass of the part it sets and nowhere else. Values come from a recipe file or from
the command line; what comes out is handed whole to the part. Units stand beside each field.
"""

from __future__ import annotations

from lmjax.settings.data import DataSettings, SourceSettings, TokenizerSettings
from lmjax.settings.model import AttentionSettings, FeedForwardSettings, ModelSettings, NormSettings, PositionSettings
from lmjax.settings.training import (
    CheckpointSettings,
    ComputeSettings,
    EvaluationSettings,
    LogSettings,
    MeshSettings,
    OptimizerSettings,
    PlanSettings,
    ScheduleSettings,
    TrainSettings,
)

__all__ = [
    "AttentionSettings",
    "CheckpointSettings",
    "ComputeSettings",
    "DataSettings",
    "EvaluationSettings",
    "FeedForwardSettings",
    "LogSettings",
    "MeshSettings",
    "ModelSettings",
    "NormSettings",
    "OptimizerSettings",
    "PlanSettings",
    "PositionSettings",
    "ScheduleSettings",
    "SourceSettings",
    "TokenizerSettings",
    "TrainSettings",
]
