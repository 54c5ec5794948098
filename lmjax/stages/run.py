"""Runs a recipe in a workdir, from wherever it stands: fresh, interrupted or done."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from lmjax.errors import clear_disk_errors
from lmjax.model.count import count
from lmjax.parallel import multihost
from lmjax.parallel.platform import skip_absent_tpu
from lmjax.recipe import Recipe
from lmjax.report.report import write_report
from lmjax.stages import workdir as place
from lmjax.stages.pretrain import pretrain
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import read_metrics
from lmjax.training.stop import Stopped, StopRequest


@dataclass(frozen=True)
class Result:
    """How a run ended. `signal` is the number of the one that stopped it, or None when the recipe is done."""

    workdir: Path
    signal: int | None
    summary: dict[str, Any]

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal


def run(recipe: Recipe, workdir: Path | str | None = None, *, force: bool = False, quiet: bool = False) -> Result:
    """Trains what the recipe says, in `workdir` (default: runs/NAME); the same call resumes, or says that it is done.

    `force` goes on although the workdir's recipe is another one. SIGINT and SIGTERM save and return. Raises UserError
    for mistakes in the recipe or its data, and when the disk is full.
    """
    folder = Path(workdir) if workdir is not None else Path("runs") / recipe.name
    skip_absent_tpu()
    multihost.join()
    keep_compiled_programs()
    display = ProgressDisplay(silent=quiet or not multihost.is_first())
    agree = multihost.agreed_to_stop if jax.process_count() > 1 else None
    with StopRequest(agree) as stop, place.locked(folder), clear_disk_errors(folder):
        place.claim(folder, recipe, force)
        multihost.barrier("claimed")
        try:
            return _finish(recipe, folder, stop, display)
        except Stopped:
            display.say("stopped; the same command goes on")
            return Result(folder, stop.signal, {})


def _finish(recipe: Recipe, folder: Path, stop: StopRequest, display: ProgressDisplay) -> Result:
    summary = place.read_json(folder / place.SUMMARY_FILE)
    if summary and summary["steps"] == recipe.train.steps:
        display.say(f"{folder} is done.")
    else:
        if multihost.is_first():
            place.write_whole(folder / place.ENVIRONMENT_FILE, json.dumps(place.environment(), indent=2))
        state, model = pretrain(recipe, folder, stop, display)
        done = int(jax.device_get(state.step))
        if done < recipe.train.steps:
            saved = "stopped and saved at" if done else "stopped at"
            display.say(f"{saved} step {done} of {recipe.train.steps}; the same command goes on")
            return Result(folder, stop.signal, {})
        counted = dataclasses.asdict(count(model.settings, recipe.data.sequence_length))
        summary = {"steps": done, **counted, **_last_numbers(folder)}
        if multihost.is_first():
            place.write_whole(folder / place.SUMMARY_FILE, json.dumps(summary, indent=2))
    if multihost.is_first():
        _say_result(display, summary, write_report(folder))
    multihost.barrier("finished")
    return Result(folder, None, summary)


def _last_numbers(folder: Path) -> dict[str, Any]:
    """The last loss, validation numbers and sample of the record."""
    wanted = (
        "loss",
        "validation_loss",
        "validation_perplexity",
        "bits_per_byte",
        "tokens_per_second",
        "prompt",
        "sample",
    )
    merged = {name: value for line in read_metrics(folder) for name, value in line.items()}
    return {name: merged[name] for name in wanted if name in merged}


def _say_result(display: ProgressDisplay, summary: dict[str, Any], report: Path) -> None:
    parts = [f"loss {summary['loss']:.4f}"] if "loss" in summary else []
    if "validation_loss" in summary:
        parts.append(f"validation loss {summary['validation_loss']:.4f}")
        parts.append(f"{summary['bits_per_byte']:.3f} bits per byte")
    display.say(f"final: {', '.join(parts)}")
    if "sample" in summary:
        display.say(f"sample: {summary['prompt']}{summary['sample']}")
    display.say(f"report: {report}")


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, unless the user has placed it elsewhere or turned it off."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "lmjax" / "compiled"))
        compilation_cache.reset_cache()  # JAX decides at its first program, which a notebook may have run already
