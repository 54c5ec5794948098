"""The reward model: a scalar head on a language model, trained on rankings."""

from __future__ import annotations

from lmjax.settings import RewardModel
from lmjax.stages.changes import DIALOGUE, TRAINING, Kind, Table
from lmjax.stages.kind import fine_tuning
from lmjax.stages.shown import RANKED, RANKED_TILES, Drawn, Shown, rankings_seen, rankings_text
from lmjax.tasks.rankings import Rankings

CHANGES: Table = {
    Kind.FREE: ("held_out_labelers.",),
    Kind.CONSEQUENTIAL: ("demonstrations.", "label_smoothing", "margin", "centring"),
    Kind.BREAKING: ("reads",),
}

KIND = fine_tuning(
    RewardModel,
    lambda resolved: Rankings(),
    shown=Shown(
        charts=(
            *RANKED,
            Drawn(
                "held_out_labelers",
                "Pairs of held-out labelers in the right order",
                (("held_out_labelers_accuracy", "validation", True),),
            ),
        ),
        tiles=RANKED_TILES,
        model="A reward model",
        batch=rankings_text,
        seen=rankings_seen,
    ),
    changes=(TRAINING, DIALOGUE, CHANGES),
)
