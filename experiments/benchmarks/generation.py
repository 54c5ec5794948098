"""Generation by lmjax against transformers' generate() with its cache: a table of medians and ratios.

    python experiments/benchmarks/generation.py --size gpt2_124m --rows 1

The same weights, the same random prompts, greedy decoding and the same number of new tokens, in float32. The share of
tokens on which the two agree is printed: of weights that were never trained the two best logits are sometimes as good
as equal. Needs the extra [bench].
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from gpt2_reference import SHAPES, VOCABULARY, Numbers, torch_model
from measuring import Contender, clocked, median, print_machine, print_table, product_rate, products, serve, take_turns

TARGET = 2.0  # the other side's time, in ours
CASES = (("small", 1), ("small", 8), ("gpt2_124m", 1), ("gpt2_124m", 8))


def prompts_of(arguments: argparse.Namespace) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, (arguments.rows, arguments.prompt))


def prepare_torch(arguments: argparse.Namespace):
    import torch

    model = torch_model(SHAPES[arguments.size], arguments.folder, arguments.threads).eval()
    model.generation_config.eos_token_id = None  # else it would look for the end, and perhaps stop
    prompts = torch.from_numpy(prompts_of(arguments))
    everywhere = torch.ones_like(prompts)
    how = {"max_new_tokens": arguments.tokens, "do_sample": False, "pad_token_id": 0, "use_cache": True}

    def generate() -> list[list[int]]:
        out = model.generate(prompts, attention_mask=everywhere, **how)
        return out[:, arguments.prompt :].tolist()

    return generate


def prepare_lmjax(arguments: argparse.Namespace):
    from lmjax.generate.decode import generate
    from lmjax.generate.sampling import SamplingSettings
    from lmjax.interop.huggingface import read_model
    from lmjax.model.language_model import LanguageModel
    from lmjax.parallel.start_jax import prepare_jax

    prepare_jax()
    imported = read_model(arguments.folder)
    model = LanguageModel(imported.settings)
    prompts = [Numbers().decode(row) for row in prompts_of(arguments).tolist()]
    greedy = SamplingSettings(max_tokens=arguments.tokens, temperature=0)
    return lambda: [c.tokens for c in generate(model, imported.params, Numbers(), prompts, greedy)]


def work(arguments: argparse.Namespace) -> None:
    def prepare():
        call = prepare_lmjax(arguments) if arguments.worker == "lmjax" else prepare_torch(arguments)
        call()

        def answer() -> dict:
            made: list[list[list[int]]] = []
            return clocked(lambda: made.append(call())) | {"tokens": made[0]}

        return answer

    serve(prepare, arguments.threads)


def measure(size: str, rows: int, arguments: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        how = {"size": size, "rows": rows, "prompt": arguments.prompt, "tokens": arguments.tokens}
        how |= {"threads": arguments.threads, "folder": folder}
        options = [part for name, value in how.items() for part in (f"--{name}", str(value))]

        def contender(name: str) -> Contender:
            return Contender(name, __file__, ["--worker", name, *options], arguments.threads)

        with contender("transformers") as theirs, contender("lmjax") as ours, products(arguments.threads) as machine:
            answers = take_turns([theirs, ours, machine], arguments.rounds)
    result = {"size": size, "rows": rows, "product_rate": product_rate(answers)}
    for name in ("transformers", "lmjax"):
        result |= {f"{name}_seconds": median(answers[name]), f"{name}_cpu_seconds": median(answers[name], "cpu")}
    ratio = result["transformers_seconds"] / result["lmjax_seconds"]
    theirs, ours = (np.array(answers[name][0]["tokens"]) for name in ("transformers", "lmjax"))
    return result | {"ratio": ratio, "target": TARGET, "agreement": float((theirs == ours).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, help="only this one; with --rows")
    parser.add_argument("--rows", type=int, default=1, help="prompts at once, with --size")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each")
    parser.add_argument("--rounds", type=int, default=5, help="in turns; the medians count")
    parser.add_argument("--threads", type=int, default=2, help="of every contender")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=("lmjax", "transformers"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    cases = [(arguments.size, arguments.rows)] if arguments.size else CASES
    results = [measure(size, rows, arguments) for size, rows in cases]
    if arguments.json:
        print(json.dumps(results))
        return
    print_machine(arguments.threads)
    print(f"greedy, {arguments.prompt} tokens of prompt and {arguments.tokens} new ones, float32")
    print("products: GFLOP/s of large products, in turns with the others; a token of few rows is bound by memory")
    heads = (
        "tokens/s",
        "transformers",
        "lmjax",
        "CPU s",
        "CPU s",
        "same tokens",
        "products",
        "transformers / lmjax",
        "target",
    )
    print_table(heads, [_line(result, arguments.tokens) for result in results])


def _line(result: dict, tokens: int) -> tuple[str, ...]:
    made = result["rows"] * tokens
    rates = [f"{made / result[f'{name}_seconds']:,.0f}" for name in ("transformers", "lmjax")]
    cpu = [f"{result[f'{name}_cpu_seconds']:.2f}" for name in ("transformers", "lmjax")]
    name = f"{result['size']}, {result['rows']} rows"
    same = f"{result['agreement']:.0%}"
    machine = f"{result['product_rate'] / 1e9:,.0f}"
    return name, *rates, *cpu, same, machine, f"{result['ratio']:.2f}x", f"{result['target']:.1f}x"


if __name__ == "__main__":
    main()
