"""The one table from logical axes to mesh axes. The model names its axes; only this table knows the mesh."""

from __future__ import annotations

from typing import Any, NamedTuple

from jax.sharding import PartitionSpec

from lmjax.errors import UserError, nearest


class Rule(NamedTuple):
    """Where a logical axis goes, and why. No mesh axes means that every device holds it whole."""

    mesh_axes: tuple[str, ...]
    reason: str


RULES: dict[str, Rule] = {
    # parameters and optimizer state
    "vocab": Rule(("tensor",), "the head's logits are cut over the vocabulary"),
    "head_vocab": Rule(("tensor",), "a head of its own, as the table that is also one"),
    "embed": Rule(("fsdp",), "every matrix has this axis, so fsdp cuts all of them; gathered when used"),
    "heads": Rule(("tensor",), "heads are independent of each other"),
    "kv_heads": Rule(("tensor",), "they stay with their query heads"),
    "head_dim": Rule((), "scores sum over it"),
    "mlp": Rule(("tensor",), "hidden units are independent of each other"),
    "positions": Rule((), "a small table"),
    "segment_types": Rule((), "a small table"),
    "norm": Rule((), "small vectors"),
    "layers": Rule((), "the scan runs over it"),
    "runs": Rule((), "models that train together; each is cut as one alone"),
    "pair": Rule((), "key and value side by side"),
    # activations
    "batch": Rule(("replica", "data", "fsdp"), "rows are independent of each other"),
    "lookup_batch": Rule(("replica", "data"), "rows where embeddings are looked up, whose width fsdp cuts"),
    "time": Rule(("sequence",), "long rows are cut; attention gathers keys and values"),
    "stream_time": Rule(("sequence", "tensor"), "the residual stream's: norms and sums are not done on every shard"),
    "act_embed": Rule((), "the residual stream's width is whole, so that norms need no communication"),
    "act_heads": Rule(("tensor",), "as the kernels that make them"),
    "act_kv_heads": Rule(("tensor",), "as the kernels that make them"),
    "act_mlp": Rule(("tensor",), "as the kernels that make them"),
    "act_vocab": Rule(("tensor",), "as the head"),
}


def flax_rules() -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """The table in the form that Flax's logical constraints take."""
    return tuple((name, rule.mesh_axes or None) for name, rule in RULES.items())


def partition_spec(logical_axes: tuple[str | None, ...]) -> PartitionSpec:
    """The sharding of an array with these axes. Raises UserError for an unknown axis, or when two share a mesh axis."""
    entries: list[Any] = []
    used: dict[str, str] = {}
    for name in logical_axes:
        if name is not None and name not in RULES:
            raise UserError(f"logical axis {name!r}: not in the table of axis rules; {nearest(name, RULES)}")
        mesh_axes = RULES[name].mesh_axes if name is not None else ()
        for axis in mesh_axes:
            if axis in used:
                pair = f"{used[axis]!r} and {name!r}"
                raise UserError(
                    f"axis rules: {pair} of one array {logical_axes} both go to mesh axis {axis!r}; move one"
                )
            used[axis] = str(name)
        entries.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
    return PartitionSpec(*entries)
