"""What remat policies keep, and where: in the device's memory, or offloaded to pinned memory of the host."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from lmjax.errors import UserError
from lmjax.model.language_model import LanguageModel
from lmjax.model.remat import OFFLOADED_POLICIES, REMAT_POLICIES
from lmjax.objective.next_token import language_loss
from lmjax.plan.compile import compile_step
from lmjax.plan.slices import find_slice
from lmjax.plan.target import target_of
from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    FeedForwardSettings,
    MeshSettings,
    ModelSettings,
    PositionSettings,
)
from tests.tiny import for_slice

pytestmark = pytest.mark.usefixtures("optimized")  # what programs keep and move is read off them

LAYERS, ROWS, LENGTH, WIDTH = 3, 2, 16, 32
SETTINGS = ModelSettings(LAYERS, WIDTH, LENGTH, 61, AttentionSettings(heads=4, implementation="einsum"), dropout=0.1)
IN_BLOCK = LAYERS * ROWS * LENGTH * WIDTH  # entries of one [B, T, D] array of every layer
KEPT = {
    "projections": 9,
    "all_but_attended": 8,
    "all_but_query": 8,
    "key_value_up": 7,
    "attention": 4,
    "up": 4,
}  # such arrays; einsum's own is one


def gradients(remat, settings=SETTINGS):
    """The function (params) -> (loss, gradients) of a model that is laid out for TPU, whichever device runs it."""
    model = LanguageModel(settings, ComputeSettings(dtype="float32", remat=remat), "tpu")
    rows = np.random.default_rng(0).integers(0, 61, (ROWS, LENGTH + 1)).astype(np.int32)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
    batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:], "weights": np.ones((ROWS, LENGTH), np.float32)}
    batch |= {"positions": places, "segments": 1 + (places > 9)}
    loss_fn = language_loss(model)
    return model, jax.value_and_grad(lambda params: loss_fn(params, batch, jax.random.key(3))[0].sum)


def kept_entries(remat, settings=SETTINGS):
    """Entries of floats that the forward pass over the layers leaves for the backward pass: (on the device, the host).

    Of the arrays stacked over the layers that come out of the first scan; parameters go in and do not come out.
    """
    model, function = gradients(remat, settings)
    jaxpr = jax.make_jaxpr(function)(jax.eval_shape(model.init, jax.random.key(0))).jaxpr
    scan = next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan" and eqn.params["length"] == LAYERS)
    sums = {jax.memory.Space.Device: 0, jax.memory.Space.Host: 0}
    for var in scan.outvars:  # the carries have no axis of layers
        if var.aval.shape[:1] == (LAYERS,) and jnp.issubdtype(var.aval.dtype, jnp.floating):
            sums[var.aval.memory_space] += var.aval.size
    return tuple(sums.values())


def test_every_policy_that_names_arrays_has_an_offloaded_one():
    assert set(OFFLOADED_POLICIES) == {f"{name}_offloaded" for name in KEPT}
    named = typing.get_type_hints(ComputeSettings)["remat"]
    assert set(typing.get_args(named)) == {"auto", "none", *REMAT_POLICIES, *OFFLOADED_POLICIES}


@pytest.mark.parametrize("name", KEPT)
def test_an_offloaded_policy_moves_what_the_other_keeps_to_the_host(name):
    on_device, nothing = kept_entries(name)
    left, moved = kept_entries(f"{name}_offloaded")
    assert nothing == 0 and moved == KEPT[name] * IN_BLOCK
    assert on_device - left == moved
    least, _ = kept_entries("full")
    statistics = LAYERS * 2 * 2 * ROWS * LENGTH  # of two norms a layer
    assert least == IN_BLOCK and left == least + statistics


GATED = dataclasses.replace(
    SETTINGS,
    feed_forward=FeedForwardSettings(width=88, activation="silu", gated=True, bias=False),
    positions=PositionSettings(kind="rotary"),
)


def products_with(size, jaxpr):
    """How many products in a program, loops included, have an axis of this size in an operand or the result."""
    count = 0
    for eqn in jaxpr.eqns:
        shapes = [var.aval.shape for var in (*eqn.invars, *eqn.outvars) if hasattr(var.aval, "shape")]
        count += eqn.primitive.name == "dot_general" and any(size in shape for shape in shapes)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            count += products_with(size, inner) if hasattr(inner, "eqns") else 0
    return count


@pytest.mark.parametrize(
    ("remat", "again"),
    [
        *(("none", 0), ("projections", 0), ("minimal", 0), ("all_but_attended", 0), ("all_but_query", 0)),
        *(("key_value_up", 0), ("up", 0)),
        *(("attention", 2), ("full", 2)),
    ],
)
def test_a_policy_that_keeps_hidden_units_makes_neither_product_of_a_gated_layer_again(remat, again):
    model, function = gradients(remat, GATED)
    jaxpr = jax.make_jaxpr(function)(jax.eval_shape(model.init, jax.random.key(0))).jaxpr
    assert products_with(GATED.feed_forward_width, jaxpr) == 3 * 3 + again


def test_no_policy_keeps_the_product_that_turns_pairs_of_a_head():
    extra = {remat: kept_entries(remat, GATED)[0] - kept_entries(remat)[0] for remat in ("minimal", "projections")}
    hidden = LAYERS * ROWS * LENGTH * (2 * GATED.feed_forward_width - SETTINGS.feed_forward_width)
    assert extra == {"minimal": hidden, "projections": hidden}


LOCAL = dataclasses.replace(SETTINGS.attention, pattern=("banded",) * (LAYERS - 1) + ("dense",), band=5)
LONG_PERIOD = dataclasses.replace(SETTINGS, attention=LOCAL)


def checkpoints(jaxpr):
    """How many parts of a program are rematerialised as one each."""
    inner = (getattr(value, "jaxpr", value) for eqn in jaxpr.eqns for value in eqn.params.values())
    own = sum("remat" in eqn.primitive.name or "checkpoint" in eqn.primitive.name for eqn in jaxpr.eqns)
    return own + sum(checkpoints(part) for part in inner if hasattr(part, "eqns"))


def test_the_layers_of_a_long_period_are_made_again_one_by_one(unoptimized):
    def loss_of(remat, settings):
        model = LanguageModel(settings, ComputeSettings(dtype="float32", remat=remat))
        batch = {"tokens": np.arange(24, dtype=np.int32).reshape(2, 12), "segments": np.ones((2, 12), np.int32)}
        batch["positions"] = np.tile(np.arange(12, dtype=np.int32), (2, 1))
        return model, lambda params: (model.hidden(params, batch).hidden ** 2).sum()

    found = {}
    for name, settings, expected in (("long", LONG_PERIOD, LAYERS), ("plain", SETTINGS, 1)):
        model, loss = loss_of("full", settings)
        found[name] = model.init(jax.random.key(0))
        assert checkpoints(jax.make_jaxpr(loss)(found[name]).jaxpr) == expected
    again, kept = (jax.jit(jax.grad(loss_of(remat, LONG_PERIOD)[1]))(found["long"]) for remat in ("full", "none"))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(), rtol=1e-4)


def test_offloading_changes_neither_loss_nor_gradients(unoptimized):
    def run(remat):
        model, function = gradients(remat)
        params = model.init(jax.random.key(0))
        return jax.jit(function)(jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), params))

    (loss, grads), (expected_loss, expected) = run("projections_offloaded"), run("none")
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(), rtol=1e-4)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_offloaded_arrays_lower_to_pinned_host_memory(platform):
    def text(remat):
        model, function = gradients(remat)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        allowed = [export.DisabledSafetyCheck.custom_call("LayoutConstraint")]
        return export.export(jax.jit(function), platforms=[platform], disabled_checks=allowed)(shapes).mlir_module()

    placed = "annotate_device_placement"
    there = text("attention_offloaded")
    assert there.count(placed) >= 8 and "pinned_host" in there  # four arrays, there and back
    assert placed not in text("attention")


def test_a_policy_that_offloads_is_refused_where_there_is_no_other_memory():
    with pytest.raises(UserError, match=r"compute.remat = 'up_offloaded'.*on a CPU.*use 'up'"):
        LanguageModel(SETTINGS, ComputeSettings(remat="up_offloaded"), "cpu")


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_a_plans_hbm_falls_by_what_is_offloaded():
    recipe = for_slice(layers=8, width=256, length=512, data__batch_size=64, mesh=MeshSettings(data=2, fsdp=2))
    plans = {
        remat: compile_step(target_of(recipe).with_fields(compute=ComputeSettings(remat=remat)), find_slice("v5e-4"))
        for remat in ("projections", "projections_offloaded")
    }
    kept, offloaded = plans["projections"], plans["projections_offloaded"]
    arrays = KEPT["projections"] * 8 * 16 * 512 * 256 * 2  # bfloat16, of every layer, on one of four devices
    assert kept.host == 0 and arrays <= offloaded.host < 1.1 * arrays  # and the sums of the attention weights
    assert kept.temporaries - offloaded.temporaries > 0.5 * arrays  # the rest is on its way there and back
    assert kept.peak - offloaded.peak > 0.5 * arrays
