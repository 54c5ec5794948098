"""Steps of SFT and DPO and iterations of GRPO against TRL's trainers, PPO against PyTorch by hand: a table of ratios.

    python experiments/benchmarks/rlhf_speed.py

TRL 1 has no PPO any more, so that PPO's other side is `rlhf_torch.py`; lmjax's GRPO is its PPO with the mean of a
prompt's group for the baseline. Both sides start from the same weights and see the same tokens, in float32, with the
same minibatches, epochs, optimizer and reward; every response has all its tokens. The losses of the first steps of SFT
and DPO must agree, and those of PPO, which samples but learns from responses that both are given. Needs the extra
[bench].
"""

import argparse
import importlib
import json
import math
import sys
import tempfile
from pathlib import Path

from gpt2_reference import forward_flops
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
from rlhf_work import GROUP, PPO, PROMPT, RESPONSE, RESPONSES, SHAPE, STAGES, UPDATES

WARM = 4  # steps, or iterations, before the first that counts


def work(arguments: argparse.Namespace) -> None:
    def prepare():
        if arguments.worker == "lmjax":
            from rlhf_lmjax import prepare as prepared

            step, losses = prepared(arguments.stage, arguments.folder)
        else:
            peer = importlib.import_module("rlhf_torch" if arguments.stage == PPO else "rlhf_trl")
            step, losses = peer.prepare(arguments.stage, arguments.folder, arguments.threads)
        for _ in range(WARM):
            step()
        first = losses()[:WARM]
        return lambda: {"losses": first, **clocked(step)}

    serve(prepare, arguments.threads)


def measure(stage: str, rounds: int, threads: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:

        def contender(name: str) -> Contender:
            arguments = ["--worker", name, "--stage", stage, "--folder", folder, "--threads", str(threads)]
            return Contender(name, __file__, arguments, threads)

        with contender("peer") as theirs, contender("lmjax") as ours, products(threads) as machine:
            answers = take_turns([theirs, ours, machine], rounds)
    first = [answers[name][0]["losses"] for name in ("peer", "lmjax")]
    if not all(math.isclose(*pair, rel_tol=1e-3) for pair in zip(*first, strict=True)):
        sys.exit(f"{stage}: the first losses differ, so these are not the same steps: {first}")
    samples, target = STAGES[stage]
    result: dict = {
        "stage": stage,
        "samples": samples,
        "target": target,
        "losses": first,
        "product_rate": product_rate(answers),
    }
    for name in ("peer", "lmjax"):
        result |= {f"{name}_seconds": median(answers[name]), f"{name}_cpu_seconds": median(answers[name], "cpu")}
    return result | {"ratio": result["peer_seconds"] / result["lmjax_seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, help="only this one")
    parser.add_argument("--rounds", type=int, default=9, help="steps or iterations of each; the medians count")
    parser.add_argument("--threads", type=int, default=2, help="of every contender")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=("peer", "lmjax"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    stages = [arguments.stage] if arguments.stage else STAGES
    results = [measure(stage, arguments.rounds, arguments.threads) for stage in stages]
    if arguments.json:
        print(json.dumps(results))
        return
    print_machine(arguments.threads)
    print(f"{SHAPE.layers} layers, d {SHAPE.width}, vocabulary {SHAPE.vocabulary}, float32")
    print("products: GFLOP/s of large products, in turns; share: what is reached of them by the passes of a plain loop")
    own = ("ms", "CPU ms", "samples/s", "share")
    heads = ("", "other", "ms", *own[1:], "lmjax " + own[0], *own[1:], "products", "ratio", "target")
    print_table(heads, [_line(result) for result in results])


def _flops(stage: str) -> float:
    """Of a step or an iteration, as a plain loop does it: every row whole, every logit of a row that is learned from.

    A training pass is three forward passes. GRPO samples, reads the reference and, where there are several updates, the
    probabilities before them; PPO's value model reads and is trained as often, without logits.
    """
    if stage not in UPDATES:
        passes = 3 if stage == "sft" else 4
        return passes * SHAPE.rows * SHAPE.length * forward_flops(SHAPE, SHAPE.length)
    epochs, minibatches = UPDATES[stage]
    passes = 2 + 3 * epochs + (epochs * minibatches > 1)
    forward = forward_flops(SHAPE, PROMPT + RESPONSE)
    valued = (1 + 3 * epochs) * (stage == PPO) * (forward - 2 * SHAPE.width * SHAPE.vocabulary)
    return RESPONSES * (PROMPT + RESPONSE) * (passes * forward + valued)


def _rows(stage: str) -> str:
    return f"PPO, {RESPONSES} x 1" if stage == PPO else f"GRPO, {RESPONSES // GROUP} x {GROUP}"


def _line(result: dict) -> tuple[str, ...]:
    what = {
        "sft": f"SFT step, {SHAPE.rows} x {SHAPE.length}",
        "dpo": f"DPO step, {SHAPE.rows // 2} x 2 x {SHAPE.length}",
    } | {
        name: f"{_rows(name)} of {PROMPT} + {RESPONSE}, {epochs} x {minibatches} updates"
        for name, (epochs, minibatches) in UPDATES.items()
    }
    cells = []
    for name in ("peer", "lmjax"):
        seconds = result[f"{name}_seconds"]
        cells += [f"{seconds * 1e3:,.0f}", f"{result[f'{name}_cpu_seconds'] * 1e3:,.0f}"]
        cells += [f"{result['samples'] / seconds:.2f}", share(_flops(result["stage"]), seconds, result["product_rate"])]
    machine = f"{result['product_rate'] / 1e9:,.0f}"
    other = "PyTorch" if result["stage"] == PPO else "TRL"
    target = f"{result['target']:.1f}x" if result["target"] else ""
    return what[result["stage"]], other, *cells, machine, f"{result['ratio']:.2f}x", target


if __name__ == "__main__":
    main()
