"""Fine-tuning by lmjax beside transformers with PyTorch: the same rows, batches, rates and steps, several seeds.

    lmjax import-hf HF runs/encoder
    python experiments/benchmarks/finetune_beside_transformers.py --checkpoint runs/encoder --hf HF \\
        --peer-python PYTHON --json FILE

Run it in the repository's folder, beside which ../shared/data is. The sets and their recipes are those of
`experiments/finetune.py`. Each is learned by `lmjax`, from the checkpoint; by `random`, lmjax from weights of that
shape that nothing was learned with; and by `transformers` (`finetune_transformers.py`, by PYTHON) from the folder that
the checkpoint was imported from. A seed draws dropout, the head and the random weights; the batches are the same for
all seeds and arms. lmjax's task turns the predictions of all arms into metrics.

Before it trains, the other side checks that its tokenizer gives lmjax's token ids, that weight decay touches as many
parameters, and that the first batch has the same loss. The difference of two means is given in its standard errors,
sqrt((s1^2 + s2^2) / seeds). Seconds are of a whole run: start, compilation, steps, evaluation, and lmjax's checkpoint.

What is done is kept in --out and not done again; another checkpoint needs another folder. A set's folder has
`work.npz`: STEP/FIELD, the batches; rates; head/kernel and head/bias, of the check; validation/N/rows and
validation/N/fields/FIELD. `work.json` has the task, its sizes, Adam's settings, and examples with their token ids.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring import print_machine

import lmjax
from lmjax.checkpoints.checkpoint import Checkpointer
from lmjax.data.batch import SEGMENTS, TOKENS
from lmjax.data.buckets import BucketLoader, evaluation_batches
from lmjax.files import read_json_if_there, write_whole
from lmjax.model.families import model_of
from lmjax.optim.optimizer import decay_mask
from lmjax.optim.train_state import TrainState
from lmjax.parallel.start_jax import prepare_jax
from lmjax.runs.seeds import validation_numbers
from lmjax.settings import CheckpointSettings, Finetune
from lmjax.settings.recipe_files import load_recipe, to_json
from lmjax.stages.finetune import adapted, task_of
from lmjax.stages.train_stage import loader_of
from lmjax.tasks.labelled import LabelledTask
from lmjax.tasks.resolved import ResolvedStage, resolve
from lmjax.tasks.task import Session, TaskData
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import read_metrics
from lmjax.training.stop import StopRequest

HERE = Path(__file__).parent
METRICS = {
    "sst2": ("accuracy",),
    "rte": ("accuracy",),
    "stsb_en": ("spearman",),
    "codah": ("accuracy",),
    "swag": ("accuracy",),
    "squad_v2": ("best_f1", "best_exact"),
    "squad_v1_en": ("f1", "exact"),
    "wnut17": ("f1",),
}
ARMS = ("lmjax", "random", "transformers")
HEADS = (  # of the table
    *("set", "metric", "lmjax", "random weights", "transformers"),
    *("from random, in its errors", "from transformers, in its errors", "lmjax s", "transformers s"),
)
CHECKED = 20  # examples whose token ids are compared
LAST = 50  # steps whose seconds are averaged, as lmjax does

TEXTS = {  # what transformers' tokenizer is given for an example: a text or two for each row, or words
    "Sentences": lambda example: [example.texts],
    "Embeddings": lambda example: [[text] for text in example.texts],
    "Choices": lambda example: [[example.context, option] for option in example.options],
    "QuestionAnswering": lambda example: [[example.question, example.passage]],
    "Tags": lambda example: [example.words],
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A set as it is trained: its task, its rows and what stands in its folder."""

    resolved: ResolvedStage
    task: LabelledTask
    data: TaskData

    def metrics(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        (rows,), (examples,) = self.data.validation, self.data.examples
        return self.task.measured(self.task.answers(predictions, rows, examples), examples)


def recipe_of(name: str, start: Path, steps: int | None) -> Finetune:
    recipe = load_recipe(f"{HERE.parent / 'finetune.py'}:{name}")
    recipe = dataclasses.replace(recipe, start=str(start))
    if steps is None:
        return recipe
    schedule = dataclasses.replace(recipe.optimizer.schedule, warmup=steps // 10)
    return dataclasses.replace(
        recipe,
        optimizer=dataclasses.replace(recipe.optimizer, schedule=schedule),
        train=dataclasses.replace(recipe.train, steps=steps),
        evaluation=dataclasses.replace(recipe.evaluation, every=steps),
        checkpoint=dataclasses.replace(recipe.checkpoint, every=steps),
    )


def prepared(recipe: Finetune, folder: Path) -> Prepared:
    resolved = resolve(recipe, folder=folder).opened()
    task = task_of(resolved)
    assert isinstance(task, LabelledTask)
    resolved = adapted(resolved, task)
    return Prepared(resolved, task, task.open(resolved, Session(StopRequest(), ProgressDisplay(silent=True))))


def write_work(of: Prepared, folder: Path) -> None:
    """The files for the other side; `work.json` is the last one."""
    stage, task, resolved = of.resolved.of(Finetune), of.task, of.resolved
    adam, (rows,), loading = stage.optimizer, of.data.validation, stage.loading
    spec, steps = task.spec(resolved), stage.train.steps
    loader = loader_of(stage, of.data, spec)
    assert isinstance(loader, BucketLoader) and adam.bias_correction and not adam.decay_embeddings
    program = task.build(resolved, resolved.mesh(), steps)
    arrays = {f"{step}/{name}": array for step in range(steps) for name, array in loader.batch_at(step).items()}
    arrays["rates"] = np.asarray(program.schedule(jnp.arange(steps)))
    batches = list(evaluation_batches(rows, stage.buckets, loading.sequence_length, loading.batch_size, spec))
    for number, (numbers, batch) in enumerate(batches):
        arrays[f"validation/{number}/rows"] = numbers
        arrays |= {f"validation/{number}/fields/{name}": array for name, array in batch.items()}
    first_loss, head = loss_before(of, program, loader.batch_at(0))
    arrays |= {f"head/{name}": np.asarray(array) for name, array in head.items()}
    np.savez(folder / "work.npz", **arrays)
    sizes = jax.tree.map(lambda leaf: math.prod(leaf.shape), program.abstract.params)
    decayed = jax.tree.map(lambda decays, size: decays * size, decay_mask(program.model.logical_axes(), False), sizes)
    work = {
        "task": type(task).__name__,
        "outputs": task.head(resolved)[0],
        "dropout": stage.dropout,
        "highest": getattr(task, "highest", 1.0),
        "adam": {name: getattr(adam, name) for name in ("b1", "b2", "eps", "weight_decay", "clip_norm")},
        "decayed": sum(jax.tree.leaves(decayed)),
        "pooler": resolved.model.width**2,
        "first_loss": first_loss,
        "validation_batches": len(batches),
        "validation_rows": len(rows),
        "columns": loading.sequence_length,
        "examples": examples_of(of),
    }
    write_whole(folder / "work.json", json.dumps(work))


def loss_before(of: Prepared, program: Any, batch: Any) -> tuple[float, dict[str, Any]]:
    """The loss of the first batch without dropout, and the fresh head that it has; an embedding has none."""
    assert of.resolved.start is not None
    trunk = of.resolved.start.language_model(of.task.language_model(program.abstract.params))
    params = of.task.initial(program.model, trunk, jax.random.key(0))
    loss_fn = of.task.loss(program.model, of.resolved)
    loss, _ = jax.jit(lambda params, batch: loss_fn(params, batch, None))(params, batch)
    return float(loss.mean()), params["head"] if of.task.trunk else {}


def examples_of(of: Prepared) -> list[dict[str, Any]]:
    """Examples all over the validation data, each whole in one row, with their texts and the ids of their tokens."""
    (rows,), (examples,) = of.data.validation, of.data.examples
    owner = rows.windows.texts if hasattr(rows, "windows") else rows.examples
    alone = np.bincount(owner, minlength=len(examples))[owner] == 1
    whole = np.flatnonzero(alone & (rows.lengths < of.resolved.of(Finetune).loading.sequence_length))
    found = []
    for row in whole[:: max(1, len(whole) // CHECKED)]:
        batch = rows.batch(np.array([row]))
        tokens, segments = (batch[name].reshape(-1, batch[name].shape[-1]) for name in (TOKENS, SEGMENTS))
        ids = [own[real != 0].tolist() for own, real in zip(tokens, segments, strict=True) if real.any()]
        example = examples[owner[row]]
        texts = [list(each) for each in TEXTS[type(of.task).__name__](example)]
        found.append({"where": example.where, "texts": texts, "ids": ids})
    return found


def random_start(checkpoint: Path, folder: Path, seed: int) -> Path:
    """A checkpoint with fresh parameters of the shape and with the tokenizer of another one."""
    if folder.exists():
        return folder
    trained = lmjax.load(checkpoint)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer = partial / "tokenizer"
    trained.tokenizer.save(tokenizer)
    params = model_of(trained.model.settings).init(jax.random.key(seed))
    told: dict[str, Any] = {"recipe_json": to_json(trained.recipe), "tokenizer_folder": tokenizer, "report": print}
    with Checkpointer(partial / "checkpoints" / "random", CheckpointSettings(), **told) as writer:
        writer.save(TrainState(jnp.zeros((), jnp.int32), params, {}), 0, {})
    partial.rename(folder)
    return folder


def by_lmjax(recipe: Finetune, seed: int, workdir: Path) -> dict[str, Any]:
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))
    result = lmjax.run(recipe, workdir, quiet=True, report=False)
    if result.signal is not None:
        sys.exit(result.exit_code)
    found = validation_numbers(workdir, recipe)
    shutil.rmtree(workdir / "checkpoints")
    lines = [line for line in read_metrics(workdir) if "step_seconds" in line]
    return {
        "metrics": {name.removeprefix("validation_"): value for name, value in found.items()},
        "step_seconds": lines[-1]["step_seconds"] if lines else None,
        "last_loss": lines[-1]["loss"] if lines else None,
    }


def by_transformers(of: Prepared, seed: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    out = folder / f"predictions-{seed}.npz"
    own = ["--hf", str(arguments.hf), "--out", str(out), "--threads", str(arguments.threads)]
    command = [arguments.peer_python or sys.executable, str(HERE / "finetune_transformers.py"), str(folder), str(seed)]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    ended = subprocess.run([*command, *own], env=os.environ | quiet, check=False)
    if ended.returncode:
        sys.exit(f"transformers ended with exit code {ended.returncode}; what it printed stands above")
    with np.load(out) as arrays:
        found = dict(arrays)
    seconds, losses = found.pop("step_seconds"), found.pop("losses")
    return {
        "metrics": of.metrics(found),
        "step_seconds": float(seconds[-LAST:].mean()),
        "last_loss": float(losses[-10:].mean()),
    }


def cells_of(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What each arm measured with each seed; those that are not in --out are run."""
    recipe = recipe_of(name, arguments.checkpoint, arguments.steps)
    folder = arguments.out / f"{name}-{recipe.train.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    of, cells = None, []
    for seed in arguments.seeds:
        for arm in ARMS:
            file = folder / f"{arm}-{seed}.json"
            cell = read_json_if_there(file)
            if cell is None:
                of = of or prepared(recipe, folder)
                if not (folder / "work.json").exists():
                    write_work(of, folder)
                start = arguments.checkpoint
                if arm == "random":
                    start = random_start(start, arguments.out / f"random-{seed}", seed)
                began = time.perf_counter()
                if arm == "transformers":
                    own = by_transformers(of, seed, folder, arguments)
                else:
                    own = by_lmjax(dataclasses.replace(recipe, start=str(start)), seed, folder / f"{arm}-{seed}")
                seconds = time.perf_counter() - began
                cell = {"set": name, "arm": arm, "seed": seed, "steps": recipe.train.steps, "seconds": seconds, **own}
                cell["load"] = os.getloadavg()[0]
                write_whole(file, json.dumps(cell, indent=1))
                told = ", ".join(f"{metric} {cell['metrics'][metric]:.4f}" for metric in METRICS[name])
                print(f"{name}, {arm}, seed {seed}: {told}; {seconds:.0f} s", file=sys.stderr, flush=True)
            cells.append(cell)
    return cells


def summarised(name: str, metric: str, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation of each arm, and how many standard errors lie between lmjax and the other two."""
    row: dict[str, Any] = {"set": name, "metric": metric}
    for arm in ARMS:
        own = [cell for cell in cells if cell["arm"] == arm]
        values = [cell["metrics"][metric] for cell in own]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        seconds = statistics.fmean(cell["seconds"] for cell in own)
        row[arm] = {"mean": statistics.fmean(values), "deviation": deviation, "seconds": seconds, "seeds": len(values)}
    for arm in ARMS[1:]:
        ours, theirs = row["lmjax"], row[arm]
        error = math.hypot(ours["deviation"], theirs["deviation"]) / math.sqrt(ours["seeds"])
        row[f"from_{arm}"] = (ours["mean"] - theirs["mean"]) / error if error else None
    return row


def line_of(row: dict[str, Any]) -> str:
    means = [f"{row[arm]['mean']:.4f} ± {row[arm]['deviation']:.4f}" for arm in ARMS]
    errors = ["" if row[name] is None else f"{row[name]:+.1f}" for name in ("from_random", "from_transformers")]
    seconds = [f"{row[arm]['seconds']:.0f}" for arm in ("lmjax", "transformers")]
    return f"| {' | '.join([row['set'], row['metric'], *means, *errors, *seconds])} |"


def main() -> None:
    def names(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(each) for each in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/encoder"), help="of `lmjax import-hf`")
    parser.add_argument("--hf", type=Path, required=True, help="the folder that it was imported from")
    parser.add_argument("--peer-python", help="a Python with torch and transformers; default: this one")
    parser.add_argument("--sets", type=names, default=list(METRICS), help=f"some of {','.join(METRICS)}")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of the recipes' own")
    parser.add_argument(
        "--threads", type=int, default=2, help="of PyTorch; lmjax takes all processors that it is given"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_beside_transformers"))
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.sets) - set(METRICS))
    if unknown:
        parser.error(f"--sets: {', '.join(unknown)}: expected some of {', '.join(METRICS)}")
    prepare_jax()
    print_machine(arguments.threads)
    cells = {name: cells_of(name, arguments) for name in arguments.sets}
    rows = [summarised(name, metric, cells[name]) for name in arguments.sets for metric in METRICS[name]]
    print(f"\n| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    print("\n".join(map(line_of, rows)))
    if arguments.json:
        every = [cell for own in cells.values() for cell in own]
        write_whole(arguments.json, json.dumps({"rows": rows, "cells": every}, indent=1) + "\n")


if __name__ == "__main__":
    main()
