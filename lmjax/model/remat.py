"""What the backward pass of a layer keeps from the forward pass, by policy; it works out the rest again.

The blocks give names to the arrays that are worth keeping. Beside what a policy names, a layer's input is always kept.
Sizes are in arrays of [B, T, D], for a feed-forward layer of 4 D; "products" are the share of the forward pass's
matrix products, attention's own aside, that are made again.

An offloaded policy moves what it names to pinned memory of the host in the forward pass and fetches it back in the
backward pass, while other layers are computed; the device then holds little more than under "full".
"""

from __future__ import annotations

from typing import Any

import jax

QUERY, KEY, VALUE = "query", "key", "value"  # as attention reads them
ATTENDED = "attended"  # attention's result and what its backward pass needs beside it
BETWEEN = "between"  # the residual stream between attention and the feed-forward layer
UP = "up"  # the feed-forward layer's hidden units before their activation
STATISTICS = "norm_statistics"  # two numbers a row for every norm


_NAMED: dict[str, tuple[str, ...]] = {
    "projections": (QUERY, KEY, VALUE, ATTENDED, BETWEEN, UP),  # 10 arrays; no product twice
    "key_value_up": (KEY, VALUE, ATTENDED, UP),  # 8 arrays; 1/6 of the products twice
    "attention": (QUERY, KEY, VALUE, ATTENDED),  # 5 arrays; 5/12 of the products twice
    "up": (UP,),  # 5 arrays; 1/3 of the products and attention twice
}


def _keep(name: str) -> Any:
    return jax.checkpoint_policies.save_only_these_names(*_NAMED[name], STATISTICS)


def _offload(name: str) -> Any:
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[STATISTICS],
        names_which_can_be_offloaded=list(_NAMED[name]),
        offload_src="device",
        offload_dst="pinned_host",
    )


# From the most memory to the least. "none", which keeps everything, is no policy and comes before them all.
REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_saveable,  # every matrix product's result
    "projections": _keep("projections"),
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # 10 arrays; attention twice
    "key_value_up": _keep("key_value_up"),
    "attention": _keep("attention"),
    "up": _keep("up"),
    "full": jax.checkpoint_policies.nothing_saveable,  # 1 array; everything twice but the last product
}

OFFLOADED_POLICIES: dict[str, Any] = {f"{name}_offloaded": _offload(name) for name in _NAMED}


def remat_policy(name: str) -> Any:
    """The policy of that name, for `jax.checkpoint`."""
    return (REMAT_POLICIES | OFFLOADED_POLICIES)[name]
