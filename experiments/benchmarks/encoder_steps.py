"""Training steps of BERT and T5 by lmjax against transformers with PyTorch, eager and compiled: medians and ratios.

    python experiments/benchmarks/encoder_steps.py --peer-python PYTHON

PYTHON is one that has torch and transformers. Both sides begin with the same weights and see the same rows in float32,
so that the first losses must agree; AdamW (T5: Adam's too) and clipping by the global norm on both. `masked`: 20 of
128 tokens are predicted; transformers' BertForMaskedLM computes the logits of all 128, as it has no other way.
`finetune`: two classes of rows of 64 tokens, all parameters learn. `t5`: inputs of 128 and targets of 32 tokens.
Dropout is 0 for both, and attention is by `sdpa` there, where transformers has it.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Contender, clocked, median, print_machine, print_table, product_rate, products, serve, take_turns

RATE = 1e-4
VOCABULARY = 30_522
PREDICTED = 20


@dataclass(frozen=True)
class Case:
    """A step: rows of `length` tokens, `inputs` more for an encoder; and by how much lmjax is to be faster."""

    target: float
    rows: int
    length: int
    inputs: int = 0


CASES = {"masked": Case(1.5, 16, 128), "finetune": Case(1.3, 32, 64), "t5": Case(1.3, 16, 32, 128)}
WAYS = ("eager", "compiled")
BERT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
T5 = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32_128}


def batch_of(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (case.rows, case.length)
    columns = np.sort(np.stack([rng.permutation(case.length)[:PREDICTED] for _ in range(case.rows)]), axis=1)
    return {
        "tokens": rng.integers(1000, VOCABULARY, shape).astype(np.int32),
        "targets": rng.integers(1000, VOCABULARY, shape).astype(np.int32),
        "predicted": columns.astype(np.int32),
        "labels": rng.integers(0, 2, case.rows).astype(np.int32),
        "inputs": rng.integers(1000, VOCABULARY, (case.rows, case.inputs)).astype(np.int32),
    }


def prepare_torch(name: str, folder: Path, threads: int, compiled: bool) -> Any:
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    arrays = {key: torch.from_numpy(array).long() for key, array in batch_of(CASES[name]).items()}
    if name == "t5":
        config = transformers.T5Config(**T5, dropout_rate=0.0, decoder_start_token_id=0)
        model = transformers.T5ForConditionalGeneration(config)
        fields = {"input_ids": arrays["inputs"], "decoder_input_ids": arrays["tokens"], "labels": arrays["targets"]}
    elif name == "masked":
        model = transformers.BertForMaskedLM(transformers.BertConfig(**BERT, **quiet, attn_implementation="sdpa"))
        labels = torch.full_like(arrays["tokens"], -100)
        places = arrays["predicted"]
        labels.scatter_(1, places, arrays["targets"].gather(1, places))
        fields = {"input_ids": arrays["tokens"], "labels": labels}
    else:
        config = transformers.BertConfig(**BERT, **quiet, num_labels=2, attn_implementation="sdpa")
        model = transformers.BertForSequenceClassification(config)
        fields = {"input_ids": arrays["tokens"], "labels": arrays["labels"]}
    model.save_pretrained(folder)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        optimizer.zero_grad()
        loss = forward(**fields).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def loss_of(name: str, model: Any) -> Any:
    """lmjax's own losses: those of the tasks."""
    from lmjax.objective.labelled import text_loss
    from lmjax.objective.masked_language import masked_loss
    from lmjax.objective.next_token import language_loss

    if name == "masked":
        return masked_loss(model)
    return text_loss(model) if name == "finetune" else language_loss(model)


def fields_of(name: str, case: Case) -> dict[str, np.ndarray]:
    arrays = batch_of(case)
    ones = np.ones((case.rows, case.length), np.int32)
    places = np.broadcast_to(np.arange(case.length, dtype=np.int32), ones.shape)
    fields = {"tokens": arrays["tokens"], "positions": places, "segments": ones}
    if name == "masked":
        picked = np.take_along_axis(arrays["targets"], arrays["predicted"], axis=1)
        weights = np.ones(picked.shape, np.float32)
        return fields | {
            "predicted": arrays["predicted"],
            "predicted_targets": picked,
            "predicted_weights": weights,
        }
    if name == "finetune":
        return fields | {"labels": arrays["labels"], "label_weights": np.ones(case.rows, np.float32)}
    inputs = np.ones((case.rows, case.inputs), np.int32)
    columns = np.broadcast_to(np.arange(case.inputs, dtype=np.int32), inputs.shape)
    fields |= {"targets": arrays["targets"], "weights": ones.astype(np.float32)}
    return fields | {"inputs": arrays["inputs"], "input_positions": columns, "input_segments": inputs}


def prepare_lmjax(name: str, folder: Path) -> Any:
    import jax

    from lmjax.interop.huggingface import read_model
    from lmjax.model.families import model_of
    from lmjax.model.heads import TaskModel
    from lmjax.optim.optimizer import make_optimizer
    from lmjax.optim.train_state import TrainState
    from lmjax.parallel.start_jax import prepare_jax
    from lmjax.settings import OptimizerSettings
    from lmjax.training.step import make_train_step

    prepare_jax()
    imported = read_model(folder)
    model: Any = model_of(imported.settings)
    params = imported.params
    if name == "finetune":
        model = TaskModel(model, 2)
        params = {"trunk": params, "head": imported.head.params}
    settings = OptimizerSettings(learning_rate=RATE, b2=0.999, weight_decay=0.01, clip_norm=1.0)
    optimizer = make_optimizer(settings, lambda step: jax.numpy.float32(RATE), model.logical_axes())
    made = make_train_step(loss_of(name, model), optimizer)
    step_fn = jax.jit(made, donate_argnums=0)
    state = TrainState.create(jax.tree.map(jax.numpy.asarray, params), optimizer)
    batch = {key: jax.numpy.asarray(array) for key, array in fields_of(name, CASES[name]).items()}

    def step() -> float:
        nonlocal state
        state, metrics = step_fn(state, batch)
        jax.block_until_ready(state)
        return float(metrics["loss"].mean())

    return step


def work(arguments: argparse.Namespace) -> None:
    def prepare() -> Any:
        name, folder = arguments.case, arguments.folder
        if arguments.worker == "lmjax":
            step = prepare_lmjax(name, folder)
        else:
            step = prepare_torch(name, folder, arguments.threads, arguments.worker == "compiled")
        losses = [step() for _ in range(3)]
        return lambda: {"losses": losses, **clocked(step)}

    serve(prepare, arguments.threads)


def measure(name: str, way: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    threads = arguments.threads
    with tempfile.TemporaryDirectory() as folder:

        def contender(worker: str, python: str | None) -> Contender:
            own = ["--worker", worker, "--case", name, "--folder", folder, "--threads", str(threads)]
            return Contender(worker, __file__, own, threads, python)

        peer, own, machine = contender(way, arguments.peer_python), contender("lmjax", None), products(threads)
        with peer as theirs, own as ours, machine:
            answers = take_turns([theirs, ours, machine], arguments.rounds)
    first = [answers[worker][0]["losses"] for worker in (way, "lmjax")]
    if not all(math.isclose(*pair, rel_tol=2e-4) for pair in zip(*first, strict=True)):
        sys.exit(f"{name}: the first losses {first} differ: these are not the same steps")
    ours_seconds = median(answers["lmjax"])
    rows = []
    for worker in (way, "lmjax"):
        seconds = median(answers[worker])
        ratio = {} if worker == "lmjax" else {"ratio": seconds / ours_seconds, "target": CASES[name].target}
        rows.append({"case": name, "step": worker, "seconds": seconds, "product_rate": product_rate(answers), **ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--against", choices=WAYS, help="only this way of PyTorch")
    parser.add_argument("--peer-python", help="a Python with torch and transformers; default: this one")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each, in turns; the medians count")
    parser.add_argument("--threads", type=int, default=2, help="of every contender")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=("lmjax", *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    cases = [arguments.case] if arguments.case else list(CASES)
    ways = [arguments.against] if arguments.against else list(WAYS)
    rows = [row for name in cases for way in ways for row in measure(name, way, arguments)]
    if arguments.json:
        print(json.dumps(rows))
        return
    print_machine(arguments.threads)
    print("products: GFLOP/s of large products, in turns with the steps")
    heads = ("float32 training step", "ms", "products", "PyTorch / lmjax", "target")
    print_table(heads, [_line(row) for row in rows])


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    name = "lmjax" if row["step"] == "lmjax" else f"PyTorch, {row['step']}"
    ratio = (f"{row['ratio']:.2f}x", f"{row['target']:.1f}x") if "ratio" in row else ("", "")
    return f"{row['case']}: {name}", f"{row['seconds'] * 1e3:,.0f}", f"{row['product_rate'] / 1e9:,.0f}", *ratio


if __name__ == "__main__":
    main()
