"""Remat policies: the arrays of a layer's forward pass that are kept for its backward pass, which recomputes the rest.

The blocks name the arrays that a policy can keep. A layer's input is always kept. Sizes are in arrays of [B, T, D], for
a feed-forward layer of 4 D; "products" is the fraction of the forward pass's matrix products, without those inside
attention, that are recomputed. A gated feed-forward layer has two arrays of hidden units, both or none of which are
kept.

An offloaded policy moves the named arrays to the host's pinned memory in the forward pass and fetches them in the
backward pass, while other layers are computed; the device then needs little more memory than under "full".
"""

from __future__ import annotations

from typing import Any

import jax

QUERY, KEY, VALUE = "query", "key", "value"  # as attention reads them
ATTENDED = "attended"  # attention's result and the residuals of its backward pass
BETWEEN = "between"  # the residual stream between attention and the feed-forward layer
UP = "up"  # the feed-forward layer's hidden units before their activation, and before they are gated
STATISTICS = "norm_statistics"  # two numbers per row of every norm


_NAMED: dict[str, tuple[str, ...]] = {
    "projections": (QUERY, KEY, VALUE, ATTENDED, BETWEEN, UP),  # 10 arrays; recomputes no product
    "all_but_attended": (QUERY, KEY, VALUE, BETWEEN, UP),  # 9 arrays; recomputes attention, but no other product
    "all_but_query": (KEY, VALUE, ATTENDED, BETWEEN, UP),  # 9 arrays; recomputes 1/12 of the products
    "key_value_up": (KEY, VALUE, ATTENDED, UP),  # 8 arrays; recomputes 1/6 of the products
    "attention": (QUERY, KEY, VALUE, ATTENDED),  # 5 arrays; recomputes 5/12 of the products
    "up": (UP,),  # 5 arrays; recomputes 1/3 of the products and attention
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


# From the most memory to the least. "none", which keeps everything, is not a policy and needs the most.
REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_saveable,  # every matrix product's result
    "projections": _keep("projections"),
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # 10 arrays; recomputes attention
    "all_but_attended": _keep("all_but_attended"),
    "all_but_query": _keep("all_but_query"),
    "key_value_up": _keep("key_value_up"),
    "attention": _keep("attention"),
    "up": _keep("up"),
    "full": jax.checkpoint_policies.nothing_saveable,  # 1 array; recomputes all but the last product
}

OFFLOADED_POLICIES: dict[str, Any] = {f"{name}_offloaded": _offload(name) for name in _NAMED}


def remat_policy(name: str) -> Any:
    """The policy of that name, for `jax.checkpoint`."""
    return (REMAT_POLICIES | OFFLOADED_POLICIES)[name]
