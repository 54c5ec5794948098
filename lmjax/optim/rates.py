"""Multipliers of the learning rate, one for each parameter, as trees like the parameters.

In: the tree of logical axes, and what the multipliers follow from. Out: `Rates`, which `make_optimizer` applies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmjax.settings import ModelSettings

WIDE = ("heads", "kv_heads", "mlp")  # axes that grow with the width, beside "embed"


class Rates(NamedTuple):
    """Two trees of multipliers; None is 1 for every parameter.

    A leaf is a number, or an array that has as many axes as its parameter and broadcasts against it: [L, 1, 1] gives
    each of L stacked layers its own rate. `updates` multiplies the optimizer's update and leaves weight decay as it is;
    `whole` multiplies both: with 0 a parameter stays as it is, bit for bit, and decay^(L - layer) is layer-wise decay
    (Clark et al. 2020, "ELECTRA", section 3.4). Clipping by the global norm counts all gradients.
    """

    updates: Any = None
    whole: Any = None


def model_rates(logical_axes: Any, model: ModelSettings) -> Rates:
    """Those of a model's parametrisation: under muP, base_width / width for each matrix from width to width.

    Source: Yang & Hu et al. 2022, "Tensor Programs V", Table 8, the row of Adam. Weight decay is not multiplied: the
    share of a weight that a step takes off, the rate times weight_decay, is the same at all widths, as in MuAdamW of
    microsoft/mup. Kosson et al. 2025 (arXiv:2510.19093) find that rates transfer in long runs with this form alone.
    Adam's eps is not scaled either: it should be far below the gradients.
    """
    if model.base_ratio == 1:
        return Rates()

    def multiplier(axes: tuple[str | None, ...]) -> float:
        return model.base_ratio if "embed" in axes and any(name in WIDE for name in axes) else 1.0

    return Rates(jax.tree.map(multiplier, logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple)))


def scale_by(multipliers: Any) -> optax.GradientTransformation:
    """Multiplies each update by the leaf in its place."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, m: u * jnp.asarray(m, u.dtype), updates, multipliers)
    )
