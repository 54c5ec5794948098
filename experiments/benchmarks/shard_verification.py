"""What verifying token shards costs, once for each file and machine, and what it costs when they are known.

    python experiments/benchmarks/shard_verification.py --gigabytes 1

Random tokens of 16 bits in files of 256 MiB are verified as `lmjax run` does before the first step, and again. Files
are read from the page cache: what a disk or a network adds is theirs.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

ENTRIES = 50_257


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    from lmjax.data.shard_writer import ShardWriter
    from lmjax.data.token_shards import TokenShards
    from lmjax.data.verified import verify_once
    from lmjax.data.write_shards import SHARD_TOKENS

    draw = np.random.default_rng(0)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        writer = ShardWriter(Path(folder), np.dtype(np.uint16), SHARD_TOKENS)
        for _ in range(round(arguments.gigabytes * 100)):
            writer.add(draw.integers(0, ENTRIES, 5_000_000, dtype=np.uint16))
            lengths = np.full(5_000, 1_000)
            writer.end_documents(lengths, lengths)
        writer.finish("random tokens", {}, fingerprint="random", vocab_size=ENTRIES, eos_id=0)
        for _ in range(2):
            started = time.perf_counter()
            verify_once(TokenShards(folder), ENTRIES, lambda line: None)
            seconds.append(time.perf_counter() - started)
    if arguments.json:
        print(json.dumps({"gigabytes": arguments.gigabytes, "first_seconds": seconds[0], "again_seconds": seconds[1]}))
        return
    print(f"{arguments.gigabytes:.1f} GB verified: {seconds[0]:.2f} s; when they are known: {seconds[1]:.4f} s")


if __name__ == "__main__":
    main()
