"""Plans every published GPT, BERT and T5 at its paper's batch size, and today's open decoders at a million tokens.

A Markdown table, of a usual slice for each:

    python experiments/benchmarks/plan_presets.py [PRESET ...] [--cache FILE]

Each row is the recipe in experiments/ with the slice of `ROWS`, compiled by libtpu, which takes minutes and needs no
TPU. GPTs are laid out as `lmjax run` lays them out on that slice, the others as their rows say. What was compiled is
kept in FILE, so that the same command resumes where it was interrupted; a row is compiled again when its recipe, lmjax,
jax or libtpu has changed.
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.errors import UserError, nearest
from lmjax.model.flops import count
from lmjax.model.open_presets import OPEN_PRESETS
from lmjax.parallel.mesh import mesh_text
from lmjax.plan.cache import key
from lmjax.plan.planner import plan, planned_recipe
from lmjax.settings import MeshSettings, ModelSettings, PlanSettings, Pretrain
from lmjax.settings.recipe_files import load_recipe

EXPERIMENTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """How a preset is planned; `rows` is the batch where the paper's does not divide over the slice."""

    recipe: str  # of experiments/
    topology: str
    mesh: MeshSettings = MeshSettings()
    remat: str = "auto"
    rows: int | None = None


def _slice_for(model: ModelSettings) -> str:
    """A usual slice for an open decoder: chips by its parameters."""
    parameters = count(model).parameters
    sizes = {5e8: "v5e-16", 2e9: "v5e-32", 5e9: "v5e-64", 1e10: "v5e-128", 3e10: "v5p-128"}
    return next((name for most, name in sizes.items() if parameters < most), "v5p-256")


# The batch is the one after a ramp.
ROWS = {
    "gpt1": Row("gpt1", "v5e-8"),
    "gpt2_124m": Row("gpt2:124m", "v5e-16"),
    "gpt2_355m": Row("gpt2:355m", "v5e-16"),
    "gpt2_774m": Row("gpt2:774m", "v5e-32"),
    "gpt2_1558m": Row("gpt2:1558m", "v5e-32"),
    "gpt3_125m": Row("gpt3:125m", "v5e-16"),
    "gpt3_350m": Row("gpt3:350m", "v5e-32"),
    "gpt3_760m": Row("gpt3:760m", "v5e-32"),
    "gpt3_1300m": Row("gpt3:1300m", "v5e-64"),
    "gpt3_2700m": Row("gpt3:2700m", "v5e-64"),
    "gpt3_6700m": Row("gpt3:6700m", "v5e-128"),
    "gpt3_13b": Row("gpt3:13b", "v5e-256"),
    "gpt3_175b": Row("gpt3:175b", "v5p-1024", rows=1536),
    "bert_tiny": Row("bert:tiny", "v5e-8", MeshSettings(data=8), "minimal"),
    "bert_mini": Row("bert:mini", "v5e-8", MeshSettings(data=8), "minimal"),
    "bert_small": Row("bert:small", "v5e-8", MeshSettings(data=8), "minimal"),
    "bert_medium": Row("bert:medium", "v5e-8", MeshSettings(data=8), "minimal"),
    "bert_base": Row("bert:base", "v5e-16", MeshSettings(data=16), "minimal"),
    "bert_large": Row("bert:large", "v5e-16", MeshSettings(data=1, fsdp=16), "minimal"),
    "t5_small": Row("t5:small", "v5e-8", MeshSettings(data=8), "minimal"),
    "t5_base": Row("t5:base", "v5e-16", MeshSettings(data=1, fsdp=16), "minimal"),
    "t5_large": Row("t5:large", "v5e-16", MeshSettings(data=1, fsdp=16), "minimal"),
    "t5_3b": Row("t5:3b", "v5e-64", MeshSettings(data=1, fsdp=64), "minimal"),
    "t5_11b": Row("t5:11b", "v5e-128", MeshSettings(data=1, fsdp=128), "minimal"),
    "t5_v1_1_small": Row("t5:v1_1_small", "v5e-8", MeshSettings(data=8), "minimal"),
    "t5_v1_1_base": Row("t5:v1_1_base", "v5e-16", MeshSettings(data=1, fsdp=16), "minimal"),
    "t5_v1_1_large": Row("t5:v1_1_large", "v5e-16", MeshSettings(data=1, fsdp=16), "minimal"),
    "t5_v1_1_xl": Row("t5:v1_1_xl", "v5e-64", MeshSettings(data=1, fsdp=64), "minimal"),
    "t5_v1_1_xxl": Row("t5:v1_1_xxl", "v5e-128", MeshSettings(data=1, fsdp=128), "minimal"),
    **{name: Row(f"open_models:{name}", _slice_for(settings)) for name, settings in OPEN_PRESETS.items()},
}
HEADS = (
    *("preset", "slice", "mesh", "remat", "batch tokens", "microbatches", "peak GiB of HBM", "Gcycles", "step s"),
    *("tokens/s", "MFU", "bound by"),
)


def recipe_of(row: Row) -> Pretrain:
    """The experiment's recipe, as the row plans it."""
    name, _, size = row.recipe.partition(":")
    path = EXPERIMENTS / f"{name}.py"
    recipe = load_recipe(f"{path}:{size}" if size else str(path))
    rows = row.rows or recipe.data.batch_size
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, batch_size=rows, ramp_from=None, ramp_tokens=0),
        compute=dataclasses.replace(recipe.compute, remat=row.remat),
        mesh=row.mesh,
        plan=PlanSettings(topology=row.topology),
    )


def planned(name: str, cache: dict[str, Any], file: Path) -> dict[str, Any]:
    """A row's estimate, from the cache or compiled and kept there."""
    recipe = planned_recipe(recipe_of(ROWS[name]))
    decides = key(recipe, recipe.plan.topology)
    if cache.get(name, {}).get("key") != decides:
        found = plan(recipe, say=lambda line: print(line, file=sys.stderr, flush=True)).estimate
        cache[name] = {"key": decides, "estimate": found.to_dict()}
        whole = file.with_suffix(".part")
        whole.write_text(json.dumps(cache, indent=1), encoding="utf-8")
        whole.replace(file)
    return cache[name]["estimate"]


def cells(name: str, found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    tokens = found["rows_per_step"] * found["sequence_length"]
    peak = f"{found['peak_hbm_gib']:.1f} of {found['hbm_gib']:.2f}"
    cut = mesh_text(found["mesh"]).replace("=", " ").replace(",", " x ")
    remat = found["remat"] + ", unrolled" * found["unrolled_layers"]
    first = [name, found["topology"], cut, remat, f"{tokens:,}", str(found["microbatches"]), peak]
    if not found["fits"]:
        return [*first, "-", "-", "-", "-", "does not fit"]
    speed = [f"{found['gcycles']:.4g}", f"{found['step_seconds']:.3g}", f"{found['tokens_per_second']:,.0f}"]
    return [*first, *speed, f"{found['mfu']:.0%}", found["bound_by"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", metavar="PRESET", help="default: all")
    parser.add_argument("--cache", type=Path, default=Path("plan_presets.json"), help="where rows are kept")
    options = parser.parse_args()
    for name in options.presets:
        if name not in ROWS:
            raise UserError(f"no row for preset {name!r}; {nearest(name, ROWS)}")
    cache = json.loads(options.cache.read_text(encoding="utf-8")) if options.cache.exists() else {}
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}", flush=True)
    for name in options.presets or ROWS:
        print(f"| {' | '.join(cells(name, planned(name, cache, options.cache)))} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"plan_presets: {error}")
