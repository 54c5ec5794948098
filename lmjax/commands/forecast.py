"""`lmjax forecast TABLE --flops C`: the run that a budget should buy, its loss, and what it takes of a slice."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from lmjax.commands.command import TABLE, add_command, path_of
from lmjax.commands.fit import add_selection, read_selected
from lmjax.errors import UserError, require

TABLE_RULE = "table"


def add(commands: Any) -> None:
    forecast = add_command(
        *(commands, "forecast", _forecast, "tell the best run of a budget, and its loss, from a table of runs"),
        "lmjax forecast runs/isoflop/table.jsonl --flops 1e15",
        "lmjax forecast runs/isoflop/table.jsonl --flops 1e20 --topology v5e-256 --write large.py",
    )
    forecast.add_argument("table", type=path_of, metavar="TABLE", help=TABLE)
    forecast.add_argument(
        "--flops", type=float, required=True, metavar="C", help="the budget, as the table counts FLOPs"
    )
    add_selection(forecast)
    text = "samples for intervals, 0 for none (default: 1000)"
    forecast.add_argument("--bootstrap", type=int, default=1000, metavar="N", help=text)
    forecast.add_argument("--seed", type=int, default=0, help="of the bootstrap samples (default: 0)")
    text = "a pretraining recipe that gives data, tokenizer and proportions (default: the largest run of the sweep)"
    forecast.add_argument("--base", metavar="RECIPE", help=text)
    text = "rate and batch: power laws of the table's best runs (default), GPT-3's table 2.1, or Porian et al.'s"
    forecast.add_argument("--rule", choices=(TABLE_RULE, "gpt3", "porian"), default=TABLE_RULE, help=text)
    text = "a slice such as v5e-256: the quickest layout, hours and chip-hours"
    forecast.add_argument("--topology", metavar="SLICE", help=text)
    text = "layouts that are compiled for it (default: 8)"
    forecast.add_argument("--limit", type=int, metavar="N", help=text)
    text = "write the run's recipe, which lmjax run takes"
    forecast.add_argument("--write", type=path_of, metavar="FILE.py", help=text)
    forecast.add_argument("--json", action="store_true", help="print one object")


def _forecast(options: argparse.Namespace, _: list[str]) -> int:
    _check(options)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from lmjax.scaling.bootstrap import FitOptions
    from lmjax.scaling.forecast import forecast

    table, _held_out = read_selected(options.table, options, options.where).split()
    found = forecast(table, options.flops, FitOptions(options.bootstrap, options.seed))
    designed = _design(found, options)
    if options.write is not None:
        from lmjax.settings.recipe_source import source_of

        assert designed is not None
        about = f"The best run of {found.flops:.4g} FLOPs, a {found.kind} of lmjax forecast {options.table}."
        options.write.write_text(source_of(designed.recipe, about), encoding="utf-8")
    if options.json:
        print(json.dumps(_to_json(found, designed), allow_nan=False))
    else:
        print("\n".join(_lines(found, designed)))
        if options.write is not None:
            print(f"recipe: {options.write}")
    return 0


def _check(options: argparse.Namespace) -> None:
    path = options.write
    if path is not None:
        require(path.suffix == ".py", "--write", str(path), "a file that ends in .py", "name one")
        require(not path.exists(), "--write", str(path), "a file that does not exist yet", "name another")
        require(path.parent.is_dir(), "--write", str(path), "a folder that exists", "make it first")
    require(options.limit is None or options.topology, "--limit", options.limit, "--topology with it", "leave it out")
    require(0 <= options.bootstrap <= 100_000, "--bootstrap", options.bootstrap, "0 to 100,000 samples", "use 1000")


def _design(found: Any, options: argparse.Namespace) -> Any:
    """The run's recipe, where a sweep or --base tells what it is made of."""
    from lmjax.plan.search import DEFAULT_LIMIT
    from lmjax.plan.search_display import watching
    from lmjax.runs.forecast import base_of, design, on_slice
    from lmjax.scaling import rules
    from lmjax.scaling.tuned import tuned

    rows = _sweep_rows(options.table)
    if options.base is None and not rows:
        for name in ("write", "topology"):
            require(not getattr(options, name), f"--{name}", str(getattr(options, name)), "--base with it", "name one")
        return None
    base = _base(options.base) if options.base is not None else base_of(rows, options.table)
    rule = tuned(list(rows.values())) if options.rule == TABLE_RULE else getattr(rules, options.rule)
    designed = design(found, base, rule)
    if options.topology is None:
        return designed
    limit = DEFAULT_LIMIT if options.limit is None else options.limit
    return on_slice(designed, options.topology, limit, watching, lambda line: print(line, file=sys.stderr, flush=True))


def _base(spec: str) -> Any:
    from lmjax.settings.recipe_files import load_recipe
    from lmjax.stages.registry import kind_of

    first = load_recipe(spec).stages[0]
    if not kind_of(first).prepares_text:
        raise UserError(f"--base {spec}: expected a recipe that pretrains, or a pipeline that begins so")
    return first


def _sweep_rows(path: Path) -> dict[str, Any]:
    """The rows of a sweep's own table; none of another table."""
    from lmjax.scaling.sweep_table import SweepTable

    if path.suffix != ".jsonl":
        return {}
    try:
        rows = SweepTable(path, print).rows()
    except UserError:  # it has no names of runs: another table, which is read already
        return {}
    return rows if all("recipe" in row for row in rows.values()) else {}


def _to_json(found: Any, designed: Any) -> dict[str, Any]:
    out = dataclasses.asdict(found) | {"kind": found.kind, "counted": found.counted}
    del out["law"]
    if found.measured is not None:
        out["measured"]["error"] = found.measured.error
    if designed is not None:
        stage = designed.recipe
        out["run"] = {
            "name": stage.name,
            "parameters": designed.counted.parameters,
            "tokens": designed.tokens,
            "loss": designed.loss,
            "interval": designed.interval,
            "layers": stage.model.layers,
            "width": stage.model.width,
            "batch_size": stage.data.batch_size,
            "learning_rate": stage.optimizer.learning_rate,
            "warmup": stage.optimizer.schedule.warmup,
            "steps": stage.train.steps,
            "reason": designed.reason,
            "slice": None if designed.slices is None else dataclasses.asdict(designed.slices),
        }
    return out


def _spread(ends: Any) -> str:
    return f" (95%: {ends[0]:.4f} to {ends[1]:.4f})" if ends else ""


def _lines(found: Any, designed: Any) -> list[str]:
    runs = f"{found.fitted} runs of at most {found.largest:.3g}"
    lines = [f"{found.kind} for {found.flops:.4g} FLOPs, from {runs}; {found.counted}"]
    for label, name in (("N", "params"), ("D", "tokens"), ("loss", "loss")):
        ends = found.intervals.get(name)
        spread = f"   95%: {ends[0]:.4g} to {ends[1]:.4g}" if ends else ""
        lines.append(f"  {label:5} {getattr(found, name):<10.4g}{spread}".rstrip())
    if found.measured is not None:
        m = found.measured
        lines.append(
            f"  measured, {m.place}, which is not fitted: N {m.params:.4g}, D {m.tokens:.4g}, loss {m.loss:.4f}; "
            f"predicted for it {m.predicted:.4f}{_spread(m.interval)}, error {m.error:+.2%}"
        )
    if designed is not None:
        stage = designed.recipe
        lines += [
            f"  run {stage.name}: {stage.model.layers} layers, width {stage.model.width}, "
            f"{designed.counted.parameters:,} parameters, {designed.tokens:,} tokens",
            f"    {stage.train.steps:,} steps of {stage.data.batch_size} rows of {stage.data.sequence_length} tokens, "
            f"rate {stage.optimizer.learning_rate:.3g}, {stage.optimizer.schedule.warmup:,} steps of warmup",
            f"    {designed.reason}",
            f"    loss of this run: {designed.loss:.4f}{_spread(designed.interval)}",
        ]
        if designed.slices is not None:
            s = designed.slices
            lines.append(
                f"    {s.topology}: {s.layout}; {s.step_seconds:.4g} s a step, {s.hours:,.3g} hours, "
                f"{s.chip_hours:,.4g} chip-hours"
            )
    return lines + [f"  note: {note}" for note in found.notes]
