"""A training step of lmjax against the same GPT-2 in PyTorch, eager and compiled: a table of medians and ratios.

    python experiments/benchmarks/training_step.py --size small

The other side is what a user would write there: transformers' GPT2LMHeadModel, AdamW and clipping by the global norm;
ours is the step that `lmjax run` compiles. Both start from the same weights and see the same batch, in float32, so the
first losses must agree. Needs the extra [bench]; two sizes take about five minutes on two quiet cores.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
from gpt2_reference import SHAPES, VOCABULARY, Shape, fields_of, forward_flops, torch_model
from measuring import (
    Contender,
    clocked,
    median,
    print_machine,
    print_table,
    product_rate,
    products,
    serve,
    share,
    take_turns,
)

TARGETS = {"eager": 1.1, "compiled": 1.0}  # the other side's time, in ours
RATE = 3e-4


def batch_of(shape: Shape) -> np.ndarray:
    """Tokens [B, T + 1]: inputs and, one further, targets."""
    return np.random.default_rng(0).integers(0, VOCABULARY, (shape.rows, shape.length + 1))


def prepare_torch(shape: Shape, folder: Path, threads: int, compiled: bool):
    import torch

    model = torch_model(shape, folder, threads).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    forward = torch.compile(model) if compiled else model
    # The model itself shifts the labels, so the last token of a row has no target there.
    tokens = torch.from_numpy(batch_of(shape)[:, :-1])

    def step() -> float:
        optimizer.zero_grad()
        loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def prepare_lmjax(shape: Shape, folder: Path):
    import jax

    from lmjax.interop.huggingface import read_model
    from lmjax.optim.train_state import TrainState
    from lmjax.parallel.mesh import make_mesh
    from lmjax.parallel.placement import place_batch
    from lmjax.parallel.start_jax import prepare_jax
    from lmjax.settings import DataSettings, OptimizerSettings, Pretrain, TokenizerSettings
    from lmjax.tasks.next_token import NextToken
    from lmjax.tasks.resolved import resolve

    prepare_jax()
    imported = read_model(folder)
    recipe = Pretrain(
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=VOCABULARY),  # as many entries as the table has rows
        model=imported.settings,
        data=DataSettings(sequence_length=shape.length, batch_size=shape.rows),
        optimizer=OptimizerSettings(learning_rate=RATE),
    )
    mesh = make_mesh(recipe.mesh)
    program = NextToken().build(resolve(recipe), mesh, recipe.train.steps)
    state = TrainState.create(jax.device_put(imported.params, jax.devices()[0]), program.optimizer)
    fields = fields_of(batch_of(shape)[:, :-1])
    batch = place_batch(lambda rows: {k: v[rows] for k, v in fields.items()}, shape.rows, mesh)

    def step() -> float:
        nonlocal state
        state, metrics = program.step(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"].mean())

    return step


def work(arguments: argparse.Namespace) -> None:
    shape, folder = SHAPES[arguments.size], arguments.folder

    def prepare():
        if arguments.worker == "lmjax":
            step = prepare_lmjax(shape, folder)
        else:
            step = prepare_torch(shape, folder, arguments.threads, arguments.worker == "compiled")
        losses = [step() for _ in range(3)]
        return lambda: {"losses": losses, **clocked(step)}

    serve(prepare, arguments.threads)


def measure(size: str, other: str, rounds: int, threads: int) -> list[dict]:
    """Rows for lmjax and for one way of PyTorch, measured in turns."""
    with tempfile.TemporaryDirectory() as folder:

        def contender(name: str) -> Contender:
            arguments = ["--worker", name, "--size", size, "--folder", folder, "--threads", str(threads)]
            return Contender(name, __file__, arguments, threads)

        with contender(other) as theirs, contender("lmjax") as ours, products(threads) as machine:
            answers = take_turns([theirs, ours, machine], rounds)
    losses = [answers[name][0]["losses"][0] for name in (other, "lmjax")]
    if not math.isclose(*losses, rel_tol=1e-4):
        sys.exit(f"{size}: the first losses {losses} differ: these are not the same model")
    rows = []
    for name in (other, "lmjax"):
        seconds, cpu = median(answers[name]), median(answers[name], "cpu")
        ratio = {} if name == "lmjax" else {"ratio": seconds / median(answers["lmjax"]), "target": TARGETS[other]}
        rows.append({"size": size, "step": name, "seconds": seconds, "cpu_seconds": cpu, **ratio})
        rows[-1] |= {"product_rate": product_rate(answers)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, help="only this one")
    parser.add_argument("--against", choices=TARGETS, help="only this way of PyTorch")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each, in turns; the medians count")
    parser.add_argument("--threads", type=int, default=2, help="of every contender")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=("lmjax", *TARGETS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    sizes = [arguments.size] if arguments.size else list(SHAPES)
    others = [arguments.against] if arguments.against else list(TARGETS)
    rows = [row for size in sizes for other in others for row in measure(size, other, *_how(arguments))]
    if arguments.json:
        print(json.dumps(rows))
        return
    print_machine(arguments.threads)
    print("products: GFLOP/s of large products, in turns with the steps; share: what the step reaches of them")
    heads = ("float32 training step", "ms", "CPU ms", "tokens/s", "products", "share", "PyTorch / lmjax", "target")
    print_table(heads, [_line(row) for row in rows])


def _how(arguments: argparse.Namespace) -> tuple[int, int]:
    return arguments.rounds, arguments.threads


def _line(row: dict) -> tuple[str, ...]:
    shape = SHAPES[row["size"]]
    name = "lmjax" if row["step"] == "lmjax" else f"PyTorch, {row['step']}"
    described = f"{row['size']} ({shape.layers}L, d {shape.width}, T {shape.length}, B {shape.rows}): {name}"
    tokens, machine = shape.rows * shape.length, row["product_rate"]
    rate, part = (
        tokens / row["seconds"],
        share(3 * tokens * forward_flops(shape, shape.length), row["seconds"], machine),
    )
    ratio = (f"{row['ratio']:.2f}x", f"{row['target']:.1f}x") if "ratio" in row else ("", "")
    times = (f"{row['seconds'] * 1e3:,.0f}", f"{row['cpu_seconds'] * 1e3:,.0f}")
    return described, *times, f"{rate:,.0f}", f"{machine / 1e9:,.0f}", part, *ratio


if __name__ == "__main__":
    main()
