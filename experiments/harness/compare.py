"""The samples of `lmjax harness` beside those of lm-eval's own model "hf", item by item: a table of differences.

    python experiments/harness/compare.py ours.jsonl hf/*/samples_*.jsonl --out results.jsonl

README.md beside this file says how the two are made. Every request of ours must be one of theirs, word for word.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4  # nats


def samples(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def task_of(path: Path) -> str:
    """lm-eval names its files samples_TASK_DATE.jsonl."""
    return path.stem.removeprefix("samples_").rpartition("_")[0]


def responses(sample: dict[str, Any]) -> list[Any]:
    return [response for (response,) in sample["resps"]]


def requests(sample: dict[str, Any]) -> list[Any]:
    """What was asked, which lm-eval writes as a list or, in its own files, as an object."""
    own = sample["arguments"]
    return [list(each.values()) for each in own.values()] if isinstance(own, dict) else own


def items(ours: list[dict[str, Any]], theirs: dict[tuple[str, int], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for sample in ours:
        other = theirs[sample["task"], sample["doc_id"]]
        if requests(sample) != requests(other):
            raise SystemExit(f"{sample['task']} {sample['doc_id']}: the two were asked differently")
        found = {"task": sample["task"], "doc_id": sample["doc_id"]}
        metrics = {name: (sample[name], other[name]) for name in sample["metrics"]}
        yield found | {"lmjax": responses(sample), "hf": responses(other), "metrics": metrics}


def numbers(response: Any) -> tuple[float | None, Any]:
    """The log-likelihood of a response, if it is one, and what must be equal: whether it is greedy, or the text."""
    if isinstance(response, list):
        return float(response[0]), response[1] in (True, "True")
    try:
        return float(response), None
    except ValueError:
        return None, response


def line_of(task: str, found: list[dict[str, Any]]) -> str:
    pairs = [pair for item in found for pair in zip(item["lmjax"], item["hf"], strict=True)]
    read = [(numbers(own), numbers(other)) for own, other in pairs]
    gaps = [abs(own[0] - other[0]) for own, other in read if own[0] is not None and other[0] is not None]
    same = sum(own[1] == other[1] for own, other in read)
    alike = sum(all(own == other for own, other in item["metrics"].values()) for item in found)
    gap = f"{max(gaps):.2e}" if gaps else ""
    within = f"{sum(each <= TOLERANCE for each in gaps)}" if gaps else ""
    return f"| {task} | {len(found)} | {len(pairs)} | {gap} | {within} | {same} | {alike} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path, help="what lmjax harness --out wrote")
    parser.add_argument("theirs", type=Path, nargs="+", help="what lm_eval --log_samples wrote")
    parser.add_argument("--out", type=Path, help="every item, as JSON lines")
    arguments = parser.parse_args()
    theirs = {(task_of(path), sample["doc_id"]): sample for path in arguments.theirs for sample in samples(path)}
    found = list(items(samples(arguments.ours), theirs))
    print(
        "| task | documents | requests | largest difference, nats | within 1e-4 | same greedy or text | same metrics |"
    )
    print("|---|---|---|---|---|---|---|")
    for task in dict.fromkeys(item["task"] for item in found):
        print(line_of(task, [item for item in found if item["task"] == task]))
    if arguments.out:
        lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in found)
        arguments.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
