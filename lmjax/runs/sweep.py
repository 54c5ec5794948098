"""Runs a sweep: every run that its table lacks, one after the other, each in a folder of its own.

The workdir holds `table.jsonl` (lmjax/scaling/sweep_table.py), the runs' folders in `runs/`, the tokens that they share
in `cache/`, and in `claims/` a lock for each run that is being worked on. Several processes may work on one workdir:
a lock ends with its process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.checkpoints.checkpoint import checkpoints_in
from lmjax.errors import UserError, clear_disk_errors, require, text_of
from lmjax.fields import require_local
from lmjax.files import user_path, write_whole
from lmjax.parallel import processes
from lmjax.parallel.start_jax import prepare_jax
from lmjax.run_files import RECIPE_FILE
from lmjax.runs.run import Result, run
from lmjax.runs.sweep_size import size_of
from lmjax.runs.workdir import held
from lmjax.scaling.sweep_table import DIVERGED, DONE, FAILED, Row, SweepTable
from lmjax.settings import ModelSettings, Sweep, SweepRun
from lmjax.settings.recipe_files import difference, flat, plain, read_recipe, to_json
from lmjax.settings.stage import naming
from lmjax.tasks.resolved import resolve
from lmjax.training.loop import DivergedError

TABLE_FILE, RUNS, CACHE, CLAIMS = "table.jsonl", "runs", "cache", "claims"
ERROR_FILE = "error.txt"  # in the folder of a run that failed: the traceback
ALWAYS = (  # fields of a run that its row has, also where all runs have the same
    *("model.layers", "model.width", "data.batch_size", "data.sequence_length", "train.steps", "train.seed"),
    "optimizer.learning_rate",
)


@dataclass(frozen=True)
class SweepResult:
    """How a call of `run_sweep` ended. `signal` is the number of the one that stopped it."""

    table: Path
    rows: dict[str, Row]
    elsewhere: tuple[str, ...]  # runs of this share that other processes are working on
    signal: int | None = None

    @property
    def exit_code(self) -> int:
        """0 where all is done or being done, 1 where a row says that its run failed or diverged, 128 + a signal."""
        if self.signal is not None:
            return 128 + self.signal
        return int(any(row["status"] != DONE for row in self.rows.values()))


def run_sweep(
    sweep: Sweep,
    workdir: Path | str | None = None,
    *,
    shard: tuple[int, int] = (1, 1),
    cache: Path | str | None = None,
    verbose: bool = False,
    say: Callable[[str], None] = print,
) -> SweepResult:
    """Trains what the table in `workdir` (default: runs/NAME) lacks; the same call continues.

    `shard` (i, n) takes the i-th of n shares, counted from 1. A run that fails or diverges is tried once more, and is
    then a row that says so. `cache` is where tokens are kept, by default in the workdir. Raises UserError for mistakes
    in the sweep or its data, a table of another sweep and a full disk; the rows so far stay.
    """
    require_local("workdir", workdir)
    many, fix = processes.launched(), "start them apart, such as in an array of jobs, each with its --shard"
    require(many == 1, "the processes of a sweep", many, "1: its runs are each of one process", fix)
    prepare_jax()
    folder = user_path(workdir) if workdir is not None else Path("runs") / sweep.name
    with clear_disk_errors(folder):
        for part in (RUNS, CLAIMS):
            (folder / part).mkdir(parents=True, exist_ok=True)
    table = SweepTable(folder / TABLE_FILE, say)
    worker = _Worker(sweep, folder, table, cache or folder / CACHE, verbose, say)
    check_table(sweep, table.path, table.rows())
    for own in sweep.stages:
        with naming(own):
            resolve(own, folder=folder).check_lengths()
    elsewhere: list[str] = []
    for unit in share_of(sweep, shard):
        with held(folder / CLAIMS / f"{unit[0].name}.lock") as mine:
            if not mine:
                elsewhere += [one.name for one in unit if one.name not in table.rows()]
                continue
            for one in unit:
                result = worker.finish(one)
                if result is not None and result.signal is not None:
                    return SweepResult(table.path, table.rows(), (), result.signal)
    if elsewhere:
        say(f"{len(elsewhere)} runs are being worked on by other processes: {', '.join(elsewhere)}")
    return SweepResult(table.path, table.rows(), tuple(elsewhere))


def share_of(sweep: Sweep, shard: tuple[int, int] = (1, 1)) -> list[list[SweepRun]]:
    """The i-th of n shares: runs alone, or a trunk and its cooldowns; the cheapest first.

    Shares are as even in FLOPs as handing the dearest to the least laden makes them.
    """
    share, shares = shard
    require(1 <= share <= shares, "--shard", f"{share}/{shares}", "I/N with I from 1 to N", "use 1/1 for all")
    sizes = {one.name: size_of(one).flops_spent for one in sweep.runs}
    units = [[one, *(other for other in sweep.runs if other.trunk == one.name)] for one in sweep.runs if not one.trunk]
    costs = [sum(sizes[one.name] for one in unit) for unit in units]
    laden, taken = [0.0] * shares, []
    for number in sorted(range(len(units)), key=lambda number: (-costs[number], number)):
        least = laden.index(min(laden))
        laden[least] += costs[number]
        if least == share - 1:
            taken.append(number)
    return [units[number] for number in sorted(taken, key=lambda number: (costs[number], number))]


def digest(one: SweepRun) -> str:
    """What the run is, by which its row is known: its recipe and its trunk."""
    return hashlib.sha256(f"{one.trunk}\n{to_json(one.stage)}".encode()).hexdigest()[:16]


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


@dataclass(frozen=True)
class _Worker:
    """Brings single runs to their row."""

    sweep: Sweep
    folder: Path
    table: SweepTable
    cache: Path | str
    verbose: bool
    say: Callable[[str], None]

    def finish(self, one: SweepRun) -> Result | None:
        """Trains the run, unless the table has it, and appends its row; None where there is nothing to train."""
        if one.name in self.table.rows():
            return None
        size, place = size_of(one), f"{self.sweep.runs.index(one) + 1}/{len(self.sweep.runs)}"
        self.say(f"{place} {one.name}: {size}")
        result, row = self._tried(one)
        if not row:
            return result
        fields = flat(plain(one.stage))
        self.table.append(
            {"name": one.name, "sweep": self.sweep.name, "recipe": digest(one), **row}
            | {"trunk": one.trunk, "budget": one.budget, **dataclasses.asdict(size)}
            | {name: _cell(fields.get(name)) for name in varying(self.sweep)}
        )
        self.say(f"  {_said(row)}")
        return result

    def _tried(self, one: SweepRun) -> tuple[Result | None, Row]:
        """The run's result and what its row says of how it ended, at the second try where the first one fails.

        A run that a signal stops has no row yet.
        """
        trunk = self.table.rows().get(one.trunk, {"status": DONE})
        if trunk["status"] != DONE:
            return None, {"status": FAILED, "error": f"its trunk {one.trunk} {trunk['status']}"}
        own = self.folder / RUNS / one.name
        aside = own.with_name(f"{one.name}.failed")
        while True:
            result, row = self._try(one, own)
            if row.get("status", DONE) == DONE or aside.exists():
                return result, row
            self.say(f"  {_said(row)}; it is tried once more")
            own.rename(aside)

    def _try(self, one: SweepRun, own: Path) -> tuple[Result | None, Row]:
        own.mkdir(exist_ok=True)
        try:
            result = self._run(one, own)
        except DivergedError as error:
            return None, {"status": DIVERGED, "error": text_of(error)}
        except UserError as error:
            raise UserError(f"{one.name}: {error}") from error
        except Exception as error:  # of this run, such as too little memory: the others go on
            write_whole(own / ERROR_FILE, traceback.format_exc())
            return None, {"status": FAILED, "error": f"{type(error).__name__}: {text_of(error)}"[:1000]}
        return result, {} if result.signal is not None else _ended(result, resolve(one.stage).model)

    def _run(self, one: SweepRun, own: Path) -> Result:
        if one.trunk and not checkpoints_in(own):
            self._branch_off(one, own)
        return run(one.stage, own, quiet=not self.verbose, cache=self.cache)

    def _branch_off(self, one: SweepRun, own: Path) -> None:
        """Copies the trunk's checkpoint of the step where this run's cooldown begins, whole or not at all."""
        trunk = self.folder / RUNS / one.trunk
        found = [checkpoint for checkpoint in checkpoints_in(trunk) if checkpoint.step == one.cooldown_step]
        require(bool(found), "trunk", one.trunk, f"its checkpoint of step {one.cooldown_step} in {trunk}", "rerun it")
        target = own / found[0].path.relative_to(trunk)
        partial = target.with_name(f"{target.name}.partial")
        with clear_disk_errors(own):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(found[0].path, partial)
            partial.rename(target)


def _ended(result: Result, model: ModelSettings) -> Row:
    """What the summary of a finished run gives its row. A loss above that of a uniform guess has diverged."""
    summary = result.summary
    loss, guess = summary["validation_loss"], math.log(model.vocab_size or 0)
    good = loss <= guess  # not where it is NaN
    fault = {} if good else {"error": f"its validation loss is {loss:.4g}, above the {guess:.4g} of a uniform guess"}
    names = ("bits_per_byte", "epochs", "wall_seconds", "tokens_per_second", "device_kind", "devices")
    return {
        "status": DONE if good else DIVERGED,
        "loss": loss,
        "training_loss": summary["loss"],
        **{name: summary.get(name) for name in names},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **fault,
    }


def _cell(value: Any) -> Any:
    """A field's value as a cell of a table: numbers and strings stay, others are written out."""
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def _said(row: Row) -> str:
    if row["status"] != DONE:
        return f"{row['status']}: {row['error']}"
    bits = "" if row["bits_per_byte"] is None else f", {row['bits_per_byte']:.4f} bits per byte"
    return f"loss {row['loss']:.4f}{bits}, {row['wall_seconds']:.1f} s"
