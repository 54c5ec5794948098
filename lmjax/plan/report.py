"""A plan as lines of text, and the table of how every parameter and activation is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh, PartitionSpec

from lmjax.errors import UserError
from lmjax.parallel.axis_rules import RULES
from lmjax.parallel.mesh import mesh_text
from lmjax.plan.candidates import layout_text
from lmjax.plan.compile import slice_mesh
from lmjax.plan.estimate import Estimate
from lmjax.plan.planner import Plan
from lmjax.plan.slices import find_slice
from lmjax.plan.target import target_of
from lmjax.settings import Stage, TrainingStage

SHOWN_SHARE = 0.005  # of the cycles, from which a part is shown


def lines(plan: Plan) -> Iterator[str]:
    """What a person reads: figures of one device, estimated by the compiler and from published rates."""
    e = plan.estimate
    where = f"{e.topology}: {e.chips} chips, {e.devices} devices"
    program = "" if e.step == "train" else f", {e.step}"
    yield f"{e.recipe}{program} on {where}: {layout_text(e.mesh, e.microbatches, e.remat, e.unrolled_layers)}"
    yield f"{e.rows_per_step} rows x {e.sequence_length} tokens a step, {e.parameters:,} parameters; per device:"
    if e.fits:
        yield from _figures(e)
        return
    yield f"  out of memory: needs {e.peak_hbm_gib:.2f} of {e.hbm_gib:.2f} GiB HBM, {e.over_by_gib:.2f} GiB too much"
    for each in plan.tried:
        verdict = "fits" if each.fits else "does not fit"
        yield f"  remat {each.remat!r} on {mesh_text(each.mesh)}: {each.peak_hbm_gib:.2f} GiB, {verdict}"
    if not any(each.fits for each in plan.tried):
        yield "  nothing that was tried fits: use more chips, fewer rows or more train.microbatches"


def _figures(e: Estimate) -> Iterator[str]:
    yield f"  HBM          {e.peak_hbm_gib:.2f} GiB at the peak of {e.hbm_gib:.2f}"
    yield f"               {e.arguments_gib:.2f} GiB arguments, {e.temporaries_gib:.2f} GiB temporaries"
    if e.host_gib:
        yield f"  host         {e.host_gib:.2f} GiB offloaded, to the host and back; the time below leaves this out"
    assert e.remat_overhead is not None
    again = f"{e.remat_overhead:.1%} of the products again"
    yield f"  FLOPs        {e.model_tflop:.2f} T of the model, {e.executed_tflop:.2f} T executed; {again}"
    yield f"  compute      {e.gcycles:.4f} Gcycles, {e.compute_seconds:.4f} s; Pallas kernels {e.kernel_seconds:.4f} s"
    assert e.cycles_by_part is not None
    shares = ", ".join(f"{part} {share:.1%}" for part, share in e.cycles_by_part.items() if share >= SHOWN_SHARE)
    yield f"               matrix units {e.matrix_units:.1%} busy; {shares}"
    if e.phases:
        yield f"  phases       {', '.join(f'{name} {share:.1%}' for name, share in e.phases.items())}"
    sent = f"{e.collective_sent_gib:.2f} GiB sent by a device"
    yield f"  collectives  {e.collective_gib:.2f} GiB of results, {sent}, {e.collective_seconds:.4f} s on the links"
    for each in e.collectives:
        kinds = ", ".join(f"{n} {kind}" for kind, n in each.kinds.items())
        yield f"    {each.axis:10} {each.gib:.2f} GiB, {each.seconds:.4f} s ({kinds})"
    yield f"  step         {e.step_seconds:.4f} s, {e.tokens_per_second:,.0f} tokens/s on all devices"
    yield f"  MFU          {e.mfu:.1%} ({e.mfu_without_attention:.1%} by 6ND over the compiler's cycles alone)"
    yield f"  bound by     {e.bound_by}"
    if e.unknown_loops:
        yield f"  {e.unknown_loops} loops of unknown length were counted once"


def explanation(recipe: TrainingStage, before: Sequence[Stage] = ()) -> Iterator[str]:
    """The table of axis rules, then each parameter's shape and sharding, then those of the activations."""
    target = target_of(recipe, "train", before)
    mesh = slice_mesh(target, find_slice(recipe.plan.topology))
    program = target.build(mesh)
    axes = program.model.logical_axes()
    named = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=lambda leaf: isinstance(leaf, tuple)))
    params = jax.tree_util.tree_leaves_with_path(program.abstract.params)
    if [path for path, _ in params] != list(named):
        raise UserError(f"--explain: {recipe.name!r} trains several models; each is cut as where it alone is trained")
    yield "logical axis     mesh axes            why"
    for name, rule in RULES.items():
        yield f"{name:16} {'+'.join(rule.mesh_axes) or '-':20} {rule.reason}"
    yield ""
    yield "parameter: shape, axes, sharding, on one device"
    for path, leaf in params:
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        local = leaf.sharding.shard_shape(leaf.shape)
        yield f"{name}: {leaf.shape}, ({', '.join(named[path])}), {_spec(leaf.sharding.spec)}, {local}"
    yield ""
    yield "activation: axes, sharding"
    for name, logical in ACTIVATIONS.items():
        yield f"{name}: ({', '.join(map(str, logical))}), {_activation_spec(logical, mesh)}"


# Those that the model constrains, and beside them the batch as it comes and the logits, which follow from the head.
ACTIVATIONS: dict[str, tuple[str | None, ...]] = {
    "tokens [B, T]": ("batch", "time"),
    "tokens at the look-up [B, T]": ("lookup_batch", "time"),
    "looked-up embeddings [B, T, D]": ("lookup_batch", "time", "embed"),
    "residual stream [B, T, D]": ("batch", "stream_time", "act_embed"),
    "a branch's input [B, T, D]": ("batch", "time", "act_embed"),
    "queries [B, T, H, K]": ("batch", "time", "act_heads", None),
    "keys and values [B, T, Hkv, K]": ("batch", "time", "act_kv_heads", None),
    "feed-forward [B, T, F]": ("batch", "time", "act_mlp"),
    "logits [B, T, V]": ("batch", "time", "act_vocab"),
}


def _spec(spec: PartitionSpec) -> str:
    entries = ("+".join(e) if isinstance(e, tuple) else str(e or "-") for e in spec)
    return f"<{', '.join(entries)}>"


def _activation_spec(logical: tuple[str | None, ...], mesh: Mesh) -> str:
    cut = [[a for a in RULES[name].mesh_axes if mesh.shape[a] > 1] if name else [] for name in logical]
    return f"<{', '.join('+'.join(axes) or '-' for axes in cut)}>"
