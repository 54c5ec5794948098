"""The samples of `lmjax harness` beside those of lm-eval's own model "hf", item by item: a table of differences.

    python experiments/harness/compare.py ours.jsonl hf/*/samples_*.jsonl --out results.jsonl

README.md beside this file says how the two are made. The documents that both have are compared; their requests must be
the same, word for word.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4  # nats


def samples(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, each with its task; lm-eval names its own files samples_TASK_DATE.jsonl."""
    task = path.stem.removeprefix("samples_").rpartition("_")[0]
    return [{"task": task} | json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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


def read(own: Any, other: Any) -> tuple[float | None, bool]:
    """By how much two log-likelihoods differ, if they are such; whether the rest, is-greedy or a text, is the same.

    lm-eval writes numbers as text in its own files.
    """
    if isinstance(own, list):
        return abs(float(own[0]) - float(other[0])), str(own[1]) == str(other[1])
    return (abs(own - float(other)), True) if isinstance(own, float) else (None, own == other)


def alike(own: Any, other: Any) -> bool:
    """Whether two values of a metric are the same; one that is made of a log-likelihood is a list with it."""
    return math.isclose(own[0], other[0], rel_tol=1e-6) if isinstance(own, list) else own == other


def line_of(task: str, found: list[dict[str, Any]]) -> str:
    pairs = [pair for item in found for pair in zip(item["lmjax"], item["hf"], strict=True)]
    found_alike = sum(all(alike(*values) for values in item["metrics"].values()) for item in found)
    gaps, same = zip(*(read(own, other) for own, other in pairs), strict=True)
    apart = [gap for gap in gaps if gap is not None]
    gap, within = (f"{max(apart):.2e}", sum(each <= TOLERANCE for each in apart)) if apart else ("", "")
    return f"| {task} | {len(found)} | {len(pairs)} | {gap} | {within} | {sum(same)} | {found_alike} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours", type=Path, help="what lmjax harness --out wrote")
    parser.add_argument("theirs", type=Path, nargs="+", help="what lm_eval --log_samples wrote")
    parser.add_argument("--out", type=Path, help="every item, as JSON lines")
    arguments = parser.parse_args()
    theirs = {(sample["task"], sample["doc_id"]): sample for path in arguments.theirs for sample in samples(path)}
    both = [sample for sample in samples(arguments.ours) if (sample["task"], sample["doc_id"]) in theirs]
    found = list(items(both, theirs))
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
