"""lmjax's generation against transformers' `generate()` with its cache, on the CPU, greedy, from the same weights.

    python experiments/benchmarks/generation.py --size gpt2 --rows 1

Needs the extra: pip install -c constraints.txt -e '.[bench]'. A randomly initialised GPT-2 is written as a Hugging Face
folder and read by both. Both compute in float32 on two threads and must give the same tokens. Contenders take turns, in
processes of their own; the median counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from contenders import interleaved, print_table, serve

SIZES = {"small": (6, 384, 6), "gpt2": (12, 768, 12)}  # layers, width, heads
VOCABULARY, CONTEXT = 50_257, 1024
CONTENDERS = ("lmjax", "transformers")


class Endless(NamedTuple):
    """All that decoding asks of a tokenizer here: no token ends the text."""

    vocab_size: int = VOCABULARY
    eos_id: int = -1


def lmjax_run(folder: Path, ids: np.ndarray, count: int) -> Callable[[], np.ndarray]:
    import jax.numpy as jnp

    from lmjax.generate.decode import advance, begin, compiled_settings, ready
    from lmjax.generate.sampling import SamplingSettings
    from lmjax.interop.hf import read_model
    from lmjax.model.language_model import LanguageModel
    from lmjax.parallel.platform import prepare_jax

    prepare_jax()
    read = read_model(folder)
    model, params = ready(LanguageModel(read.settings), read.params)
    settings = SamplingSettings(max_tokens=count, temperature=0)
    static = compiled_settings(settings)

    def run() -> np.ndarray:
        decoding = begin(model, params, Endless(), ids.tolist(), settings)
        decoding = advance(model, params, decoding, jnp.int32(count), settings=static, vocab=VOCABULARY)
        return np.asarray(decoding.tokens)[:, :count]

    return run


def transformers_run(folder: Path, ids: np.ndarray, count: int) -> Callable[[], np.ndarray]:
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(2)
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    prompt = torch.from_numpy(ids)
    lengths = {"min_new_tokens": count, "max_new_tokens": count}

    def run() -> np.ndarray:
        mask = torch.ones_like(prompt)
        out = model.generate(prompt, attention_mask=mask, do_sample=False, use_cache=True, pad_token_id=0, **lengths)
        return out[:, ids.shape[1] :].numpy()

    return run


def write_weights(folder: Path, size: str) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    layers, width, heads = SIZES[size]
    shape = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": CONTEXT, "vocab_size": VOCABULARY}
    GPT2LMHeadModel(GPT2Config(**shape, eos_token_id=None, bos_token_id=None)).save_pretrained(folder)


def check_same(folder: Path, commands: dict[str, list[str]]) -> None:
    """Ends the benchmark where the contenders' tokens differ."""
    tokens = {}
    for name, command in commands.items():
        out = folder / f"{name}.npy"
        subprocess.run([sys.executable, *command, "--write-tokens", str(out)], check=True)
        tokens[name] = np.load(out)
    same = np.mean(tokens["lmjax"] == tokens["transformers"])
    if same < 1:
        raise SystemExit(f"only {same:.1%} of the tokens are the same: the contenders do not do the same work")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to produce per row")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write-tokens", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        ids = np.random.default_rng(1).integers(0, VOCABULARY, (arguments.rows, arguments.prompt))
        make = lmjax_run if arguments.contender == "lmjax" else transformers_run
        run = make(arguments.folder, ids, arguments.tokens)
        if arguments.write_tokens:
            np.save(arguments.write_tokens, run())
        else:
            serve(run)
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as name:
        write_weights(Path(name), arguments.size)
        shape = ["--rows", str(arguments.rows), "--prompt", str(arguments.prompt), "--tokens", str(arguments.tokens)]
        commands = {c: [__file__, *shape, "--folder", name, "--contender", c] for c in CONTENDERS}
        check_same(Path(name), commands)
        medians = interleaved(commands, arguments.rounds)
    title = f"generation, {arguments.size}, {arguments.rows} x ({arguments.prompt} + {arguments.tokens})"
    print_table(title, "tokens/s", arguments.rows * arguments.tokens, medians, "lmjax", arguments.json)


if __name__ == "__main__":
    main()
