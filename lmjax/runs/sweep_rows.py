"""The rows of a sweep's table: what a run's recipe and summary give its row, and whether a table is the sweep's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.run_files import RECIPE_FILE, RUNS
from lmjax.runs.sweep_units import digest
from lmjax.scaling.sweep_table import DIVERGED, DONE, Row
from lmjax.settings import ModelSettings, Sweep
from lmjax.settings.recipe_files import difference, flat, plain, read_recipe

ALWAYS = (  # fields of a run that its row has, also where all runs have the same
    *("model.layers", "model.width", "data.batch_size", "data.sequence_length", "train.steps", "train.seed"),
    "optimizer.learning_rate",
)


def check_table(sweep: Sweep, table: Path, rows: dict[str, Row]) -> None:
    """Raises UserError where the rows of a table are of another sweep, or of a run that is now another one."""
    for row in rows.values():
        if row.get("sweep") != sweep.name:
            what = f"{table}: row {row['name']!r} is of the sweep {row.get('sweep')!r}"
            raise UserError(f"{what}; expected those of {sweep.name!r}; choose another --workdir")
    for one in sweep.runs:
        if one.name in rows and rows[one.name].get("recipe") != digest(one):
            kept = table.parent / RUNS / one.name / RECIPE_FILE
            changed = difference(read_recipe(kept), one.stage) if kept.exists() else []
            raise UserError(
                f"{table}: row {one.name!r} is of another recipe than the sweep's run of that name"
                + "".join(f"\n  {line}" for line in changed)
                + "\nexpected the same; choose another --workdir, or another name for the run"
            )


def varying(sweep: Sweep) -> tuple[str, ...]:
    """The fields of the recipes that rows have: those that differ between runs, and the ones in ALWAYS."""
    recipes = [flat(plain(stage)) for stage in sweep.stages]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    differ = [name for name in names if len({repr(recipe.get(name)) for recipe in recipes}) > 1]
    hidden = ("name", "checkpoint.")
    return tuple(dict.fromkeys((*ALWAYS, *(name for name in differ if not name.startswith(hidden)))))


def of_member(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """The summary of one of several runs that trained together."""
    own = {key.removesuffix(f"/{name}"): value for key, value in summary.items() if key.endswith(f"/{name}")}
    return summary | own


def ended_row(summary: dict[str, Any], model: ModelSettings) -> Row:
    """What the summary of a finished run gives its row; of a mixture, the epochs of the source that was read most.

    A loss above that of a uniform guess has diverged.
    """
    loss, guess = summary["validation_loss"], math.log(model.vocab_size or 0)
    good = loss <= guess  # not where it is NaN
    fault = {} if good else {"error": f"its validation loss is {loss:.4g}, above the {guess:.4g} of a uniform guess"}
    epochs = [value for key, value in summary.items() if key.split("/")[0] == "epochs"]
    names = ("bits_per_byte", "wall_seconds", "tokens_per_second", "device_kind", "devices")
    return {
        "status": DONE if good else DIVERGED,
        "loss": loss,
        "training_loss": summary["loss"],
        "epochs": max(epochs, default=None),
        **{name: summary.get(name) for name in names},
        **fault,
    }


def cell(value: Any) -> Any:
    """A field's value as a cell of a table: numbers and strings stay, others are written out."""
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def said(row: Row) -> str:
    if row["status"] != DONE:
        return f"{row['status']}: {row['error']}"
    bits = "" if row["bits_per_byte"] is None else f", {row['bits_per_byte']:.4f} bits per byte"
    return f"loss {row['loss']:.4f}{bits}, {row['wall_seconds']:.1f} s"
