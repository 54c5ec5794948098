"""Multipliers of the learning rate, one for each parameter, as trees like the parameters.

In: the tree of logical axes, and what the multipliers follow from. Out: `Rates`, which `make_optimizer` applies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax.settings import ModelSettings

EMBEDDINGS = ("tokens", "positions", "segment_types", "embedding_norm")  # names of parameters below the layers
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


def layer_rates(logical_axes: Any, model: ModelSettings, trunk: tuple[str, ...], decay: float, frozen: int) -> Any:
    """Multipliers of the whole rate by depth: decay^(L - layer) for layer 0 to L - 1, decay^(L + 1) for embeddings.

    What stands on top of the layers learns at the rate itself (layer-wise decay: Howard and Ruder 2018; Clark et al.
    2020, section 3.4). The first `frozen` layers and the embeddings below them do not move; 0 freezes nothing. `trunk`
    says where the model's parameters are among those with these axes; None where nothing is multiplied.
    """
    if decay == 1.0 and not frozen:
        return None
    keys, L, period = trunk, model.layers, len(model.attention.pattern)
    own = [0.0 if layer < frozen else decay ** (L - layer) for layer in range(L)]
    below = 0.0 if frozen else decay ** (L + 1)

    def multiplier(path: tuple[Any, ...], axes: tuple[str | None, ...]) -> Any:
        names = [str(part.key) for part in path]
        if tuple(names[: len(keys)]) != keys:
            return 1.0
        part, *rest = names[len(keys) :]
        if part in EMBEDDINGS:
            return below
        if part == "periods":
            block = int(rest[0].removeprefix("block_"))
            rates = np.asarray(own[block::period], np.float32)
            return rates.reshape(-1, *[1] * (len(axes) - 1))
        if part.startswith("period_"):
            return own[int(part.removeprefix("period_")) * period + int(rest[0].removeprefix("block_"))]
        return 1.0

    return jax.tree_util.tree_map_with_path(multiplier, logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def scale_by(multipliers: Any) -> optax.GradientTransformation:
    """Multiplies each update by the leaf in its place."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, m: u * jnp.asarray(m, u.dtype), updates, multipliers)
    )
