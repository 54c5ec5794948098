"""Early stopping: by the evaluations alone, in the order in which they were made."""

import pytest

from lmjax.training.patience import Patience


def lines(name, values):
    return [{"step": step, name: value} for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "values", "ended_after"),
    [
        ("validation_accuracy", [0.5, 0.6, 0.6, 0.59, 0.9], 4),  # an equal one is no improvement
        ("validation_accuracy", [0.5, 0.6, 0.5, 0.7, 0.6, 0.7], 6),
        ("validation_loss", [3.0, 2.0, 2.5, 1.9, 2.0, 2.0, 0.1], 6),
        ("validation_loss", [3.0, 2.0, 1.0], None),
        ("validation_accuracy", [float("nan"), float("nan"), 0.1, 0.0], None),
    ],
)
def test_a_run_ends_after_so_many_evaluations_behind_the_best(name, values, ended_after):
    patience, ended = Patience(2, name), None
    for number, line in enumerate(lines(name, values), 1):
        patience.see([{"step": 0, "loss": 1.0}, line])  # other lines of the record are passed over
        if ended is None and patience.exhausted:
            ended = number
    assert ended == ended_after


def test_a_resumed_run_knows_it_from_its_record():
    values = [0.5, 0.6, 0.4, 0.3]
    at_once = Patience(2, "validation_f1")
    at_once.see(lines("validation_f1", values))
    assert at_once.exhausted
    before = Patience(2, "validation_f1")
    before.see(lines("validation_f1", values[:3]))
    assert not before.exhausted


def test_without_patience_no_run_ends_early():
    patience = Patience(None, "validation_loss")
    patience.see(lines("validation_loss", [1.0] * 100))
    assert not patience.exhausted
