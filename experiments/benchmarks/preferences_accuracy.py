"""How often a reward model of `experiments/preferences.py` agrees with people, beside a rule that reads no words.

For each public set: the pairs of the held-out tenth, the share that its reward model puts in the right order, and the
share where the longer answer (in characters) is the better one, on the same pairs. Pairs of one prompt are not
independent, so standard errors are over prompts. Equal scores or lengths count one half.

    lmjax run preferences
    python experiments/benchmarks/preferences_accuracy.py [--workdir runs/preferences]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from measuring import print_table

from lmjax.data.conversation_rows import open_rows
from lmjax.files import read_json_if_there
from lmjax.runs.score import open_scorer, scores_of

SETS = ("hh_rlhf", "oasst_en", "pref_demo")


def pairs_in_order(values_K: Sequence[float], ranks_K: Sequence[int]) -> tuple[float, int]:
    """How many pairs of differently ranked answers have values in the order of the ranks (equal: 1/2), of how many."""
    values, ranks = np.asarray(values_K, np.float64), np.asarray(ranks_K)
    better = ranks[:, None] < ranks[None, :]
    difference = values[:, None] - values[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0))[better].sum()), int(better.sum())


def held_out(stage: Path) -> Iterator[tuple[float, float, int]]:
    """Of each held-out prompt: pairs that the reward model orders rightly, that length does, and all of them."""
    recipe, start = open_scorer(stage)
    for source in recipe.dialogue.validation:
        rows, _, records = open_rows(source, recipe.dialogue, start.tokenizer, "ranking")
        for record, scores_K in zip(records, scores_of(recipe, start, rows), strict=True):
            ranks = record.ranks[: len(scores_K)]
            right, pairs = pairs_in_order(scores_K.tolist(), ranks)
            longer, _ = pairs_in_order([len(answer) for answer in record.answers[: len(scores_K)]], ranks)
            yield right, longer, pairs


def share(right_B: np.ndarray, pairs_B: np.ndarray) -> tuple[float, float]:
    """The share of all pairs, and its standard error with prompts as the independent draws."""
    mean = right_B.sum() / pairs_B.sum()
    return mean, math.sqrt(((right_B - mean * pairs_B) ** 2).sum()) / pairs_B.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/preferences"))
    folder = parser.parse_args().workdir
    rows = []
    for name in SETS:
        right_B, longer_B, pairs_B = np.array(list(held_out(folder / name))).T
        found = [share(each, pairs_B) for each in (right_B, longer_B, right_B - longer_B)]
        summary = read_json_if_there(folder / name / "summary.json") or {}
        numbers = [f"{mean:.3f} +- {error:.3f}" for mean, error in found]
        rows.append([name, f"{len(pairs_B)}", f"{pairs_B.sum():.0f}", *numbers, f"{summary['steps']}"])
    heads = ("", "prompts", "pairs", "reward model", "longer answer", "difference", "steps")
    print_table(heads, rows)


if __name__ == "__main__":
    main()
