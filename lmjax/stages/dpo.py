"""Direct preference optimisation: a policy from rankings, without a reward model or sampling."""

from __future__ import annotations

from lmjax.settings import DPO
from lmjax.stages.changes import DIALOGUE, TRAINING, Kind, Table
from lmjax.stages.kind import fine_tuning
from lmjax.stages.shown import RANKED, RANKED_TILES, Shown, one_curve, rankings_seen, rankings_text
from lmjax.tasks.preferences import Preferences

CHANGES: Table = {Kind.CONSEQUENTIAL: ("beta", "label_smoothing")}

KIND = fine_tuning(
    DPO,
    lambda resolved: Preferences(),
    shown=Shown(
        charts=(*RANKED, one_curve("margin", "Margin of the better answer", "margin")),
        tiles=RANKED_TILES,
        batch=rankings_text,
        seen=rankings_seen,
    ),
    changes=(TRAINING, DIALOGUE, CHANGES),
)
