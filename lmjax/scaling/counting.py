"""How a table counts FLOPs, and the compute-optimal size under that count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.scaling.chinchilla import ChinchillaFit
from lmjax.scaling.table import Table


@dataclass(frozen=True)
class Counting:
    """C = 6 N D k N^g: how a table's FLOPs follow from its parameters; k = 1 and g = 0 where C = 6 N D."""

    k: float = 1.0
    g: float = 0.0
    what: str = "C = 6 N D"

    def tokens(self, flops: Any, params: Any) -> Any:
        """The tokens that the FLOPs pay for."""
        return flops / (6 * self.k * params ** (1 + self.g))

    def exponent(self, fit: ChinchillaFit) -> Any:
        """The exponent a of the optimum's parameters, N ~ C^a."""
        return fit.beta / (fit.alpha + fit.beta * (1 + self.g))

    def optimum(self, flops: Any, fit: ChinchillaFit) -> Any:
        """The parameters of least loss at these FLOPs: where d/dN of E + A/N^alpha + B/D(N)^beta is 0."""
        power = fit.beta * (1 + self.g)
        with np.errstate(invalid="ignore"):  # a sample whose exponents differ in sign has no optimum
            ratio = np.log(fit.alpha / power) + fit.log_A - fit.log_B + fit.beta * np.log(flops / (6 * self.k))
            return np.exp(ratio / (fit.alpha + power))

    def frontier(self, flops: Any, fit: ChinchillaFit) -> tuple[Any, Any, Any]:
        """The parameters, tokens and loss of the best run of these FLOPs."""
        params = self.optimum(flops, fit)
        tokens = self.tokens(flops, params)
        return params, tokens, fit.loss(params, tokens)


def own_convention(table: Table) -> str:
    """What N and C count where a method takes the table's own FLOPs."""
    return f"{table.convention.rpartition(';')[0]}; {counting(table).what}"


def counting(table: Table) -> Counting:
    """How the table counts FLOPs, by its column where it has one."""
    ratio_R = np.log(table.flops / (6 * table.params * table.tokens))
    if "flops" not in table.columns or np.abs(ratio_R).max() < 1e-3:
        return Counting()
    g, log_k = np.polyfit(np.log(table.params), ratio_R, 1)
    error = np.abs(ratio_R - log_k - g * np.log(table.params)).max()
    what = f"C is the column {table.columns['flops']!r} = 6 N D x {math.exp(log_k):.3g} N^{g:.3f}, within {error:.1%}"
    return Counting(math.exp(log_k), float(g), what)
