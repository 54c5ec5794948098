"""Ten candidates of each of six models, compiled: what the arithmetic of `lmjax plan --auto` is compared with.

    python experiments/benchmarks/plan_ranking.py tests/plan/compiled_candidates.jsonl [MODEL ...]
    python experiments/benchmarks/plan_ranking.py tests/plan/held_out_candidates.jsonl --held-out --each 2

The arithmetic was fitted to the six; the held-out models are other chips, shapes and meshes, which tell how far it
carries.
Candidates are drawn, with a fixed seed, from those that arithmetic says fit: half of them from those that take at most
1.25 times the quickest, half at most twice. Each is compiled by libtpu, a minute or so, and appended to the file; a
model whose ten are there is left alone. Then both are compared: the relative errors of what a device computes and of
its memory, and how far the ranks of the step's time agree (Spearman's coefficient).
"""

import argparse
import dataclasses
import functools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from lmjax.parallel.chips import GIB
from lmjax.plan.cache import Cache
from lmjax.plan.candidates import Candidate, candidates
from lmjax.plan.compile import slice_devices
from lmjax.plan.predict import Analyst, Prediction
from lmjax.plan.search import compiled
from lmjax.plan.slices import Slice, find_slice
from lmjax.settings import Pretrain
from lmjax.settings.recipe_files import load_recipe

EXPERIMENTS = Path(__file__).parents[1]
SLOWEST = (1.25, 2.0)  # times the quickest
UNROLLED_LAYERS = 12  # that compile one by one in a few minutes
MODELS = {
    "gpt2_124m": ("gpt2.py:124m", "v5e-16"),
    "gpt2_355m": ("gpt2.py:355m", "v5e-16"),
    "gpt3_1300m": ("gpt3.py:1300m", "v5e-64"),
    "gpt3_6b": ("benchmarks/plan_gpt3_6b.py", "v5e-64"),
    "llama2_7b": ("benchmarks/plan_llama2_7b.py", "v5p-64"),
    "gpt3_13b": ("benchmarks/plan_gpt3_13b.py", "v5p-128"),
}
HELD_OUT = {
    "llama3_8b": ("benchmarks/plan_llama3_8b.py", "v5p-64"),
    "llama3_8b on v6e": ("benchmarks/plan_llama3_8b.py", "v6e-64"),
    "gpt3_2700m on v6e": ("benchmarks/plan_gpt3_2700m.py", "v6e-64"),
    "llama2_7b of 32k": ("benchmarks/plan_llama2_7b.py:32k", "v5p-128"),
    "gpt3_1300m on two slices": ("gpt3.py:1300m", "2xv5e-64"),
}


def recipe_of(model: str) -> tuple[Pretrain, Slice]:
    """The model's recipe and its slice; a ramp of the batch is left out."""
    spec, topology = (MODELS | HELD_OUT)[model]
    recipe = load_recipe(str(EXPERIMENTS / spec))
    data = dataclasses.replace(recipe.data, ramp_from=None, ramp_tokens=0)
    return dataclasses.replace(recipe, data=data), find_slice(topology)


def drawn(recipe: Pretrain, where: Slice, seed: int, count: int) -> list[Candidate]:
    """So many candidates of a recipe, with the choices that a search makes after the others."""
    analyst = Analyst(recipe, where)
    found = candidates(recipe, where)
    predicted = {each: analyst.predict(each) for each in found}
    fitting = [each for each in found if predicted[each].memory <= where.device_hbm]
    quickest = min(predicted[each].step_seconds for each in fitting)
    draw, chosen = random.Random(seed), []
    unrolled = (False, False, True) if analyst.model.layers <= UNROLLED_LAYERS else (False,)
    for most in SLOWEST:
        likely = [each for each in fitting if predicted[each].step_seconds <= most * quickest and each not in chosen]
        chosen += draw.sample(likely, count // len(SLOWEST))
    return [
        dataclasses.replace(
            each,
            unrolled=draw.choice(unrolled),
            vector_memory=draw.choice((None, 16, 48, 64)),
            loss_chunk=draw.choice((None, 16_384)),
        )
        for each in chosen
    ]


def row(model: str, recipe: Pretrain, where: Slice, candidate: Candidate, cache: Cache) -> dict[str, Any]:
    """A line of the file: a candidate, and what the compiler says of it."""
    applied = candidate.applied(recipe)
    result = cache.get(applied, where.name) or compiled(applied, where, cache)
    found = None if result.estimate is None else result.estimate.to_dict()
    names = ("fits", "peak_hbm_gib", "step_seconds", "compute_seconds", "kernel_seconds")
    figures = {name: found[name] for name in (*names, "compile_seconds")} if found else {"refusal": result.refusal}
    return {"model": model, "candidate": dataclasses.asdict(candidate), **figures}


def rows(models: list[str], count: int, there: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Those of so many of each that are not there yet, of one model after the other in turn."""
    cache, missing = Cache(), []
    for number, model in enumerate(MODELS | HELD_OUT):
        done = [_candidate(each["candidate"]) for each in there if each["model"] == model]
        if model in models and len(done) < count:
            recipe, where = recipe_of(model)
            slice_devices(where)
            left = [each for each in drawn(recipe, where, number, count) if each not in done]
            lacking = zip(range(len(done), count), left, strict=False)
            missing += [(place, model, recipe, where, each) for place, each in lacking]
    for _, model, recipe, where, each in sorted(missing, key=lambda one: one[0]):
        yield row(model, recipe, where, each, cache)


@functools.cache
def _analyst(model: str) -> Analyst:
    return Analyst(*recipe_of(model))


def _candidate(fields: dict[str, Any]) -> Candidate:
    return Candidate(**fields | {"mesh": tuple(fields["mesh"])})


def predicted(row: dict[str, Any]) -> Prediction:
    """What arithmetic says of a line's candidate."""
    return _analyst(row["model"]).predict(_candidate(row["candidate"]))


def agreement(rows: list[dict[str, Any]]) -> float:
    """Spearman's coefficient of predicted and compiled steps, each in times of its model's quickest compiled one.

    In seconds it would be high for any arithmetic that tells large models from small ones.
    """
    fitting = [row for row in rows if row.get("fits")]
    quickest = {row["model"]: min(r["step_seconds"] for r in fitting if r["model"] == row["model"]) for row in fitting}
    times = [(predicted(row).step_seconds, row["step_seconds"], quickest[row["model"]]) for row in fitting]
    ranks = spearmanr([one / least for one, _, least in times], [other / least for _, other, least in times])
    return float(ranks.statistic)


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines in Markdown: of each model, and of all."""
    yield "| model | fit, of | root mean square error of computing | largest | of memory | largest | agreement |"
    yield "|---|---|---|---|---|---|---|"
    for name in (*dict.fromkeys(row["model"] for row in rows), "all"):
        some = [row for row in rows if name in (row["model"], "all")]
        fitting = [row for row in some if row.get("fits")]
        computing = np.array([predicted(row).compute_seconds / row["compute_seconds"] - 1 for row in fitting])
        memory = np.array([predicted(row).memory / GIB / row["peak_hbm_gib"] - 1 for row in fitting])
        errors = (f"{100 * value:.1f}%" for each in (computing, memory) for value in (_spread(each), abs(each).max()))
        yield f"| {name} | {len(fitting)} of {len(some)} | {' | '.join(errors)} | {agreement(some):.3f} |"


def _spread(errors: np.ndarray) -> float:
    return float(np.sqrt((errors**2).mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="lines of JSON")
    names = ", ".join(MODELS | HELD_OUT)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {names}")
    parser.add_argument("--held-out", action="store_true", help="if none is named: not the six, but the others")
    parser.add_argument("--each", type=int, default=10, metavar="N", help="candidates of a model; an even number")
    options = parser.parse_args()
    if options.each % len(SLOWEST):
        parser.error(f"--each {options.each}: expected an even number, as half are drawn from the quickest")
    models = options.models or list(HELD_OUT if options.held_out else MODELS)
    there = [json.loads(line) for line in options.file.read_text().splitlines()] if options.file.exists() else []
    for each in rows(models, options.each, there):
        with options.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(each) + "\n")
        there.append(each)
        print(json.dumps(each), file=sys.stderr, flush=True)
    print(*table(there), sep="\n")


if __name__ == "__main__":
    main()
