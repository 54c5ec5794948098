"""The second step, from loss to accuracy: a sigmoid, so that a budget predicts what a model can do.

In: approach 3's fit of a table that has accuracies. Out: the sigmoid's constants, and predictions of the rows held out:
from their measured loss, and from N and D alone through approach 3. Bhagia and others, arXiv:2412.04403, section 3.2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError
from lmjax.scaling.bootstrap import FitOptions, drawn, interval, intervals
from lmjax.scaling.forms import grid
from lmjax.scaling.minimize import minimize
from lmjax.scaling.result import HeldOut, Result
from lmjax.scaling.table import Table

FEWEST_ROWS = 6
SLOPES = np.array([0.5, 1.0, 2.0, 4.0])  # per unit of loss, where fits start


def second_step(first: Result, options: FitOptions) -> Result:
    """accuracy = floor + (ceiling - floor) / (1 + exp(slope (loss - midpoint))), 0 <= floor <= ceiling <= 1.

    `first` is the result of approach 3. Raises UserError for accuracies beyond 0 to 1, or for fewer than six.
    """
    table = first.table
    accuracy_R = table.extra["accuracy"]
    known_R = np.isfinite(accuracy_R)
    column = f"--accuracy-column {table.columns['accuracy']!r}"
    if known_R.sum() < FEWEST_ROWS:
        raise UserError(f"{column}: {known_R.sum()} rows have an accuracy, expected at least {FEWEST_ROWS}; add rows")
    measured = accuracy_R[known_R]
    if measured.min() < 0 or measured.max() > 1:
        what = f"{column}: values from {measured.min():g} to {measured.max():g}"
        raise UserError(f"{what}, expected shares from 0 to 1; divide percentages by 100")
    data = (np.where(known_R, accuracy_R, 0.0), table.loss)
    weights_1R = known_R[None].astype(np.float64)
    starts = grid(SLOPES, np.quantile(table.loss[known_R], [0.2, 0.5, 0.8]))
    starts = np.concatenate([np.tile([-3.0, 3.0], (len(starts), 1)), np.log(starts[:, :1]), starts[:, 1:]], axis=1)
    theta = minimize(_residuals, starts[None], data, weights_1R).theta
    theta_SP = np.empty((0, 4))
    if options.samples:
        weights_SR = drawn(len(table), options) * weights_1R  # the rows that approach 3's samples drew
        theta_SP = minimize(_residuals, np.repeat(theta[:, None], options.samples, axis=0), data, weights_SR).theta
    predictions, errors = _predictions(first, options.held_out, theta, theta_SP)
    return Result(
        method="accuracy (second step)",
        formula="accuracy = floor + (ceiling - floor) / (1 + exp(slope (loss - midpoint)))",
        table=table,
        values={name: float(value[0]) for name, value in _constants(theta).items()},
        intervals=intervals(_constants(theta_SP)),
        samples=options.samples,
        convention=f"accuracy is the column {table.columns['accuracy']!r}, loss {table.columns['loss']!r}",
        lack_of_fit={"residual_sd": float((_accuracy(theta[0], table.loss) - accuracy_R)[known_R].std())},
        notes=("intervals are those of the two fits; a run's own noise comes on top",) if options.samples else (),
        held_out=errors,
        predictions=predictions,
    )


def _predictions(
    first: Result, held_out: Table | None, theta: np.ndarray, theta_SP: np.ndarray
) -> tuple[tuple[dict[str, Any], ...], tuple[HeldOut, ...]]:
    """What is predicted of each row held out that has an accuracy, and the errors: predicted less measured."""
    if held_out is None or first.fit is None:
        return (), ()
    held_out = held_out.take(np.isfinite(held_out.extra["accuracy"]))
    if not len(held_out):
        return (), ()
    order = np.argsort(held_out.flops, kind="stable")
    held_out = held_out.take(order)
    N, D, measured = held_out.params, held_out.tokens, held_out.extra["accuracy"]
    loss = first.fit.loss(N, D)
    from_loss, from_sizes = _accuracy(theta[0], held_out.loss), _accuracy(theta[0], loss)
    ends: list[Any] = [None] * len(held_out)
    if first.sampled is not None:
        loss_RS = first.sampled.loss(N[:, None], D[:, None])
        ends = [interval(_accuracy(theta_SP.T, loss_S)) for loss_S in loss_RS]
    rows = tuple(
        {
            **{"row": held_out.places[row], "N": float(N[row]), "D": float(D[row])},
            **{"loss": float(held_out.loss[row]), "predicted_loss": float(loss[row])},
            **{"accuracy": float(measured[row]), "predicted_accuracy": float(from_sizes[row])},
            **{"interval": ends[row], "predicted_from_measured_loss": float(from_loss[row])},
        }
        for row in range(len(held_out))
    )
    count = len(first.table)
    errors = tuple(
        HeldOut(what, count, len(held_out), float(off.mean()), float(off[np.abs(off).argmax()]), of="accuracy")
        for what, off in (
            ("--hold-out, by its loss", from_loss - measured),
            ("--hold-out, by N and D", from_sizes - measured),
        )
    )
    return rows, errors


def _residuals(theta: jax.Array, accuracy_R: jax.Array, loss_R: jax.Array) -> jax.Array:
    floor, ceiling = _ends(theta, jax.nn.sigmoid)
    return floor + (ceiling - floor) * jax.nn.sigmoid(jnp.exp(theta[2]) * (theta[3] - loss_R)) - accuracy_R


def _ends(theta: Any, sigmoid: Any) -> tuple[Any, Any]:
    floor = sigmoid(theta[0])
    return floor, floor + (1 - floor) * sigmoid(theta[1])


def _accuracy(theta: np.ndarray, loss: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    floor, ceiling = _ends(theta, expit)
    return floor + (ceiling - floor) * expit(np.exp(theta[2]) * (theta[3] - loss))


def _constants(theta_SP: np.ndarray) -> dict[str, np.ndarray]:
    from scipy.special import expit

    floor, ceiling = _ends(theta_SP.T, expit)
    return {"floor": floor, "ceiling": ceiling, "slope": np.exp(theta_SP[:, 2]), "midpoint": theta_SP[:, 3]}
