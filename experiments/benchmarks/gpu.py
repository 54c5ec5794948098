"""All that is to be measured on a GPU, in one go of under ten minutes: a table, and a line of JSON for each part.

    python experiments/benchmarks/gpu.py --peer-python PYTHON --json gpu.jsonl

- rate: bfloat16 products of large matrices, TFLOP/s; every MFU below is a share of it.
- steps: training steps of GPT-2 124M and 1.5B and of a Llama of 1.2 billion parameters in bfloat16, tokens/s and MFU,
  beside transformers in PyTorch, compiled, with fused attention (`gpu_torch.py`, by PYTHON; left out without one).
  Parameters, optimizer state and gradients are float32 on both sides; the batch is the same tokens.
- attention: how far the fused attention is from `einsum`, values and gradients, as a share of the largest entry.
- generation: tokens/s of lmjax's sampler, 1 and 16 rows.
- grpo: seconds of one iteration of GRPO (`rlhf_work.py`).
- resume: a run that is killed and started again, beside one that is not: their last losses.

Without a GPU it refuses, unless `--tiny` asks for small shapes, which is how the tests run it. It has not been run on a
GPU yet.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rlhf_lmjax
import rlhf_work
from gpt2_reference import Numbers, fields_of
from measuring import print_table

from lmjax.data.batch import Batch
from lmjax.generate.decode import generate
from lmjax.generate.sampling import SamplingSettings
from lmjax.interop.hf_config import write_config
from lmjax.interop.huggingface import read_model, write_model
from lmjax.model.attention import attention
from lmjax.model.language_model import LanguageModel
from lmjax.model.masks import Mask
from lmjax.model.presets import preset
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import init_state, place_batch
from lmjax.parallel.start_jax import prepare_jax
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    FeedForwardSettings,
    ModelSettings,
    NormSettings,
    OptimizerSettings,
    PositionSettings,
    Pretrain,
    TokenizerSettings,
)
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.resolved import resolve
from lmjax.training.record import read_metrics

WARM, STEPS, RATE = 3, 10, 3e-4
TERA = 1e12
PART = Callable[[argparse.Namespace], list[dict[str, Any]]]


def llama(layers: int, width: int, heads: int, kv_heads: int, hidden: int, vocabulary: int, context: int) -> Any:
    return ModelSettings(
        layers=layers,
        width=width,
        context=context,
        vocab_size=vocabulary,
        attention=AttentionSettings(heads=heads, kv_heads=kv_heads, bias=False),
        feed_forward=FeedForwardSettings(width=hidden, activation="silu", gated=True, bias=False),
        norm=NormSettings(kind="rmsnorm"),
        positions=PositionSettings(kind="rotary", rotary_base=500_000.0),
    )


def shapes(tiny: bool) -> dict[str, tuple[ModelSettings, int, int]]:
    """The models, with rows of a step and tokens of a row."""
    if tiny:
        small = ModelSettings(layers=2, width=32, context=64, vocab_size=512, attention=AttentionSettings(heads=2))
        return {"tiny": (small, 2, 64), "tiny_llama": (llama(2, 32, 4, 2, 64, 512, 64), 2, 64)}
    return {
        "gpt2_124m": (preset("gpt2_124m"), 16, 1024),
        "gpt2_1558m": (preset("gpt2_1558m"), 8, 1024),
        "llama_1b": (llama(16, 2048, 32, 8, 8192, 128_256, 4096), 4, 2048),  # Llama 3.2's, whose head is tied
    }


def seconds_of(call: Callable[[], Any], times: int = STEPS) -> float:
    """The median of several calls, behind those that compile."""
    taken = []
    for _ in range(WARM + times):
        started = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[WARM:])


def product_rate(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    size = 256 if arguments.tiny else 8192
    a, b = (jax.random.normal(jax.random.key(n), (size, size), jnp.bfloat16) for n in range(2))
    rate = 2 * size**3 / seconds_of(lambda product=jax.jit(jnp.matmul): product(a, b))
    arguments.rate = rate
    return [{"part": "rate", "what": f"{size} x {size} products, bfloat16", "tflops": rate / TERA}]


def recipe_of(model: ModelSettings, rows: int, length: int) -> Pretrain:
    plain = dataclasses.replace(model, dropout=0.0, attention=dataclasses.replace(model.attention, dropout=0.0))
    data = DataSettings(sequence_length=length, batch_size=rows)
    tokenizer = TokenizerSettings(kind="bpe", vocab_size=model.vocab_size)
    return Pretrain(tokenizer=tokenizer, model=plain, data=data, optimizer=OptimizerSettings(learning_rate=RATE))


def batch_of(model: ModelSettings, rows: int, length: int) -> Batch:
    """The tokens that `gpu_torch.py` reads."""
    return fields_of(np.random.default_rng(0).integers(0, model.vocab_size, (rows, length)))


def steps(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for name, (model, rows, length) in shapes(arguments.tiny).items():
        recipe = recipe_of(model, rows, length)
        resolved, mesh = resolve(recipe), make_mesh(recipe.mesh)
        program, cost = NextToken().build(resolved, mesh, 1000), NextToken().cost(resolved)
        fields = batch_of(model, rows, length)
        batch = place_batch(lambda some, all=fields: {n: x[some] for n, x in all.items()}, rows, mesh, program.axes)
        state, losses = init_state(program.model, program.optimizer, 0, mesh), []

        def step(program: Any = program, batch: Batch = batch, losses: list[float] = losses) -> Any:
            nonlocal state
            state, metrics = program.step(state, batch)
            losses.append(float(metrics["loss"].mean()))
            return state

        ours = {"lmjax": (seconds_of(step), losses[0])}
        del state
        theirs = {} if arguments.peer_python is None else {"PyTorch": by_torch(arguments, model, rows, length)}
        for side, (seconds, loss) in (ours | theirs).items():
            rate = rows * length / seconds
            row = {"part": "steps", "what": f"{name}, {rows} x {length}: {side}", "tokens_per_second": rate}
            found.append(row | {"mfu": cost.flops / seconds / arguments.rate, "first_loss": loss})
    return found


def by_torch(arguments: argparse.Namespace, model: ModelSettings, rows: int, length: int) -> tuple[float, float]:
    """The median seconds of a step, and the first loss."""
    config = write_config(recipe_of(model, rows, length).model, None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "work.json"
        work = {"config": config, "rows": rows, "length": length, "steps": STEPS, "rate": RATE}
        file.write_text(json.dumps(work), encoding="utf-8")
        command = [arguments.peer_python, str(Path(__file__).with_name("gpu_torch.py")), str(file)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(ended.stdout.splitlines()[-1])
    return statistics.median(answer["seconds"]), answer["first_loss"]


def fused_attention(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    name = "blocked" if arguments.tiny else "cudnn"
    shape = (2, 64, 2, 16) if arguments.tiny else (4, 2048, 16, 128)
    q, k, v, weights = (jax.random.normal(jax.random.key(n), shape, jnp.bfloat16) for n in range(4))

    def run(implementation: str) -> Any:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            out = attention(q, k, v, Mask(True, None), implementation=implementation)
            return (out.astype(jnp.float32) * weights.astype(jnp.float32)).sum(), out

        gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
        return [array.astype(jnp.float32) for array in (out, *gradients)]

    pairs = zip(("values", "of queries", "of keys", "of values"), run(name), run("einsum"), strict=True)
    return [
        {
            "part": "attention",
            "what": f"{name} beside einsum: {what}",
            "difference": float(jnp.abs(a - b).max() / jnp.abs(b).max()),
        }
        for what, a, b in pairs
    ]


def generation(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    name, (model, *_) = next(iter(shapes(arguments.tiny).items()))
    decoder, tokens = LanguageModel(model, platform=jax.default_backend()), 16 if arguments.tiny else 512
    params, numbers = decoder.init(jax.random.key(0)), Numbers(model.vocab_size or 0)
    settings, found = SamplingSettings(max_tokens=tokens, temperature=1.0), []
    for rows in (1, 16):
        prompts = [" ".join(map(str, range(1, 33)))] * rows
        seconds = seconds_of(
            lambda some=prompts: [c.tokens for c in generate(decoder, params, numbers, some, settings)], 3
        )
        rate = rows * tokens / seconds
        found.append({"part": "generation", "what": f"{name}, {rows} rows", "tokens_per_second": rate})
    return found


def grpo(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    shape = rlhf_work.SHAPE
    heads = AttentionSettings(heads=shape.heads)
    settings = ModelSettings(shape.layers, shape.width, shape.context, shape.vocabulary, heads)
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder, settings, LanguageModel(settings).init(jax.random.key(0)))
        iteration = rlhf_lmjax.prepare_iterations("grpo", read_model(folder), [])
    what = f"an iteration: {rlhf_work.RESPONSES} responses of {rlhf_work.RESPONSE} tokens"
    return [{"part": "grpo", "what": what, "seconds": seconds_of(iteration, 1 if arguments.tiny else 5)}]


def resume(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The last losses of a run that goes through, and of one that is killed between two checkpoints."""
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(__file__).with_name("gpu_resumed.py")

        def start(name: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "lmjax.cli", "run", str(recipe), "--workdir", f"{place}/{name}"]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL)

        def losses(name: str) -> dict[int, float]:
            file = Path(place) / name / "metrics.jsonl"
            return {line["step"]: line["loss"] for line in read_metrics(file.parent) if "loss" in line}

        def reached(name: str) -> int:
            return max(losses(name), default=0) if (Path(place) / name / "metrics.jsonl").exists() else 0

        if start("whole").wait():
            sys.exit("resume: the run that goes through failed")
        killed = start("killed")
        while reached("killed") < 50 and killed.poll() is None:
            time.sleep(0.02)
        killed.kill()
        killed.wait()
        at = reached("killed")
        if at >= 200 or start("killed").wait():
            sys.exit(f"resume: the run was at step {at} when it was to be killed, or did not resume")
        own, other = losses("whole"), losses("killed")
    same = "the same" if own[200] == other[200] else "others"
    what = f"killed at step {at}: the losses of steps 200 are {same}"
    return [{"part": "resume", "what": what, "difference": abs(own[200] - other[200])}]


PARTS: dict[str, PART] = {
    "rate": product_rate,
    "steps": steps,
    "attention": fused_attention,
    "generation": generation,
    "grpo": grpo,
    "resume": resume,
}


def written(row: dict[str, Any]) -> list[str]:
    rest = {name: value for name, value in row.items() if name not in ("part", "what")}
    return [row["part"], row["what"], ", ".join(f"{name} {value:.4g}" for name, value in rest.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="a Python with torch and transformers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small shapes, on any device")
    parser.add_argument("--json", type=Path, help="a file, to which each part's lines are added as it ends")
    arguments = parser.parse_args()
    prepare_jax()
    if jax.default_backend() != "gpu" and not arguments.tiny:
        sys.exit(f"gpu: JAX runs on {jax.default_backend()} here: install lmjax[cuda] where a GPU is, or try --tiny")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {os.cpu_count()} processors", flush=True)
    began, rows = time.perf_counter(), []
    for name in dict.fromkeys(["rate", *arguments.parts]):
        found = PARTS[name](arguments)
        rows += found
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if arguments.json is not None:
            with arguments.json.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
    print_table(("part", "what", "measured"), [written(row) for row in rows])


if __name__ == "__main__":
    main()
