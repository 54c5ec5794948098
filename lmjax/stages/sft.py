"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from lmjax.notation import percent
from lmjax.settings import SFT
from lmjax.stages.changes import DIALOGUE, TRAINING, Kind, Table
from lmjax.stages.kind import fine_tuning
from lmjax.stages.shown import LANGUAGE_TILES, LOSS, Shown, Told, one_curve
from lmjax.tasks.demonstrations import Demonstrations

CHANGES: Table = {Kind.FREE: ("reward_model",), Kind.CONSEQUENTIAL: ("mix.", "mix_share", "dropout")}

KIND = fine_tuning(
    SFT,
    lambda resolved: Demonstrations(),
    shown=Shown(
        charts=(LOSS, one_curve("reward", "Reward by the reward model, validation", "validation_reward", marked=True)),
        tiles=(*LANGUAGE_TILES, Told("validation_accuracy", "accuracy", percent, "of answers\u2019 tokens")),
    ),
    changes=(TRAINING, DIALOGUE, CHANGES),
)
