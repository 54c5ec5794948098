"""Kills a run at random moments, starts it again, and compares its end with that of an uninterrupted run, bit for bit.

    python tests/stages/kill_and_resume.py --kills 200 --seed 1 --folder /tmp/kills

A kill -9 comes either at a random time after the start, while data are prepared, programs compiled or a checkpoint
read, or right after a checkpoint has begun to be written, or after one has become visible. Runs are forked from this
process, which has imported everything and used no device, so that a start costs little.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import lmjax.runs.load
import lmjax.runs.run
from lmjax.settings import EvaluationSettings, Pretrain
from lmjax.training.record import read_metrics
from tests import tiny

EVERY = 2  # steps between checkpoints
PATIENCE = 600.0  # seconds until something that has to happen is given up


def make_recipe(folder: Path, kills: int) -> Pretrain:
    """A run long enough that it cannot end before so many kills."""
    source = tiny.sentences(folder / "text.txt", 200)
    return tiny.pretrain(
        source,
        name="killed",
        data__batch_size=4,
        data__isolate_documents=True,
        model__dropout=0.1,
        train__steps=10 * EVERY + 5 * EVERY * kills,
        evaluation=EvaluationSettings(every=1000, batches=1),
        checkpoint__every=EVERY,
    )


def start(recipe: Pretrain, workdir: Path) -> int:
    """Forks a process that runs the recipe; returns its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = lmjax.run(recipe, workdir, quiet=True).exit_code
    except BaseException:  # whatever it was, this process ends here, and says why
        traceback.print_exc()
    finally:
        os._exit(code)


def names(workdir: Path) -> set[str]:
    """What lies among the checkpoints, whole or not."""
    try:
        return {path.name for path in (workdir / "checkpoints" / "pretrain").iterdir()}
    except FileNotFoundError:
        return set()


def kill_somewhere(child: int, workdir: Path, rng: random.Random) -> str | None:
    """Kills the run at a random moment; returns which kind of moment, or None when the run has ended before."""
    kind = rng.choice(["after a while", "while saving", "while saving", "after saving"])
    before, began = names(workdir), time.monotonic()
    delay, wanted = rng.uniform(0, 1.5), rng.randint(1, 2)

    def come() -> bool:
        new = names(workdir) - before
        if kind == "after a while":
            return time.monotonic() - began > delay
        if kind == "while saving":
            return len({name.partition(".")[0] for name in new}) >= wanted and any("tmp" in name for name in new)
        return sum(name.isdigit() for name in new) >= wanted

    while not come():
        if os.waitpid(child, os.WNOHANG)[0]:
            return None
        if time.monotonic() - began > PATIENCE:
            raise TimeoutError(f"{kind}: nothing of the kind happened in {PATIENCE:.0f} s")
        time.sleep(0.001)
    if kind != "after a while":
        time.sleep(rng.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    torn = any("tmp" in name for name in names(workdir))
    return f"{kind}, a torn checkpoint left" if torn else kind


def finish(child: int) -> None:
    """Waits for a run that nobody kills."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise RuntimeError(f"a run that was not killed ended with exit code {code}")


def same_end(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs: parameters bit for bit, every step's numbers in the record."""
    import jax
    import numpy as np

    states = [lmjax.runs.load.load(folder) for folder in (one, other)]
    pairs = zip(*(jax.tree_util.tree_leaves_with_path(state.params) for state in states), strict=True)
    differing = [
        jax.tree_util.keystr(path) for (path, a), (_, b) in pairs if np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]
    told = ("step", "loss", "grad_norm", "learning_rate", "epochs", "validation_loss")
    records = [[{k: line[k] for k in told if k in line} for line in read_metrics(folder)] for folder in (one, other)]
    if states[0].step != states[1].step:
        differing.append(f"steps {states[0].step} and {states[1].step}")
    return differing + (["the records"] if records[0] != records[1] else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are kept (default: a temporary folder)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kill_and_resume-"))
    folder.mkdir(parents=True, exist_ok=True)
    recipe, rng = make_recipe(folder, arguments.kills), random.Random(arguments.seed)
    finish(start(recipe, folder / "whole"))
    moments: Counter[str] = Counter()
    while moments.total() < arguments.kills:
        moment = kill_somewhere(start(recipe, folder / "killed"), folder / "killed", rng)
        if moment is None:
            print(f"the run ended after {moments.total()} kills; expected {arguments.kills}")
            return 1
        moments[moment] += 1
    finish(start(recipe, folder / "killed"))
    for moment, count in sorted(moments.items()):
        print(f"{count:4} killed {moment}")
    differing = same_end(folder / "whole", folder / "killed")
    print(f"differs in {', '.join(differing)}" if differing else "the same end, bit for bit")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
