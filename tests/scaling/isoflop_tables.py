"""Tables made from a law without noise, whose grids of N lie about the optimum of each budget."""

import numpy as np

from lmjax.scaling.table import Table, make_table

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
BUDGETS = np.geomspace(1e18, 1e21, 7)
EXPONENT = BETA / (ALPHA + BETA)


def law(params, tokens):
    return E + A / params**ALPHA + B / tokens**BETA


def optimal_params(flops):
    return (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (flops / 6) ** EXPONENT


def isoflop_table(*, drift: float = 0.0, width: float = np.log(16), sizes: int = 9) -> Table:
    """Grids of `sizes` models, `width` to each side in log N; their centre is off the optimum by `drift` for every
    factor of e in compute beyond the smallest budget."""
    params, tokens = [], []
    for flops in BUDGETS:
        centre = np.log(optimal_params(flops)) + drift * np.log(flops / BUDGETS[0])
        grid = np.exp(centre + np.linspace(-width, width, sizes))
        params.append(grid)
        tokens.append(flops / 6 / grid)
    N, D = np.concatenate(params), np.concatenate(tokens)
    return make_table(N, D, law(N, D))
