"""The power laws of Kaplan and others (arXiv:2001.08361): L(N), L(D), L(C), L(N, D) and L(N, S_min).

In: a table, with steps for the last of them. Out: a result for each law that the table determines. N is what the table
counts; the paper's is without embeddings. None of these laws levels off at a loss above 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError
from lmjax.scaling.bootstrap import FitOptions, drawn, intervals
from lmjax.scaling.counting import own_convention
from lmjax.scaling.forms import Form, fit_form, grid, residuals_of
from lmjax.scaling.goodness import lack_of_fit
from lmjax.scaling.result import Result
from lmjax.scaling.table import Table, grouped

PF_DAY = 8.64e19  # FLOPs
B_STAR, ALPHA_B = 2.1e8, 0.21  # tokens; of the critical batch size, section 5.1
EXPONENTS = np.geomspace(0.02, 1.0, 8)
FEWEST, FEWEST_BATCHES = 3, 3  # different values of what a law depends on

Values = Callable[[np.ndarray], dict[str, np.ndarray]]  # of theta [S, P]


def kaplan(table: Table, options: FitOptions) -> list[Result]:
    """A result for each law. Raises UserError where the table determines none; why one is missing is a note."""
    found: list[Result] = []
    missing = []
    for law in (_of_params, _of_tokens, _of_compute, _of_params_and_tokens, _of_params_and_steps):
        try:
            found.append(law(table, options))
        except UserError as error:
            missing.append(str(error))
    if not found:
        raise UserError("; ".join(missing))
    return [dataclasses.replace(found[0], notes=(*found[0].notes, *missing)), *found[1:]]


def _power(eta: Any, log_x: Any) -> Any:
    return -eta[0] * log_x[None]


def _joint(eta: Any, log_N: Any, log_D: Any) -> Any:
    return jnp.stack([-eta[0] / eta[1] * log_N, -log_D])


def _joint_power(eta: Any) -> Any:
    return eta[1]


def _steps(eta: Any, log_N: Any, log_S_min: Any) -> Any:
    return jnp.stack([-eta[0] * log_N, -eta[1] * log_S_min])


def _batches(eta: Any, log_N: Any, log_S: Any, log_batch: Any, log_L: Any) -> Any:
    log_critical = eta[2] - log_L / eta[3]
    return _steps(eta, log_N, log_S - jnp.logaddexp(0.0, log_critical - log_batch))


POWER, JOINT = Form(1, _power), Form(2, _joint, _joint_power)
STEPS, BATCHES = Form(2, _steps), Form(4, _batches)


def _of_params(table: Table, options: FitOptions) -> Result:
    return _of_one(table, options, "N", table.params, grouped(table.params), "runs of most tokens or best tuned")


def _of_tokens(table: Table, options: FitOptions) -> Result:
    return _of_one(table, options, "D", table.tokens, grouped(table.tokens), "models that are large enough")


def _of_compute(table: Table, options: FitOptions) -> Result:
    result = _of_one(table, options, "C", table.flops, table.budget, "sizes near the optimum")
    days = {"C_c_pf_days": result.values["C_c"] / PF_DAY}
    return dataclasses.replace(result, values=result.values | days, convention=own_convention(table))


def _of_one(table: Table, options: FitOptions, name: str, x: np.ndarray, group: np.ndarray, which: str) -> Result:
    """L = (x_c / x)^alpha of the row of lowest loss for each value of `group`."""
    _require(len(np.unique(group)), f"L({name})", f"values of {name}")
    log_x = np.log(x)
    mean = log_x.mean()

    def values(theta: np.ndarray) -> dict[str, np.ndarray]:
        c, alpha = theta.T
        return {f"alpha_{name}": alpha, f"{name}_c": _exp(mean + c / alpha)}

    formula = f"loss = ({name}_c/{name})^alpha_{name} of the lowest loss about each {name}"
    law = _Law(f"L({name})", formula, POWER, (log_x - mean,), grid(EXPONENTS), values, terms=1)
    note = f"the law is of {which}: rows of higher loss at about the same {name} are left out"
    return law.fit(table, options, group, (note,))


def _of_params_and_tokens(table: Table, options: FitOptions) -> Result:
    for name, x in (("N", table.params), ("D", table.tokens)):
        _require(len(np.unique(x)), "L(N, D)", f"values of {name}")
    n, d = np.log(table.params), np.log(table.tokens)

    def values(theta: np.ndarray) -> dict[str, np.ndarray]:
        c_N, c_D, alpha_N, alpha_D = theta.T
        constants = {"N_c": _exp(n.mean() + c_N * alpha_D / alpha_N), "D_c": _exp(d.mean() + c_D)}
        return {"alpha_N": alpha_N, "alpha_D": alpha_D, **constants, "a": alpha_D / (alpha_N + alpha_D)}

    formula = "loss = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D; N_opt ~ C^a at C = 6 N D"
    law = _Law("L(N, D)", formula, JOINT, (n - n.mean(), d - d.mean()), grid(EXPONENTS, EXPONENTS), values)
    return law.fit(table, options)


def _of_params_and_steps(table: Table, options: FitOptions) -> Result:
    steps = table.extra.get("steps", np.full(len(table), np.nan))
    table = table.take(np.isfinite(steps) & (steps > 0))
    if not len(table):
        raise UserError("L(N, S_min) is not fitted: the table has no column of steps; --steps-column names one")
    n, s, log_L = np.log(table.params), np.log(table.extra["steps"]), np.log(table.loss)
    log_batch = np.log(table.tokens) - s
    for name, x in (("N", table.params), ("S", s)):
        _require(len(np.unique(x)), "L(N, S_min)", f"values of {name}")
    batches = len(np.unique(np.round(log_batch, 1)))
    fitted = batches >= FEWEST_BATCHES
    if not fitted:
        s = s - np.logaddexp(0.0, np.log(B_STAR) - log_L / ALPHA_B - log_batch)

    def values(theta: np.ndarray) -> dict[str, np.ndarray]:
        c_N, c_S, alpha_N, alpha_S, *critical = theta.T
        log_B, alpha_B = critical or (np.full(len(theta), np.log(B_STAR)), np.full(len(theta), ALPHA_B))
        constants = {"N_c": _exp(n.mean() + c_N / alpha_N), "S_c": _exp(s.mean() + c_S / alpha_S)}
        a = 1 / alpha_N / (1 / alpha_N + 1 / alpha_S + 1 / alpha_B)
        return {"alpha_N": alpha_N, "alpha_S": alpha_S, **constants, "B_star": _exp(log_B), "alpha_B": alpha_B, "a": a}

    formula = (
        "loss = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S, S_min = S/(1 + B_crit/B), "
        "B_crit = B_star/loss^(1/alpha_B) tokens; N_opt ~ C_min^a"
    )
    centred = (n - n.mean(), s - s.mean())
    if fitted:
        starts = grid(
            EXPONENTS[::2], EXPONENTS[::2], np.log(B_STAR) + np.log([1e-2, 1, 1e2]), np.array([0.1, 0.2, 0.4])
        )
        law = _Law("L(N, S_min)", formula, BATCHES, (*centred, log_batch, log_L), starts, values)
        return law.fit(table, options)
    law = _Law("L(N, S_min)", formula, STEPS, centred, grid(EXPONENTS, EXPONENTS), values)
    words = f"the runs have {batches} batch size{'s' * (batches > 1)}, which do not determine B_crit"
    return law.fit(table, options, notes=(f"{words}: B_star and alpha_B are as published (arXiv:2001.08361)",))


@dataclasses.dataclass(frozen=True)
class _Law:
    name: str
    formula: str
    form: Form
    data: tuple[np.ndarray, ...]
    starts: np.ndarray
    values: Values
    terms: int = 2

    def fit(
        self, table: Table, options: FitOptions, group: np.ndarray | None = None, notes: tuple[str, ...] = ()
    ) -> Result:
        """The result; where `group` [R] is given, of the row of lowest loss of each group, in each sample too."""
        rows = len(table) if group is None else len(np.unique(group))
        constants = self.form.exponents + self.terms
        if rows <= constants:
            what = f"{self.name} is not fitted: {rows} rows for its {constants} constants"
            raise UserError(f"{what}, expected at least {constants + 1}; add runs")
        log_L = np.log(table.loss)

        def minimum(weights_SR: np.ndarray, near: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
            weights_SR = weights_SR if group is None else _lowest(weights_SR, table.loss, group)
            how: dict[str, Any] = {"near": near, "asymmetry": options.asymmetry}
            found = fit_form(self.form, log_L, self.data, self.starts, weights_SR, **how)
            return found.theta, weights_SR

        theta, weights = minimum(np.ones((1, len(table))), None)
        ends = intervals(self.values(minimum(drawn(len(table), options), theta[0])[0])) if options.samples else {}
        used = weights[0] > 0
        residuals_R = residuals_of(self.form, theta[0], log_L, self.data)[used]
        return Result(
            method=f"kaplan {self.name}",
            formula=self.formula,
            table=table.take(used),
            values={name: float(value[0]) for name, value in self.values(theta).items()},
            intervals=ends,
            samples=options.samples,
            notes=notes,
            residuals=residuals_R,
            lack_of_fit=lack_of_fit(table.take(used), residuals_R, constants=constants),
        )


def _lowest(weights_SR: np.ndarray, loss_R: np.ndarray, group_R: np.ndarray) -> np.ndarray:
    """1 for the drawn row of lowest loss of each group, else 0."""
    out = np.zeros_like(weights_SR)
    samples = np.arange(len(weights_SR))
    for value in np.unique(group_R):
        (rows,) = np.nonzero(group_R == value)
        rows = rows[np.argsort(loss_R[rows], kind="stable")]
        has = weights_SR[:, rows] > 0
        out[samples, rows[has.argmax(axis=1)]] = has.any(axis=1)
    return out


def _require(different: int, law: str, what: str) -> None:
    if different < FEWEST:
        raise UserError(f"{law} is not fitted: the runs have {different} different {what}, expected at least {FEWEST}")


def _exp(logs: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.exp(logs)
