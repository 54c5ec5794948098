"""How well classes and scores are predicted: accuracy, F1, Matthews' correlation, Pearson's and Spearman's.

In: arrays of N predictions and of the N right answers. Out: numbers. A measure whose denominator is 0, such as a
correlation with a constant, is 0. Raises ValueError for arrays of different lengths, or without an example.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Array = np.ndarray


def accuracy(predicted: Array, right: Array) -> float:
    """The share of equal entries."""
    predicted, right = _pair(predicted, right)
    return float((predicted == right).mean())


def f1(predicted: Array, right: Array, of: int = 1) -> float:
    """The harmonic mean of precision and recall of the class `of`: 2 x hits / (predicted + right ones)."""
    predicted, right = _pair(predicted, right)
    hits = int(((predicted == of) & (right == of)).sum())
    return _ratio(2 * hits, int((predicted == of).sum() + (right == of).sum()))


def macro_f1(predicted: Array, right: Array, classes: int) -> float:
    """The mean of the F1 of each class that was predicted or is right somewhere."""
    predicted, right = _pair(predicted, right)
    seen = [each for each in range(classes) if (predicted == each).any() or (right == each).any()]
    return float(np.mean([f1(predicted, right, each) for each in seen]))


def matthews(predicted: Array, right: Array, classes: int = 2) -> float:
    """Matthews' correlation coefficient (Matthews 1975), for more than two classes that of Gorodkin (2004), R_K."""
    predicted, right = _pair(predicted, right)
    table = np.zeros((classes, classes))
    np.add.at(table, (right, predicted), 1)
    total, hits = table.sum(), np.trace(table)
    of_right, of_predicted = table.sum(axis=1), table.sum(axis=0)
    spread = (total**2 - of_predicted @ of_predicted) * (total**2 - of_right @ of_right)
    return _ratio(hits * total - of_right @ of_predicted, spread**0.5)


def pearson(predicted: Array, right: Array) -> float:
    """Pearson's correlation coefficient of two series of numbers."""
    predicted, right = _pair(np.asarray(predicted, np.float64), np.asarray(right, np.float64))
    if np.ptp(predicted) == 0 or np.ptp(right) == 0:
        return 0.0
    one, two = ((each - each.mean()) / np.ptp(each) for each in (predicted, right))
    return _ratio(one @ two, (one @ one * (two @ two)) ** 0.5)


def spearman(predicted: Array, right: Array) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, in which equal values share their mean rank."""
    from scipy.stats import rankdata  # its import takes half a second

    predicted, right = _pair(predicted, right)
    return pearson(rankdata(predicted), rankdata(right))


def class_measures(predicted: Array, right: Array, classes: int) -> dict[str, float]:
    """Accuracy, F1 and Matthews' correlation of class numbers, int [N].

    F1 is that of the second class of two, and the mean over the classes of more.
    """
    own = f1(predicted, right) if classes == 2 else macro_f1(predicted, right, classes)
    return {
        "accuracy": accuracy(predicted, right),
        "f1": own,
        "matthews": matthews(predicted, right, classes),
    }


def score_measures(predicted: Array, right: Array) -> dict[str, float]:
    """Pearson's and Spearman's correlations, float [N]."""
    return {"pearson": pearson(predicted, right), "spearman": spearman(predicted, right)}


def merged(values: Array, examples: Array, count: int, how: Literal["mean", "vote"] = "mean") -> Array:
    """What the windows of an example say together, float64 [count, C], of `values` [W, C] and their examples, int [W].

    "mean" is the mean of the windows' probabilities, or of their scores; "vote" the share of the windows in which a
    class is the likeliest. Raises ValueError for an example without a window.
    """
    windows = np.bincount(examples, minlength=count)
    if not windows.all() or len(windows) > count:
        raise ValueError(f"{count} examples, of which {int((windows == 0).sum())} have no window; expected one each")
    values = np.asarray(values, np.float64)
    counted = values if how == "mean" else np.eye(values.shape[1])[values.argmax(axis=1)]
    total = np.zeros((count, values.shape[1]))
    np.add.at(total, examples, counted)
    return total / windows[:, None]


def chosen(values: Array, examples: Array, count: int, how: Literal["mean", "vote"] = "mean") -> Array:
    """The class, int64 [count], that `merged` gives the most; of equal votes the one of the larger mean."""
    mean, shares = (merged(values, examples, count, each) for each in ("mean", how))
    best = shares >= shares.max(axis=1, keepdims=True) - 1e-9
    return np.where(best, mean, -np.inf).argmax(axis=1)


def _pair(predicted: Array, right: Array) -> tuple[Array, Array]:
    predicted, right = np.asarray(predicted), np.asarray(right)
    if predicted.shape != right.shape or predicted.ndim != 1 or not predicted.size:
        raise ValueError(f"predictions {predicted.shape} and answers {right.shape}: expected one length above 0")
    return predicted, right


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0
