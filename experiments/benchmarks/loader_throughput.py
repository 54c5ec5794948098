"""How fast batches come from prepared token shards, on one core: a table of tokens/s.

    python experiments/benchmarks/loader_throughput.py --sequence-length 1024 --batch-size 32

Random tokens in documents of log-normal length are prepared in a temporary folder, then batches of steps that jump
through the run are built by each way of packing, from one source and from a mixture of three.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import numpy as np

from lmjax.data.loader import Loader
from lmjax.data.sources import MemoryDocuments
from lmjax.data.write_shards import TokenShards, prepare_shards
from lmjax.settings import DataSettings

TARGET = 20e6  # tokens/s
VARIANTS = {
    "split": {},
    "split, not shuffled": {"shuffle": False},
    "split, isolated documents": {"isolate_documents": True},
    "first fit": {"packing": "first_fit"},
}


class Letters:
    """A tokenizer of two letters per token, so that preparing costs nothing."""

    vocab_size, eos_id = 50_257, 50_256

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-16-le"), np.uint16).astype(np.int32) for text in texts]


def make_shards(folder: str, tokens: int, seed: int) -> TokenShards:
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(5.5, 1.2, tokens // 500).astype(int) + 1
    text = rng.integers(32, 50_256, int(lengths.max()) + 100_000).astype(np.uint16).tobytes().decode("utf-16-le")
    starts = rng.integers(0, 100_000, len(lengths))
    documents = [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    return prepare_shards(
        MemoryDocuments(documents), Letters(), folder, fingerprint="letters", shard_tokens=1 << 22, workers=1
    )


def tokens_per_second(loader: Loader, steps: int) -> float:
    for step in range(5):
        loader.batch_at(step)
    started = time.perf_counter()
    tokens = sum(loader.batch_at(step * 7919)["tokens"].size for step in range(steps))
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=30_000_000, help="tokens of each of the three sources, about")
    parser.add_argument("--steps", type=int, default=100, help="batches per measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements, interleaved; the median counts")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = [make_shards(f"{folder}/{seed}", arguments.tokens, seed) for seed in range(3)]
        loaders = {}
        for name, changes in VARIANTS.items():
            settings = DataSettings(
                sequence_length=arguments.sequence_length, batch_size=arguments.batch_size, **changes
            )
            loaders[name, "one source"] = Loader(shards[:1], [1.0], settings)
            loaders[name, "mixture of 3"] = Loader(shards, [0.6, 0.3, 0.1], settings)
        for _ in range(arguments.repeats):
            for key, loader in loaders.items():
                rates.setdefault(", ".join(key), []).append(tokens_per_second(loader, arguments.steps))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    if arguments.json:
        print(json.dumps(medians))
        return
    shape = f"{arguments.batch_size} x {arguments.sequence_length}"
    print(f"batches of {shape} on one core    million tokens/s    of the 20 million asked for")
    for name, rate in medians.items():
        print(f"{name:<44} {rate / 1e6:>9.1f} {rate / TARGET:>22.1f}x")


if __name__ == "__main__":
    main()
