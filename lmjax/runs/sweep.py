"""Runs a sweep: every run that its table lacks, one after the other, each in a folder of its own.

The workdir holds `table.jsonl` (lmjax/scaling/sweep_table.py), the runs' folders in `runs/`, the tokens that they share
in `cache/`, and in `claims/` a lock for each run that is being worked on. Several processes may work on one workdir:
a lock ends with its process.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmjax.checkpoints.checkpoint import checkpoints_in
from lmjax.errors import UserError, clear_disk_errors, require, text_of
from lmjax.fields import require_local
from lmjax.files import user_path, write_whole
from lmjax.parallel import processes
from lmjax.parallel.start_jax import keep_quick_programs, prepare_jax
from lmjax.run_files import RUNS, TABLE_FILE
from lmjax.runs.run import Result, run
from lmjax.runs.sweep_rows import cell, check_table, ended_row, of_member, said, varying
from lmjax.runs.sweep_size import size_of
from lmjax.runs.sweep_units import digest, digest_of, share_of, shared
from lmjax.runs.workdir import held
from lmjax.scaling.sweep_table import DIVERGED, DONE, FAILED, Row, SweepTable
from lmjax.settings import Member, PretrainTogether, Sweep, SweepRun
from lmjax.settings.recipe_files import flat, plain
from lmjax.settings.stage import naming
from lmjax.tasks.next_token_together import LONGEST_SKIP
from lmjax.tasks.resolved import resolve
from lmjax.training.loop import DivergedError

CACHE, CLAIMS = "cache", "claims"
ERROR_FILE = "error.txt"  # in the folder of a run that failed: the traceback


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
        return exit_code(self.rows) if self.signal is None else 128 + self.signal


def exit_code(rows: Mapping[str, Row]) -> int:
    """1 where a row says that its run failed or diverged, else 0."""
    return int(any(row["status"] != DONE for row in rows.values()))


def run_sweep(
    sweep: Sweep,
    workdir: Path | str | None = None,
    *,
    shard: tuple[int, int] = (1, 1),
    cache: Path | str | None = None,
    together: int = 1,
    verbose: bool = False,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> SweepResult:
    """Trains what the table in `workdir` (default: runs/NAME) lacks; the same call continues.

    `shard` (i, n) takes the i-th of n shares, counted from 1. A run that fails or diverges is tried once more, and is
    then a row that says so. `cache` is where tokens are kept, by default in the workdir. Up to `together` runs that
    differ in seed and peak rate alone are trained by one program; each has its row, and none its checkpoints. `again`
    trains those anew whose row says that they failed or diverged. Raises UserError for mistakes in the sweep or its
    data, a table of another sweep and a full disk; the rows so far stay.
    """
    require_local("workdir", workdir)
    many, fix = processes.launched(), "start them apart, such as in an array of jobs, each with its --shard"
    require(many == 1, "the processes of a sweep", many, "1: its runs are each of one process", fix)
    prepare_jax()
    keep_quick_programs()
    folder = user_path(workdir) if workdir is not None else Path("runs") / sweep.name
    with clear_disk_errors(folder):
        for part in (RUNS, CLAIMS):
            (folder / part).mkdir(parents=True, exist_ok=True)
    table = SweepTable(folder / TABLE_FILE, say)
    rows = table.rows()
    check_table(sweep, table.path, rows)
    anew = {name: row for name, row in rows.items() if again and row["status"] != DONE}
    worker = _Worker(sweep, folder, table, cache or folder / CACHE, verbose, say, anew)
    for own in sweep.stages:
        with naming(own):
            resolve(own, folder=folder).check_lengths()
    elsewhere: list[str] = []
    for unit in share_of(sweep, shard, together):
        with held(folder / CLAIMS / f"{unit[0].name}.lock") as mine:
            if not mine:
                elsewhere += [one.name for one in unit if not worker.has(one)]
                continue
            for train in worker.parts(unit):
                signal = train()
                if signal is not None:
                    return SweepResult(table.path, table.rows(), (), signal)
    rows = table.rows()
    elsewhere = [name for name in elsewhere if rows.get(name) in (None, anew.get(name))]
    if elsewhere:
        say(f"{len(elsewhere)} runs are being worked on by other processes: {', '.join(elsewhere)}")
    return SweepResult(table.path, rows, tuple(elsewhere))


@dataclass(frozen=True)
class _Worker:
    """Brings single runs to their row."""

    sweep: Sweep
    folder: Path
    table: SweepTable
    cache: Path | str
    verbose: bool
    say: Callable[[str], None]
    anew: Mapping[str, Row]  # rows whose runs are trained anew

    def has(self, one: SweepRun) -> bool:
        """Whether the table has a row of the run that counts."""
        row = self.table.rows().get(one.name)
        return row is not None and row != self.anew.get(one.name)

    def parts(self, unit: Sequence[SweepRun]) -> Iterator[Callable[[], int | None]]:
        """What brings the unit's runs to their rows, one after the other; each gives the signal that stopped it."""
        if len(unit) > 1 and not unit[1].trunk:
            yield functools.partial(self._finish_together, unit)
        for one in unit:
            yield functools.partial(self._finish, one)

    def _finish(self, one: SweepRun) -> int | None:
        """Trains the run, unless the table has it, and appends its row."""
        if self.has(one):
            return None
        self.say(f"{self.sweep.runs.index(one) + 1}/{len(self.sweep.runs)} {one.name}: {size_of(one)}")
        result, row = self._tried(one)
        if not row:
            return None if result is None else result.signal
        self._append(one, row)
        return None

    def _append(self, one: SweepRun, row: Row) -> None:
        fields, now = flat(plain(one.stage)), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.table.append(
            {"name": one.name, "sweep": self.sweep.name, "recipe": digest(one), **row, "finished": now}
            | {"trunk": one.trunk, "budget": one.budget, **dataclasses.asdict(size_of(one))}
            | {name: cell(fields.get(name)) for name in varying(self.sweep)}
        )
        self.say(f"  {said(row)}")

    def _finish_together(self, unit: Sequence[SweepRun]) -> int | None:
        """Trains the runs in one program, unless the table has one; those that fail or diverge are left to be alone."""
        own = self.folder / RUNS / f"together-{digest_of(unit)}"
        left = [one for one in unit if not self.has(one)]
        if not left or (len(left) < len(unit) and not own.exists()):
            return None
        self.say(f"{len(unit)} runs together, each {size_of(unit[0])}: {', '.join(one.name for one in unit)}")
        stage = dataclasses.replace(shared(unit[0]), name=own.name)
        members = tuple(Member(one.name, one.stage.train.seed, one.stage.optimizer.learning_rate) for one in unit)
        fields = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
        try:
            result = run(
                PretrainTogether(**fields, members=members), own, quiet=not self.verbose, cache=self.cache, report=False
            )
        except DivergedError as error:
            self.say(f"  all diverged: {error}; each is tried alone")
            return None
        except UserError:
            raise
        except Exception as error:  # such as too little memory
            self.say(f"  failed: {type(error).__name__}: {text_of(error)[:200]}; each is tried alone")
            return None
        if result.signal is not None:
            return result.signal
        for one in left:
            row = ended_row(of_member(result.summary, one.name), resolve(one.stage).model)
            skipped = result.summary[f"{LONGEST_SKIP}/{one.name}"]
            if row["status"] == DONE and skipped < one.stage.train.abort_after_skipped:
                self._append(one, row | {"wall_seconds": row["wall_seconds"] / len(unit), "together": len(unit)})
        return None

    def _tried(self, one: SweepRun) -> tuple[Result | None, Row]:
        """The run's result and what its row says of how it ended, at the second try where the first one fails.

        A run that a signal stops has no row yet.
        """
        trunk = self.table.rows().get(one.trunk, {"status": DONE})
        if trunk["status"] != DONE:
            return None, {"status": FAILED, "error": f"its trunk {one.trunk} {trunk['status']}"}
        own = self.folder / RUNS / one.name
        aside = own.with_name(f"{one.name}.failed")
        for folder in (own, aside) if one.name in self.anew else ():
            shutil.rmtree(folder, ignore_errors=True)
        while True:
            result, row = self._try(one, own)
            if row.get("status", DONE) == DONE or aside.exists():
                return result, row
            self.say(f"  {said(row)}; it is tried once more")
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
        return result, {} if result.signal is not None else ended_row(result.summary, resolve(one.stage).model)

    def _run(self, one: SweepRun, own: Path) -> Result:
        if one.trunk and not checkpoints_in(own):
            self._branch_off(one, own)
        return run(one.stage, own, quiet=not self.verbose, cache=self.cache, report=False)

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
