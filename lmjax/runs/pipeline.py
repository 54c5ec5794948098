"""Runs the stages of a pipeline: finished ones are skipped, an interrupted one resumes, a changed one runs again with
everything that uses it.

Each stage has a folder of its own in the pipeline's workdir, as if it had been run alone. What a run replaces is kept
beside it, once, as STAGE.old, or STAGE.old.old where another stage has that name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.checkpoints.remote_workdir import move
from lmjax.errors import UserError, nearest, require
from lmjax.files import read_json_if_there
from lmjax.parallel.processes import barrier, is_first
from lmjax.run_files import SUMMARY_FILE
from lmjax.runs.provenance import changes
from lmjax.runs.recipe_changes import adopted
from lmjax.runs.workdir import begun
from lmjax.settings import Pipeline, Stage
from lmjax.settings.recipe_files import difference


@dataclass(frozen=True)
class Plan:
    """What is to be done with a stage: "skip" it, "run" or resume it, or run it "anew"; and why."""

    stage: Stage
    action: str
    reason: str


def plan_stages(
    pipeline: Pipeline, folder: Path, only: str | None = None, start_from: str | None = None, force: bool = False
) -> list[Plan]:
    """What to do with each stage. Raises UserError for an unknown stage, or where `only` lacks what it uses.

    `only` runs a single stage; `start_from` runs that one and all behind it anew. A stage whose recipe changed in what
    the rest of it computes runs anew, or, with `force`, resumes where its weights allow it.
    """
    names = [stage.name for stage in pipeline.stages]
    for option, name in (("--only", only), ("--from", start_from)):
        if name is not None and name not in names:
            raise UserError(f"{option} {name}: no such stage in {pipeline.name!r}; {nearest(name, names)}")
    plans: list[Plan] = []
    renewed: dict[str, str] = {}  # stages that will differ from what is on disk
    behind = False
    for stage in pipeline.stages:
        behind = behind or stage.name == start_from
        plan = _plan(stage, folder / stage.name, renewed, behind, force)
        if only is not None and stage.name != only:
            plan = Plan(stage, "skip", f"left out, as --only {only} says")
        elif only is not None:
            _require_sources(stage, folder, names)
        if plan.action != "skip":
            renewed[stage.name] = plan.reason
        plans.append(plan)
    return plans


def run_stages(
    plans: Sequence[Plan],
    folder: Path,
    run_one: Callable[[Stage, Path], bool],
    say: Callable[[str], None],
    after: Callable[[Stage, Path], None] = lambda stage, own: None,
) -> bool:
    """Carries the plans out; `run_one` runs a stage in its folder and says whether it was finished. False: stopped.

    `after` is called behind each stage, also behind one that is skipped.

    What is to run anew is set aside before anything runs, so that an interrupted run never takes it for finished.
    """
    barrier("planned")
    names = {plan.stage.name for plan in plans}
    for plan in plans:
        own = folder / plan.stage.name
        if plan.action == "anew" and own.exists() and is_first():
            old = own.with_name(own.name + ".old")
            while old.name in names:
                old = old.with_name(old.name + ".old")
            move(own, old)
    barrier("set aside")
    for plan in plans:
        say(f"{plan.stage.name}: {plan.reason}")
        own_folder = folder / plan.stage.name
        if plan.action != "skip" and not run_one(plan.stage, own_folder):
            return False
        after(plan.stage, own_folder)
    return True


def _plan(stage: Stage, own: Path, renewed: dict[str, str], behind: bool, force: bool) -> Plan:
    before = begun(own)
    if before is None:
        return Plan(stage, "run", "to be run")
    if behind:
        return Plan(stage, "anew", "runs anew, as --from says")
    try:
        adopted(before.recipe, stage, before.step, force, own)
    except UserError:
        changed = difference(before.recipe, stage)
        return Plan(stage, "anew", "runs anew, because its recipe changed: " + "; ".join(changed))
    upstream = [source for source in stage.sources().values() if source in renewed]
    if upstream:
        return Plan(stage, "anew", f"runs anew, because it uses {' and '.join(upstream)}")
    other = changes(stage, own)
    if other:
        return Plan(stage, "anew", f"runs anew, because {' and '.join(other)}")
    done = is_done(stage, read_json_if_there(own / SUMMARY_FILE, dict[str, Any]))
    return Plan(stage, "skip", "is done") if done else Plan(stage, "run", "is resumed")


def is_done(stage: Stage, summary: dict[str, Any] | None) -> bool:
    """Whether this is the summary of all the steps that the stage has."""
    return bool(summary) and (stage.steps is None or (summary or {}).get("steps") == stage.steps)


def _require_sources(stage: Stage, folder: Path, names: Sequence[str]) -> None:
    for field, source in stage.sources().items():
        there = source not in names or (folder / source / SUMMARY_FILE).exists()
        require(there, f"{stage.name}.{field}", source, "a finished stage", f"run {source!r} first")
