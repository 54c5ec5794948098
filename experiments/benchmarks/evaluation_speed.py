"""Scoring by lmjax against lm-eval's own model "hf" and transformers' sliding windows: examples and tokens per second.

    python experiments/benchmarks/evaluation_speed.py --checkpoint runs/smollm2 --hf smollm2 --peer-python PYTHON

`--hf` is the Hugging Face folder that the checkpoint was imported from (`lmjax import-hf`), and PYTHON one that has
lm-eval 0.4.13 with its extra "hf"; run it in the repository's folder, beside which ../shared/data is. All are in
float32 and take turns in processes of their own.

Questions: the same requests of lm-eval's 5-shot tasks (experiments/harness/tasks) for "hf" and `lmjax harness`, and the
same set for `lmjax evaluate --task`. "hf" is given several batch sizes, and the fastest counts; "auto" is none of them,
since on a CPU it begins with 64 rows of the model's whole context. Windows: a part of wikitext2 for `lmjax evaluate
--data --stride 512`, and for the recipe in transformers' page on perplexity, as it stands and with the logits of the
window's new tokens alone; the faster counts. Loading is not timed. The first run is: lmjax compiles in it.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import Contender, clocked, median, print_machine, print_table, serve

TARGET = 2.0  # the other side's time, in ours
TASKS = Path(__file__).parents[1] / "harness" / "tasks"
DATA = Path("../shared/data")
SETS = {"hellaswag_400": "hellaswag", "arc_easy_a": "arc_easy"}  # lm-eval's task, lmjax's set


@functools.cache
def requests(task: str, shots: int, limit: int) -> list[Any]:
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=str(TASKS), include_defaults=False).load([task])["tasks"][task]
    own.set_config(key="num_fewshot", value=shots)
    own.set_fewshot_seed(seed=1234)
    own.build_all_requests(limit=limit, rank=0, world_size=1)
    return own.instances


def scored(model: Any, task: str, shots: int, limit: int) -> dict[str, Any]:
    found: list[list[tuple[float, bool]]] = []
    asked = requests(task, shots, limit)
    spent = clocked(lambda: found.append(model.loglikelihood(asked, disable_tqdm=True)))
    return spent | {"log_probs": [log_prob for log_prob, _ in found[0]]}


def text_of(characters: int) -> str:
    return (DATA / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:characters]


def prepare_hf(arguments: argparse.Namespace) -> Callable[..., dict[str, Any]]:
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(arguments.threads)
    model = HFLM(pretrained=str(arguments.hf), dtype="float32", device="cpu")

    @torch.no_grad()
    def windows(characters: int, context: int, stride: int, alone: bool) -> tuple[float, int]:
        """The nats of all tokens but the first, and how many these are; `alone` leaves the other logits out."""
        ids = torch.tensor([[model.prefix_token_id, *model.tok_encode(text_of(characters))]])
        nats, counted, done = 0.0, 0, 1
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + context, ids.shape[1])
            new, window = end - done, ids[:, begin:end]
            if alone:
                logits = model.model(window, logits_to_keep=new + 1).logits[0, :-1]
                nats += float(torch.nn.functional.cross_entropy(logits, window[0, -new:], reduction="sum"))
            else:
                labels = torch.where(torch.arange(end - begin) < end - begin - new, -100, window)
                nats += float(model.model(window, labels=labels).loss) * new
            counted, done = counted + new, end
            if end == ids.shape[1]:
                break
        return nats, counted

    def answer(what: str, batch: int = 1, **how: Any) -> dict[str, Any]:
        if what == "windows":
            return timed_windows(functools.partial(windows, **how))
        model.batch_size_per_gpu = batch
        return scored(model, **how)

    return answer


def prepare_lmjax(arguments: argparse.Namespace) -> Callable[..., dict[str, Any]]:
    from lmjax.evaluate.likelihood import Likelihood
    from lmjax.runs.evaluate import Reader
    from lmjax.runs.harness_model import HarnessModel
    from lmjax.runs.question_sets import Asked, examine

    model = HarnessModel(arguments.checkpoint)
    reader = Reader(arguments.checkpoint)  # of texts: no likeliest tokens are asked for

    @functools.cache
    def likelihood(context: int, stride: int) -> Likelihood:
        trained, entries = reader.trained, reader.trained.tokenizer.vocab_size
        return Likelihood(trained.model, trained.params, reader.mesh, entries=entries, stride=stride, context=context)

    def windows(characters: int, context: int, stride: int) -> tuple[float, int]:
        reader.likelihood = likelihood(context, stride)
        (one,) = reader.texts([text_of(characters)])
        return -one.log_prob, one.tokens

    def answer(what: str, **how: Any) -> dict[str, Any]:
        if what == "windows":
            return timed_windows(functools.partial(windows, **how))
        if what == "harness":
            return scored(model, **how)
        asked = Asked((SETS[how["task"]],), DATA, (how["shots"],), how["limit"])
        return clocked(lambda: list(examine(model.reader, asked)))

    return answer


def timed_windows(windows: Callable[[], tuple[float, int]]) -> dict[str, Any]:
    found: list[tuple[float, int]] = []
    spent = clocked(lambda: found.append(windows()))
    (nats, tokens) = found[0]
    return spent | {"loss": nats / tokens, "tokens": tokens}


def cases(arguments: argparse.Namespace) -> list[tuple[str, int, dict[str, tuple[str, dict[str, Any]]]]]:
    """Of each case its name, its examples (0: its tokens count), and what each way asks of which process."""
    found = []
    for task in arguments.tasks:
        how = {"task": task, "shots": arguments.shots, "limit": arguments.limit}
        ways = {f"hf, batch {size}": ("hf", {"what": "task", "batch": size, **how}) for size in arguments.batches}
        ways["lmjax harness"] = ("lmjax", {"what": "harness", **how})
        ways["lmjax evaluate --task"] = ("lmjax", {"what": "evaluate", **how})
        found.append((f"{task}, {arguments.shots} shots", arguments.limit, ways))
    for context in arguments.contexts:
        how = {"what": "windows", "characters": arguments.characters, "context": context, "stride": arguments.stride}
        ways = {
            "hf, the recipe": ("hf", {"alone": False, **how}),
            "hf, new tokens' logits alone": ("hf", {"alone": True, **how}),
            "lmjax evaluate --data": ("lmjax", how),
        }
        found.append((f"wikitext2, context {context}, stride {arguments.stride}", 0, ways))
    return found


def measure(ways: dict[str, tuple[str, dict]], contenders: dict[str, Contender], rounds: int) -> dict[str, list[dict]]:
    """Every way's answers, the first of which compiles; the ways take turns."""
    answers: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(1 + rounds):
        for way, (contender, request) in ways.items():
            answers[way].append(contenders[contender].ask(**request))
    return answers


def summary(name: str, examples: int, answers: dict[str, list[dict]]) -> dict[str, Any]:
    seconds = {way: median(own[1:]) for way, own in answers.items()}
    best = min((way for way in seconds if way.startswith("hf")), key=seconds.__getitem__)
    ways = {}
    for way, (first, *_) in answers.items():
        count = examples or first["tokens"]
        rates = {"per_second": count / seconds[way], "first_per_second": count / first["seconds"]}
        apart = None
        if "log_probs" in first:
            pairs = zip(first["log_probs"], answers[best][0]["log_probs"], strict=True)
            apart = max(abs(own - other) for own, other in pairs)
        elif "loss" in first:
            apart = abs(first["loss"] - answers[best][0]["loss"])
        ratio = seconds[best] / seconds[way]
        ways[way] = rates | {
            "seconds": seconds[way],
            "cpu": median(answers[way][1:], "cpu"),
            "apart": apart,
            "ratio": ratio,
        }
    return {"case": name, "unit": "examples" if examples else "tokens", "best": best, "target": TARGET, "ways": ways}


def print_summary(result: dict[str, Any]) -> None:
    print(f"\n{result['case']}: the other side's best is {result['best']}; target {result['target']:.1f}x")
    unit = result["unit"]
    heads = ("", f"{unit}/s", "first run's", "seconds", "CPU s", "nats apart", "best / this")
    rows = []
    for way, own in result["ways"].items():
        apart = "" if own["apart"] is None else f"{own['apart']:.1e}"
        rates = (f"{own['per_second']:,.2f}", f"{own['first_per_second']:,.2f}")
        rows.append((way, *rates, f"{own['seconds']:.2f}", f"{own['cpu']:.2f}", apart, f"{own['ratio']:.2f}x"))
    print_table(heads, rows)


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    return [int(word) for word in words(text)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="lmjax's, imported from --hf")
    parser.add_argument("--hf", type=Path, required=True, help="the Hugging Face folder")
    parser.add_argument("--peer-python", default=None, help="a Python with lm-eval[hf] (default: this one)")
    parser.add_argument("--tasks", type=words, default=list(SETS), help='with commas; "" is none')
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--limit", type=int, default=20, help="questions of each task")
    parser.add_argument("--batches", type=numbers, default=[1, 4, 8, 16], help="batch sizes of hf, with commas")
    parser.add_argument("--contexts", type=numbers, default=[1024, 2048], help="of the windows, with commas")
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--characters", type=int, default=24_000, help="of wikitext2's validation text")
    parser.add_argument("--rounds", type=int, default=3, help="in turns, after the first; the medians count")
    parser.add_argument("--threads", type=int, default=2, help="of every contender")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=("lmjax", "hf"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        prepare = prepare_lmjax if arguments.worker == "lmjax" else prepare_hf
        serve(lambda: prepare(arguments), arguments.threads)
        return
    paths = ["--checkpoint", str(arguments.checkpoint), "--hf", str(arguments.hf)]
    options = [*paths, "--threads", str(arguments.threads)]
    with (
        Contender("hf", __file__, ["--worker", "hf", *options], arguments.threads, arguments.peer_python) as theirs,
        Contender("lmjax", __file__, ["--worker", "lmjax", *options], arguments.threads) as ours,
    ):
        if not arguments.json:
            print_machine(arguments.threads)
        results = []
        for name, examples, ways in cases(arguments):
            answers = measure(ways, {"hf": theirs, "lmjax": ours}, arguments.rounds)
            results.append(summary(name, examples, answers))
            if not arguments.json:
                print_summary(results[-1])
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
