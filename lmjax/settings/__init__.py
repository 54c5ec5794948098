"""The parts of a recipe: one frozen dataclass per part, checked when it is made.

A setting is a field of the dataclass of the part that it sets, and of no other. A field's type has its bounds
(lmjax/fields.py); `check` compares fields with each other and names them below its own object. Units stand beside each
field.
"""

from __future__ import annotations

from lmjax.settings.conversations import DialogueSettings, DialogueSourceSettings, TemplateSettings
from lmjax.settings.data import DataSettings, RowSettings, SourceSettings, TokenizerSettings
from lmjax.settings.labelled import LabelledSettings
from lmjax.settings.masking import MaskingSettings, PairSettings, SpanSettings
from lmjax.settings.measures import MeasureSettings
from lmjax.settings.model import (
    AttentionSettings,
    EmbeddingSettings,
    FeedForwardSettings,
    HeadSettings,
    ModelSettings,
    MuPSettings,
    NormSettings,
    PositionSettings,
    RotaryScaling,
    ScoreSettings,
)
from lmjax.settings.pretraining import PretrainMasked, PretrainSpans
from lmjax.settings.rl import KLSettings, PPOSettings, RewardSettings
from lmjax.settings.stage import DialogueStage, Stage, TrainingStage
from lmjax.settings.stages import DPO, PPO, SFT, Compare, Finetune, Pipeline, Pretrain, RewardModel
from lmjax.settings.sweep import Member, PretrainTogether, Sweep, SweepRun
from lmjax.settings.text_to_text import TextToTextSettings
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
    "DPO",
    "PPO",
    "SFT",
    "AttentionSettings",
    "CheckpointSettings",
    "Compare",
    "ComputeSettings",
    "DataSettings",
    "DialogueSettings",
    "DialogueSourceSettings",
    "DialogueStage",
    "EmbeddingSettings",
    "EvaluationSettings",
    "FeedForwardSettings",
    "Finetune",
    "HeadSettings",
    "KLSettings",
    "LabelledSettings",
    "LogSettings",
    "MaskingSettings",
    "MeasureSettings",
    "Member",
    "MeshSettings",
    "ModelSettings",
    "MuPSettings",
    "NormSettings",
    "OptimizerSettings",
    "PPOSettings",
    "PairSettings",
    "Pipeline",
    "PlanSettings",
    "PositionSettings",
    "Pretrain",
    "PretrainMasked",
    "PretrainSpans",
    "PretrainTogether",
    "RewardModel",
    "RewardSettings",
    "RotaryScaling",
    "RowSettings",
    "ScheduleSettings",
    "ScoreSettings",
    "SourceSettings",
    "SpanSettings",
    "Stage",
    "Sweep",
    "SweepRun",
    "TemplateSettings",
    "TextToTextSettings",
    "TokenizerSettings",
    "TrainSettings",
    "TrainingStage",
]
