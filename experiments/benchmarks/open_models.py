"""Today's open decoders beside live transformers: the largest difference of logits, both ways, in float32.

    python experiments/benchmarks/open_models.py --peer-python PYTHON

transformers makes a tiny random model of every family, whose texts are longer than its windows and than the context
before its scaling, and computes it. lmjax reads the folder and computes the same logits in one pass, and token by token
with a cache; it continues a text; and it writes the model, which transformers loads and computes. A Markdown table.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.interop.huggingface import read_model, write_model
from lmjax.model.language_model import LanguageModel

HERE = Path(__file__).parent
FEATURES = {
    "llama3": "Llama 3.1, 3.2: `llama3` scaling, tied table",
    "llama_linear": "`linear` scaling",
    "llama_dynamic": "`dynamic` scaling, within the context",
    "llama_yarn": "`yarn` scaling",
    "llama_yarn_fractions": "`yarn` scaling, own factor, no whole pairs",
    "mistral": "window in every layer",
    "qwen2": "bias on queries, keys and values; window in late layers",
    "qwen3": "norm of each head of queries and keys",
    "smollm3": "every second layer without positions",
    "olmo2": "norms behind branches; of all heads of queries and keys",
    "gemma2": "local and global layers in turn, caps of scores and logits, norms on both sides, scaled embeddings",
    "gemma3_text": "two rotary bases, scaled global layers, norm of each head; layers no whole number of periods",
    "opt": "learned positions that begin at the third row, LayerNorm, ReLU, bias everywhere",
}
HEADS = ("family", "what it shows", "one pass", "with a cache", "written, loaded by transformers", "greedy tokens")


def cached(model: LanguageModel, params: Any, tokens: np.ndarray, prompt: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, T, V] token by token; and the likeliest continuation of the first `prompt` tokens, [B, T - prompt]."""
    rows, length = tokens.shape
    extend, project = jax.jit(model.extend), jax.jit(model.project)

    def read(given: np.ndarray) -> np.ndarray:
        """What follows, where tokens beyond those given are the likeliest."""
        cache, logits, token = model.empty_cache(rows, length), [], given[:, :1]
        for at in range(length):
            positions = np.full((rows, 1), at, np.int32)
            hidden, cache = extend(params, cache, token, positions, np.ones_like(token), at)
            logits.append(np.asarray(project(params, hidden)))
            following = logits[-1].argmax(-1).astype(np.int32)
            token = given[:, at + 1 : at + 2] if at + 1 < given.shape[1] else following
        return np.concatenate(logits, 1)

    return read(tokens), read(tokens[:, :prompt])[:, prompt - 1 : -1].argmax(-1)


def compared(name: str, folder: Path, written: Path) -> list[str]:
    """Cells of a family's row but the one of the written model, which this writes."""
    tokens = np.load(folder / "tokens.npy").astype(np.int32)
    logits, greedy = np.load(folder / "logits.npy"), np.load(folder / "greedy.npy")
    read = read_model(folder)
    model = LanguageModel(read.settings)
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    batch = {"tokens": tokens, "positions": positions, "segments": np.ones_like(tokens)}
    one_pass = np.asarray(jax.jit(model.logits)(read.params, batch))
    steps, continued = cached(model, read.params, tokens, tokens.shape[1] - greedy.shape[1])
    kind = write_model(written, read.settings, read.params)
    np.save(written / "tokens.npy", tokens)
    alike = f"{(continued == greedy).sum()} of {greedy.size}"
    return [kind, FEATURES[name], f"{abs(one_pass - logits).max():.1e}", f"{abs(steps - logits).max():.1e}", alike]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", help="a Python with torch and transformers; default: this one")
    peer = [parser.parse_args().peer_python or sys.executable, str(HERE / "open_models_transformers.py")]
    with tempfile.TemporaryDirectory() as place:
        theirs, ours = Path(place, "theirs"), Path(place, "ours")
        for step in ("make", "compute"):
            subprocess.run([*peer, step, str(theirs)], check=True, stderr=subprocess.DEVNULL)
        rows = {name: compared(name, theirs / name, ours / name) for name in FEATURES}
        subprocess.run([*peer, "compute", str(ours)], check=True, stderr=subprocess.DEVNULL)
        print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
        for name, (*cells, alike) in rows.items():
            back = abs(np.load(ours / name / "logits.npy") - np.load(theirs / name / "logits.npy")).max()
            print(f"| {' | '.join([*cells, f'{back:.1e}', alike])} |")


if __name__ == "__main__":
    main()
