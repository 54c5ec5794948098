"""lmjax's training step against the same GPT-2 in PyTorch, on the CPU: a table of seconds, tokens/s and the ratio.

    python experiments/benchmarks/training_step.py --size small
    python experiments/benchmarks/training_step.py --size gpt2

Needs the extra: pip install -c constraints.txt -e '.[bench]'. The other side is transformers' GPT2LMHeadModel with AdamW
and clipping, as one would write it there, eager and under torch.compile. All compute in float32 on two threads; nothing
is dropped out. Contenders take turns, a step each, in processes of their own; the median counts.
"""

import argparse
import os
from collections.abc import Callable

import numpy as np
from contenders import interleaved, print_table, serve

SIZES = {  # layers, width, heads, context, tokens of a row, rows
    "small": (6, 384, 6, 256, 256, 12),
    "gpt2": (12, 768, 12, 1024, 512, 2),
}
VOCABULARY = 50_257
CONTENDERS = ("lmjax", "torch eager", "torch compiled")


def lmjax_step(size: str) -> Callable[[], object]:
    import jax

    from lmjax.data.batch import POSITIONS, SEGMENTS, TARGETS, TOKENS, WEIGHTS
    from lmjax.parallel.mesh import make_mesh
    from lmjax.parallel.platform import prepare_jax
    from lmjax.parallel.shardings import init_state, jit_step, place_batch
    from lmjax.recipe import Pretrain
    from lmjax.settings import AttentionSettings, DataSettings, ModelSettings
    from lmjax.stages.pretrain import make_parts

    prepare_jax()
    layers, width, heads, context, length, rows = SIZES[size]
    recipe = Pretrain(
        model=ModelSettings(
            layers=layers,
            width=width,
            context=context,
            vocab_size=VOCABULARY,
            attention=AttentionSettings(heads=heads),
        ),
        data=DataSettings(sequence_length=length, batch_size=rows),
    )
    mesh = make_mesh(recipe.mesh)
    parts = make_parts(recipe, recipe.model, "cpu", VOCABULARY)
    state = init_state(parts.model, parts.optimizer, 0, mesh)
    step = jit_step(parts.step, state, mesh)
    window = tokens(size)
    shape = window[:, 1:].shape
    fields = {
        TOKENS: window[:, :-1],
        TARGETS: window[:, 1:],
        WEIGHTS: np.ones(shape, np.float32),
        POSITIONS: np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        SEGMENTS: np.ones(shape, np.int32),
    }
    batch = place_batch(lambda held: {name: array[held] for name, array in fields.items()}, rows, length, mesh)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def torch_step(size: str, compiled: bool) -> Callable[[], object]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(2)
    layers, width, heads, context, *_ = SIZES[size]
    shape = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": context, "vocab_size": VOCABULARY}
    model = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    forward = torch.compile(model) if compiled else model
    ids = torch.from_numpy(tokens(size)[:, :-1].astype(np.int64))

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def tokens(size: str) -> np.ndarray:
    *_, length, rows = SIZES[size]
    return np.random.default_rng(0).integers(0, VOCABULARY, (rows, length + 1)).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        name = arguments.contender
        serve(lmjax_step(arguments.size) if name == "lmjax" else torch_step(arguments.size, name == "torch compiled"))
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    commands = {name: [__file__, "--size", arguments.size, "--contender", name] for name in CONTENDERS}
    medians = interleaved(commands, arguments.rounds)
    *_, length, rows = SIZES[arguments.size]
    title = f"training step, {arguments.size}, {rows} x {length}"
    print_table(title, "tokens/s", rows * length, medians, "lmjax", arguments.json)


if __name__ == "__main__":
    main()
