"""Whether damage to a checkpoint is noticed, and what noticing it costs.

    python experiments/benchmarks/checkpoint_damage.py --cases 10000

A checkpoint of a small state is damaged in one place: a flipped bit, a truncated, emptied, overwritten, removed, added
or swapped file. Then its state, its recipe and its metrics are read. A case is noticed (an error), harmless (all three
are what was saved: a file that only notes times) or silent (anything else came back without a word). The cost is
measured on a state of --megabytes: the digests of a save, which a background thread computes, beside the whole save;
and verifying before a restore, beside the restore. Files are read from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Undo = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--megabytes", type=int, default=1_500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        outcomes = outcomes_of(arguments.cases, Path(folder) / "small", arguments.seed)
        costs = cost(Path(folder) / "large", arguments.megabytes) if arguments.megabytes else {}
    if arguments.json:
        print(json.dumps({"outcomes": {f"{kind}: {seen}": n for (kind, seen), n in outcomes.items()}, **costs}))
        return
    print(f"{'damage':24}{'noticed':>10}{'harmless':>10}{'silent':>10}")
    for kind in sorted({kind for kind, _ in outcomes}):
        print(f"{kind:24}" + "".join(f"{outcomes[kind, seen]:>10,}" for seen in ("noticed", "harmless", "silent")))
    if costs:
        print(f"a save of {costs['megabytes']:,.0f} MB         {costs['save_seconds']:>8.2f} s")
        print(f"of it the digests, behind   {costs['digest_seconds']:>8.2f} s ({costs['digest_share']:.1%})")
        print(f"a restore                   {costs['restore_seconds']:>8.2f} s")
        print(f"of it verifying             {costs['verify_seconds']:>8.2f} s ({costs['verify_share']:.1%})")


def outcomes_of(cases: int, folder: Path, seed: int = 0) -> Counter[tuple[str, str]]:
    """How many cases of each kind of damage were noticed, harmless or silent; `folder` is filled with checkpoints."""
    from lmjax.checkpoints.checkpoint import Checkpoint

    states = {step: small_state(step) for step in (1, 2)}
    save(folder, states)
    checkpoint, other = Checkpoint(folder / "2"), folder / "1"
    right = (checkpoint.extras(), checkpoint.metrics())
    draw, outcomes = random.Random(seed), Counter[tuple[str, str]]()
    for number in range(cases):
        kind = list(DAMAGES)[number % len(DAMAGES)]
        undo = DAMAGES[kind](checkpoint.path, other, draw)
        outcomes[kind, _seen(checkpoint, states[2], right)] += 1
        undo()
    assert _seen(checkpoint, states[2], right) == "harmless", "the damage was not undone"
    return outcomes


def _seen(checkpoint: Any, state: Any, right: tuple[Any, Any]) -> str:
    """What reading all of the checkpoint leads to."""
    from lmjax.checkpoints.checkpoint import DamagedCheckpointError
    from lmjax.errors import UserError

    errors = 0
    try:
        same = same_bits(checkpoint.restore(_abstract(state)), state)
    except (UserError, DamagedCheckpointError):
        same, errors = True, 1
    for read, wanted in zip((checkpoint.extras, checkpoint.metrics), right, strict=True):
        try:
            same &= read() == wanted
        except UserError:
            errors += 1
    return "silent" if not same else "noticed" if errors else "harmless"


def small_state(step: int) -> Any:
    """Step, parameters and Adam's moments, which differ from step to step."""
    import jax
    import jax.numpy as jnp
    import optax

    from lmjax.optim.train_state import TrainState

    params = {name: jax.random.normal(jax.random.key(10 * step + i), (48, 32)) for i, name in enumerate("abc")}
    moments = jax.tree.map(lambda x: x + 0.5 * step, optax.adam(1e-3).init(params))
    return TrainState(jnp.int32(step), params, moments)


def save(folder: Path, states: dict[int, Any]) -> None:
    from lmjax.checkpoints.checkpoint import Checkpointer
    from lmjax.settings import CheckpointSettings

    settings = CheckpointSettings(keep_last=2, keep_best=1)
    with Checkpointer(folder, settings, recipe_json="{}", tokenizer_folder=None, report=print) as writer:
        for step, state in states.items():
            writer.save(state, step, {"validation_loss": 1.0 / step})


def _abstract(state: Any) -> dict[str, Any]:
    import jax

    tree = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def same_bits(restored: dict[str, Any], state: Any) -> bool:
    import jax
    import numpy as np

    wanted = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    pairs = zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def _chosen(folder: Path, draw: random.Random) -> Path:
    """A file with bytes in it: by turns any, or with a probability as its size."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = [path.stat().st_size for path in files] if draw.random() < 0.5 else None
    return draw.choices(files, sizes)[0]


def _rewritten(path: Path, content: bytes) -> Undo:
    before = path.read_bytes()
    path.write_bytes(content)
    return lambda: path.write_bytes(before) and None


def _flip(folder: Path, other: Path, draw: random.Random) -> Undo:
    path = _chosen(folder, draw)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return _rewritten(path, bytes(content))


def _truncate(folder: Path, other: Path, draw: random.Random) -> Undo:
    path = _chosen(folder, draw)
    return _rewritten(path, path.read_bytes()[: draw.randrange(path.stat().st_size)])


def _empty(folder: Path, other: Path, draw: random.Random) -> Undo:
    return _rewritten(_chosen(folder, draw), b"")


def _overwrite(folder: Path, other: Path, draw: random.Random) -> Undo:
    path = _chosen(folder, draw)
    content = bytearray(path.read_bytes())
    begin = draw.randrange(len(content))
    end = min(len(content), begin + 512)
    content[begin:end] = draw.randbytes(end - begin)
    return _rewritten(path, bytes(content))


def _remove(folder: Path, other: Path, draw: random.Random) -> Undo:
    path = _chosen(folder, draw)
    before = path.read_bytes()
    path.unlink()
    return lambda: path.write_bytes(before) and None


def _add(folder: Path, other: Path, draw: random.Random) -> Undo:
    path = _chosen(folder, draw)
    added = path.with_name(f"added-{draw.randrange(1 << 30)}")
    added.write_bytes(path.read_bytes())
    return added.unlink


def _swap_within(folder: Path, other: Path, draw: random.Random) -> Undo:
    one, two = _chosen(folder, draw), _chosen(folder, draw)
    return _swapped(one, two)


def _swap_steps(folder: Path, other: Path, draw: random.Random) -> Undo:
    return _swapped(_chosen(folder, draw), _chosen(other, draw))


def _swap_folders(folder: Path, other: Path, draw: random.Random) -> Undo:
    """A whole part (state, extras) of one step, or the whole step, for the other's."""
    part = draw.choice(["", "state", "extras"])
    apart = folder.with_name("apart")

    def swap() -> None:
        (folder / part).rename(apart)
        (other / part).rename(folder / part)
        apart.rename(other / part)

    swap()
    return swap


def _swapped(one: Path, two: Path) -> Undo:
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)

    def undo() -> None:
        one.write_bytes(a)
        two.write_bytes(b)

    return undo


DAMAGES: dict[str, Callable[[Path, Path, random.Random], Undo]] = {
    "bit flipped": _flip,
    "truncated": _truncate,
    "bit flipped again": _flip,  # half of all cases are flips and truncations
    "emptied": _empty,
    "512 bytes overwritten": _overwrite,
    "file removed": _remove,
    "file added": _add,
    "two files swapped": _swap_within,
    "file of another step": _swap_steps,
    "folder of another step": _swap_folders,
}


def cost(folder: Path, megabytes: int) -> dict[str, float]:
    """Seconds of a save and of its digests, of a restore and of its verifying."""
    import jax
    import jax.numpy as jnp

    from lmjax.checkpoints import checkpoint as module
    from lmjax.optim.train_state import TrainState

    rows = max(1, megabytes * 1_000_000 // (4 * 4_096 * 8))
    params = {f"w{i}": jax.random.normal(jax.random.key(i), (rows, 4_096)) for i in range(8)}
    state = jax.block_until_ready(TrainState(jnp.int32(1), params, ()))
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = function(*given, **named)
            seconds[name] = time.perf_counter() - started
            return result

        return call

    write, check = module.write_digests, module.verify
    module.write_digests, module.verify = timed("digest", write), timed("verify", check)
    timed("save", save)(folder, {1: state})
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    timed("restore", module.Checkpoint(folder / "1").restore)(_abstract(state))
    module.write_digests, module.verify = write, check
    return {
        "megabytes": size,
        "save_seconds": seconds["save"],
        "digest_seconds": seconds["digest"],
        "digest_share": seconds["digest"] / seconds["save"],
        "restore_seconds": seconds["restore"],
        "verify_seconds": seconds["verify"],
        "verify_share": seconds["verify"] / seconds["restore"],
    }


if __name__ == "__main__":
    main()
