"""Runs the stages of a pipeline: finished ones are skipped, an interrupted one resumes, a changed one runs again with
everything that goes on from it.

Each stage has a folder of its own in the pipeline's workdir, as if it had been run alone. What a run replaces is kept
beside it, once, as STAGE.old.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmjax.errors import UserError, nearest, require
from lmjax.recipe import Pipeline, Stage, difference, read_recipe, sources_of
from lmjax.stages.origins import changes
from lmjax.stages.workdir import RECIPE_FILE, SUMMARY_FILE


@dataclass(frozen=True)
class Plan:
    """What is to be done with a stage: "skip" it, "run" or resume it, or run it "anew"; and why."""

    stage: Stage
    action: str
    reason: str


def plan_stages(pipeline: Pipeline, folder: Path, only: str | None = None, start_from: str | None = None) -> list[Plan]:
    """What to do with each stage. Raises UserError for an unknown stage, or where `only` lacks what it goes on from.

    `only` runs a single stage; `start_from` runs that one and all behind it anew.
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
        plan = _plan(stage, folder / stage.name, renewed, behind)
        if only is not None and stage.name != only:
            plan = Plan(stage, "skip", f"left out, as --only {only} says")
        elif only is not None:
            _require_sources(stage, folder, names)
        if plan.action != "skip":
            renewed[stage.name] = plan.reason
        plans.append(plan)
    return plans


def run_stages(
    plans: Sequence[Plan], folder: Path, run_one: Callable[[Stage, Path], bool], say: Callable[[str], None]
) -> bool:
    """Carries the plans out; `run_one` runs a stage in its folder and says whether it was finished. False: stopped.

    What is to run anew is set aside before anything runs, so that an interrupted run never takes it for finished.
    """
    for plan in plans:
        own = folder / plan.stage.name
        if plan.action == "anew" and own.exists():
            old = own.with_name(own.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            own.replace(old)
    for plan in plans:
        say(f"{plan.stage.name}: {plan.reason}")
        if plan.action != "skip" and not run_one(plan.stage, folder / plan.stage.name):
            return False
    return True


def _plan(stage: Stage, own: Path, renewed: dict[str, str], behind: bool) -> Plan:
    path = own / RECIPE_FILE
    if not path.exists():
        return Plan(stage, "run", "to be run")
    if behind:
        return Plan(stage, "anew", "runs anew, as --from says")
    changed = difference(read_recipe(path), stage)
    if changed:
        return Plan(stage, "anew", "runs anew, because its recipe changed: " + "; ".join(changed))
    upstream = [source for source in sources_of(stage).values() if source in renewed]
    if upstream:
        return Plan(stage, "anew", f"runs anew, because it goes on from {' and '.join(upstream)}")
    other = changes(stage, own)
    if other:
        return Plan(stage, "anew", f"runs anew, because {' and '.join(other)}")
    done = (own / SUMMARY_FILE).exists()
    return Plan(stage, "skip", "is done") if done else Plan(stage, "run", "is resumed")


def _require_sources(stage: Stage, folder: Path, names: Sequence[str]) -> None:
    for field, source in sources_of(stage).items():
        there = source not in names or (folder / source / SUMMARY_FILE).exists()
        require(there, f"{stage.name}.{field}", source, "a finished stage", f"run {source!r} first")
