"""Runs a recipe in a workdir, from wherever it stands: fresh, interrupted or done."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from lmjax.checkpoints.remote_workdir import share, staged
from lmjax.data.token_cache import TokenCache
from lmjax.errors import clear_disk_errors, is_bucket, require
from lmjax.fields import require_local
from lmjax.files import cache_folder, user_path, write_whole
from lmjax.model.flops import count
from lmjax.parallel import processes
from lmjax.parallel.start_jax import prepare_jax, unused_accelerator
from lmjax.plan.candidates import own_candidate
from lmjax.plan.layout import laid_out
from lmjax.plan.slices import slice_of
from lmjax.report.page import write_report
from lmjax.report.records import read_summary
from lmjax.run_files import ENVIRONMENT_FILE, METRICS_FILE, PIPELINE_FILE, SUMMARY_FILE, WALL_SECONDS
from lmjax.runs import workdir as place
from lmjax.runs.agreement import facts_of
from lmjax.runs.measures import Measuring, measured_paths
from lmjax.runs.pipeline import is_done, plan_stages, run_stages
from lmjax.runs.preflight import check_ahead, check_missing
from lmjax.runs.provenance import claim_provenance
from lmjax.settings import Pipeline, Pretrain, Stage
from lmjax.settings.recipe_values import recipe as named
from lmjax.settings.recipe_values import with_values
from lmjax.settings.stage import naming
from lmjax.stages.first_lines import place_lines
from lmjax.stages.registry import kind_of
from lmjax.stages.train_stage import Outcome
from lmjax.tasks.resolved import resolve
from lmjax.tasks.task import Session
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import read_metrics
from lmjax.training.stop import Interrupted, Stopped, StopRequest


@dataclass(frozen=True)
class Result:
    """How a run ended. `signal` is the number of the one that stopped it, or None when the recipe is done."""

    workdir: Path
    signal: int | None
    summary: dict[str, Any]

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal


def run(
    recipe: Stage | Pipeline | Path | str,
    workdir: Path | str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
    quiet: bool = False,
    only: str | None = None,
    start_from: str | None = None,
    executable: Path | None = None,
    cache: Path | str | None = None,
    report: bool = True,
) -> Result:
    """Trains what a recipe says; the same call resumes where it stopped, or says that it is done.

    Args:
      recipe: a stage or a pipeline, or the name of one, as `lmjax.recipe` takes it.
      workdir: where everything is written; None: runs/NAME.
      overrides: other values of the recipe's fields, such as {"train.steps": 100}.
      force: resume although the recipe changes what the rest of the run computes.
      quiet: print nothing.
      only: of a pipeline, run this stage alone.
      start_from: of a pipeline, run this stage and all behind it anew.
      executable: the file of a pretraining step that `lmjax plan` compiled.
      cache: the folder where runs share their token shards; None: `cache` beside the workdir, or, where that cannot be
        written, the workdir. One that is named and cannot be written is an error.
      report: write report.html; without, a stage has none until `lmjax report` writes it.

    Returns:
      The `Result`: the workdir, which `lmjax.load` reads, the summary, and the signal that stopped the run, if any.
      SIGINT and SIGTERM save and return.

    Raises:
      UserError: a mistake in the recipe or its data, or a full disk.
    """
    written = named(recipe) if isinstance(recipe, Path | str) else recipe
    with processes.telling_others():
        return _run(
            with_values(written, overrides or {}), workdir, force, quiet, only, start_from, executable, cache, report
        )


def _run(
    recipe: Stage | Pipeline,
    workdir: Path | str | None,
    force: bool,
    quiet: bool,
    only: str | None,
    start_from: str | None,
    executable: Path | None,
    cache: Path | str | None,
    report: bool,
) -> Result:
    require_local("workdir", workdir, bucket=True)
    require_local("cache", cache)
    require_local("executable", executable)
    alone = isinstance(recipe, Stage)
    require(not (alone and (only or start_from)), "--only, --from", only or start_from, "a pipeline", "leave it out")
    serves = executable is None or (isinstance(recipe, Stage) and kind_of(recipe).loads_executable)
    require(serves, "--executable", executable, "a recipe that pretrains", "leave it out: the other stages compile")
    asked, folder = place.asked_and_here(workdir, recipe.name)
    tokens = TokenCache(_cache_beside(asked, folder)) if cache is None else TokenCache(user_path(cache), chosen=True)
    prepare_jax()
    options = {"--force": force, "--only": only, "--from": start_from, "--executable": executable}
    options["--cache"] = None if cache is None else str(cache)
    processes.join(lambda: facts_of(recipe, options, measured_paths(recipe)))
    display = ProgressDisplay(silent=quiet or not processes.is_first())
    unused = unused_accelerator()
    if unused is not None:
        display.say(unused)
    agree = processes.agreed_to_stop if jax.process_count() > 1 else None
    with (
        processes.naming_lost_peers(),
        StopRequest(agree) as stop,
        place.locked(folder),
        clear_disk_errors(folder),
        staged(asked, folder, display.say),
    ):
        try:
            if isinstance(recipe, Pipeline):
                result = _pipeline(recipe, folder, stop, display, tokens, only, start_from, force)
            else:
                with clear_disk_errors(asked):
                    fresh = place.begun(folder) is None
                if fresh:
                    check_missing((recipe,), [recipe.name], [folder])
                result = _stage(recipe, folder, stop, display, tokens, force, executable, report)
            return dataclasses.replace(result, workdir=asked)
        except (Stopped, Interrupted):
            display.say("stopped; the same command resumes")
            return Result(asked, stop.signal, {})


def _cache_beside(asked: Path, folder: Path) -> Path:
    """The folder `cache` beside a workdir; for one on a bucket, in the user's cache folder."""
    if is_bucket(asked):
        return cache_folder() / "cache"
    return (folder if folder.name.strip(".") else folder.resolve()).parent / "cache"


def _pipeline(
    pipeline: Pipeline,
    folder: Path,
    stop: StopRequest,
    display: ProgressDisplay,
    cache: TokenCache,
    only: str | None,
    first: str | None,
    force: bool,
) -> Result:
    results: dict[str, Result] = {}

    def run_one(stage: Stage, own: Path) -> bool:
        own.mkdir(parents=True, exist_ok=True)
        with naming(stage):
            results[stage.name] = _stage(stage, own, stop, display, cache, force)
        return results[stage.name].signal is None

    plans = plan_stages(pipeline, folder, only, first, force)
    measuring = Measuring(pipeline, folder, stop, display.say)
    if any(plan.action != "skip" for plan in plans):
        measuring.check()
    to_run = [plan.stage.name for plan in plans if plan.action != "skip"]
    check_ahead(pipeline.stages, to_run, [folder / stage.name for stage in pipeline.stages])
    if processes.is_first():
        write_whole(folder / PIPELINE_FILE, json.dumps([stage.name for stage in pipeline.stages]))
    measuring.start()
    run_stages(plans, folder, run_one, display.say, measuring.after)
    if processes.is_first():
        _say_pipeline(pipeline, folder, display)
    summaries = {name: result.summary for name, result in results.items()}
    return Result(folder, stop.signal, summaries)


def _stage(
    recipe: Stage,
    folder: Path,
    stop: StopRequest,
    display: ProgressDisplay,
    cache: TokenCache,
    force: bool,
    executable: Path | None = None,
    report: bool = True,
) -> Result:
    recipe, changes = place.claim(folder, recipe, force)
    claim_provenance(recipe, folder, force)
    for change in changes:
        display.say(f"changed: {change}")
    processes.barrier("claimed")
    summary = read_summary(folder, recipe)
    if is_done(recipe, summary):
        display.say(f"{folder} is done.")
    else:
        for line in (*place_lines(folder), *recipe.reasons):
            display.say(line)
        seconds = _stopwatch(folder, display)
        summary = _finished(recipe, folder, Session(stop, display, executable, cache, seconds))
        if not summary:
            return Result(folder, stop.signal, {})
        if processes.is_first():
            write_whole(folder / SUMMARY_FILE, json.dumps(summary, indent=2))
    if processes.is_first():
        _say_result(display, summary, write_report(folder) if report else None)
    processes.barrier("finished")
    share(folder)
    return Result(folder, None, summary)


def _finished(recipe: Stage, folder: Path, session: Session) -> dict[str, Any]:
    """The summary of the stage, run from wherever it stands; empty where a stop interrupts it."""
    kind, resolved = kind_of(recipe), resolve(recipe, folder=folder)
    where = slice_of(jax.devices()) if kind.chooses_layout else None
    if where is not None:
        resolved = resolved.laid_out(laid_out(resolved.of(Pretrain), where))
        own = own_candidate(resolved.of(Pretrain), where)
        session.display.say(f"on {where.name}: {own.text if own else resolved.of(Pretrain).compute.remat}")
    if kind.produce is not None:
        return kind.produce(resolved, session)
    assert kind.train is not None
    if processes.is_first():
        write_whole(folder / ENVIRONMENT_FILE, json.dumps(place.environment(), indent=2))
    outcome = kind.train(resolved, session)
    done = int(jax.device_get(outcome.state.step))
    if done < outcome.steps or session.stop.left_off:
        saved = "stopped and saved at" if done else "stopped at"
        session.display.say(f"{saved} step {done} of {outcome.steps}; the same command resumes")
        return {}
    share(folder)
    return {"steps": done, **_scale(outcome), WALL_SECONDS: session.seconds(), **_last_numbers(folder)}


def _scale(outcome: Outcome) -> dict[str, Any]:
    """What a scaling fit needs beside the losses: parameters, tokens, FLOPs and devices."""
    counted = count(outcome.model, outcome.sequence_length)
    return {
        **dataclasses.asdict(counted),
        "tokens": outcome.tokens,
        "training_flops": float(outcome.flops_per_token * outcome.tokens),
        "training_flops_6n": 6.0 * counted.parameters * outcome.tokens,
        "training_flops_6n_non_embedding": 6.0 * counted.non_embedding_parameters * outcome.tokens,
        "device_kind": jax.devices()[0].device_kind,
        "devices": outcome.devices,
    }


def _stopwatch(folder: Path, display: ProgressDisplay) -> Callable[[], float]:
    """A function that gives the seconds of all runs of the workdir up to now, as far as its record holds them.

    What a killed run did after the last line of its record is not in it.
    """
    started = time.monotonic()
    lines = read_metrics(folder) if (folder / METRICS_FILE).exists() else []
    known = [line[WALL_SECONDS] for line in lines if WALL_SECONDS in line]
    if lines and not known:
        display.say(
            f"{folder / METRICS_FILE}: does not tell how long earlier runs took; {WALL_SECONDS} leaves them out"
        )
    earlier = max(known, default=0.0)
    return lambda: round(earlier + time.monotonic() - started, 3)


def _say_pipeline(pipeline: Pipeline, folder: Path, display: ProgressDisplay) -> None:
    """What the stages say of their results; what is left to run; where the report is."""
    for stage in pipeline.stages:
        for line in kind_of(stage).describe_finished(folder / stage.name, stage):
            display.say(line)
    left = [stage.name for stage in pipeline.stages if not (folder / stage.name / SUMMARY_FILE).exists()]
    if left:
        display.say(f"still to run: {', '.join(left)}")
    display.say(f"report: {write_report(folder, stages=False)}")


def _last_numbers(folder: Path) -> dict[str, Any]:
    """The last loss, validation numbers and sample of the record."""
    wanted = (
        "loss",
        "validation_loss",
        "validation_perplexity",
        "bits_per_byte",
        "validation_accuracy",
        "reward",
        "kl",
        "validation_reward",
        "validation_kl",
        "validation_gold",
        "epochs",
        "longest_skip",
        "tokens_per_second",
        "prompt",
        "sample",
    )
    merged = {name: value for line in read_metrics(folder) for name, value in line.items()}
    of_tasks = _own_to_tasks(merged, wanted)
    of_sources = [name for name in merged if "/" in name and name.partition("/")[0] in wanted]
    return {name: merged[name] for name in (*wanted, *of_tasks, *of_sources) if name in merged}


def _own_to_tasks(numbers: Iterable[str], general: Iterable[str]) -> list[str]:
    """The validation numbers of all data together that are not among the general ones."""
    return [name for name in numbers if name.startswith("validation_") and name not in general and "/" not in name]


def _say_result(display: ProgressDisplay, summary: dict[str, Any], written: Path | None) -> None:
    parts = [f"loss {summary['loss']:.4f}"] if "loss" in summary else []
    if "validation_loss" in summary:
        parts.append(f"validation loss {summary['validation_loss']:.4f}")
    names = {
        "bits_per_byte": "bits per byte",
        "validation_accuracy": "accuracy",
        "reward": "reward",
        "kl": "nats of KL",
        "validation_gold": "gold reward",
    }
    parts += [f"{summary[name]:.3f} {words}" for name, words in names.items() if name in summary]
    general = ("validation_loss", "validation_perplexity", "validation_reward", "validation_kl", *names)
    for name in _own_to_tasks(summary, general):
        parts.append(f"{summary[name]:.3f} {name.removeprefix('validation_').replace('_', ' ')}")
    if parts:
        display.say(f"final: {', '.join(parts)}")
    by_source = {"validation_loss": "validation loss", "validation_reward": "reward"}
    for name, value in summary.items():
        quantity, _, source = name.partition("/")
        if source and quantity in by_source:
            display.say(f"{by_source[quantity]} of {source}: {value:.4f}")
    if "sample" in summary:
        display.say(f"sample: {summary.get('prompt', '')}{summary['sample']}")
    if written is not None:
        display.say(f"report: {written}")
