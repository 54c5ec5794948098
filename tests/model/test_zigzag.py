"""Causal queries dealt out over the sequence axis: every device computes as many blocks, and nothing else changes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lmjax.data.batch import POSITIONS, SEGMENTS, TARGETS, TOKENS, WEIGHTS
from lmjax.errors import UserError
from lmjax.model import attention_tpu as splash
from lmjax.model import zigzag
from lmjax.model.attention import choose
from lmjax.model.attention_tpu import Parts, make_kernel, parts_of
from lmjax.model.language_model import LanguageModel
from lmjax.model.masks import Mask
from lmjax.objective.next_token import language_loss
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.train_state import TrainState
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import abstract_state, jit_step, on_mesh, place_batch
from lmjax.settings import AttentionSettings, ComputeSettings, MeshSettings, ModelSettings, OptimizerSettings
from lmjax.training.step import make_train_step


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 128, so that short rows have many."""
    monkeypatch.setattr(splash, "BLOCK", 128)


def mesh_of(**sizes):
    return make_mesh(MeshSettings(**{"data": 1} | sizes), jax.devices()[: math.prod(sizes.values())])


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_queries_are_dealt_as_the_order_says_and_collected_again(devices):
    T, mesh = 4 * devices, mesh_of(sequence=devices)
    x = jnp.arange(3 * T).reshape(3, T)
    own, whole = PartitionSpec(None, "sequence"), PartitionSpec(None, None)

    def over(function, spec):
        function = functools.partial(function, axis=1, mesh_axes="sequence", devices=devices)
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=own, check_vma=False))

    order = zigzag.query_order(T, devices)
    dealt = over(zigzag.deal, own)(x)
    np.testing.assert_array_equal(dealt, x[:, order])
    np.testing.assert_array_equal(over(zigzag.deal_replicated, whole)(x), x[:, order])
    np.testing.assert_array_equal(over(zigzag.collect, own)(dealt), x)
    pieces = np.sort(order.reshape(devices, 2, 2)[:, :, 0] // 2)
    assert pieces.tolist() == [[device, 2 * devices - 1 - device] for device in range(devices)]


def computed_blocks(mask, T, parts, kernel):
    """How many blocks of scores each device works out in one of the kernel's three calls."""
    call = make_kernel(mask, T, T, 2, 2, parts, True)
    blocks = np.asarray(getattr(call, f"{kernel}_mask_info").block_mask)[0]
    return [int(np.count_nonzero(part)) for part in np.split(blocks, parts.devices)]


@pytest.mark.parametrize("kernel", ["fwd", "dq", "dkv"])
@pytest.mark.parametrize(("T", "devices"), [(2048, 4), (2048, 8), (8192, 2), (8192, 4), (16384, 8)])
def test_every_device_computes_as_many_blocks(T, devices, kernel):
    causal = Mask(True, None)
    parts = parts_of(causal, T, devices)
    dealt, in_order = (computed_blocks(causal, T, each, kernel) for each in (parts, Parts(devices, False)))
    assert len(set(dealt)) == 1
    assert max(in_order) >= 2 * min(in_order)
    rows = [min(splash.BLOCK, T // devices // pieces) for pieces in (2, 1)]  # of a block: its columns are the same
    assert dealt[0] * rows[0] <= 0.75 * max(in_order) * rows[1]


@pytest.mark.parametrize(
    ("mask", "T", "devices"),
    [
        (Mask(False, None), 8192, 4),  # every query sees as much
        (Mask(True, 2048), 8192, 4),  # all but the first see a whole band
        (Mask(True, None), 1024, 4),  # one block of keys
        (Mask(True, None), 3 * 1024, 8),  # pieces of 192
        (Mask(True, None), 8192, 1),
    ],
)
def test_rows_stay_in_order_where_dealing_saves_nothing(mask, T, devices):
    assert not parts_of(mask, T, devices).zigzag


T = 512


def ragged(rows):
    """Documents that end at a different place in every row, and padding at the end of one."""
    ends = np.array([[100, 300], [7, 130], [255, 256], [128, 420]])[:rows]
    index = np.arange(T)[None]
    segments = np.where(index < ends[:, :1], 1, np.where(index < ends[:, 1:], 2, 3))
    segments[1, 490:] = 0
    return jnp.asarray(segments, jnp.int32)


def arrays(kv_heads=2):
    keys = jax.random.split(jax.random.key(0), 4)
    q, g = (jax.random.normal(key, (2, T, 2, 16)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, T, kv_heads, 16)) for key in keys[2:])
    return q, k, v, g


@pytest.mark.parametrize(
    ("axes", "kv_heads", "band", "segmented"),
    [
        ({"sequence": 2, "tensor": 2}, 2, None, True),
        ({"data": 2, "sequence": 2}, 1, 300, True),
        ({"sequence": 2}, 2, None, False),
    ],
)
def test_dealt_queries_have_the_values_and_gradients_of_einsum(
    axes, kv_heads, band, segmented, small_blocks, assert_is_einsum
):
    segments = ragged(2) if segmented else None
    mask = Mask(True, band, segments, segments)
    assert parts_of(mask, T, 2).zigzag
    assert_is_einsum("splash", mask, mesh_of(**axes), *arrays(kv_heads))


@pytest.mark.parametrize("implementation", ["einsum", "blocked"])
@pytest.mark.parametrize("band", [None, 70])
def test_the_other_implementations_cut_over_the_sequence_are_einsum(implementation, band, assert_is_einsum):
    segments = ragged(2)
    mask = Mask(True, band, segments, segments)
    assert_is_einsum(implementation, mask, mesh_of(data=2, sequence=4), *arrays())


def test_a_row_too_short_for_its_parts_is_refused_by_name_and_avoided_by_auto():
    def chosen(name, length):
        settings = ModelSettings(attention=AttentionSettings(implementation=name))
        return choose(settings, jnp.dtype("bfloat16"), "tpu", segmented=True, sequence_length=length)

    mesh = mesh_of(sequence=4)
    assert on_mesh(chosen, mesh)("auto", 512) == on_mesh(chosen, mesh)("splash", 512) == "splash"
    assert on_mesh(chosen, mesh)("auto", 256) == "einsum"
    with pytest.raises(UserError, match=r"256 is not a multiple of 128 for each of mesh.sequence = 4"):
        on_mesh(chosen, mesh)("splash", 256)


ROWS = 4


def ragged_batch(step):
    rng = np.random.default_rng(step)
    segments = np.asarray(ragged(ROWS))
    starts = np.maximum.accumulate(np.where(np.diff(segments, axis=1, prepend=0) != 0, np.arange(T)[None], 0), axis=1)
    tokens = rng.integers(0, 48, (ROWS, T))
    weights = (segments > 0) * 10.0 ** rng.uniform(-2, 1, (ROWS, 1))
    return {
        TOKENS: tokens.astype(np.int32),
        TARGETS: np.roll(tokens, -1, axis=1).astype(np.int32),
        WEIGHTS: weights.astype(np.float32),
        POSITIONS: (np.arange(T)[None] - starts).astype(np.int32),
        SEGMENTS: segments.astype(np.int32),
    }


def three_steps(implementation, mesh):
    """Losses, gradient norms and the parameters after three steps of a model with dropout, in two microbatches."""
    settings = ModelSettings(2, 16, T, 48, AttentionSettings(heads=2, implementation=implementation), dropout=0.1)
    model = LanguageModel(settings, ComputeSettings(dtype="float32", remat="attention"))
    optimizer = make_optimizer(OptimizerSettings(eps=1e-3), lambda step: jnp.float32(0.02), model.logical_axes())
    step = make_train_step(language_loss(model), optimizer, microbatches=2, seed=5)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3, shapes)
    state, record = TrainState.create(params, optimizer), []
    if mesh is None:
        compiled = jax.jit(step)
    else:
        state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, abstract_state(model, optimizer, mesh)))
        compiled = jit_step(step, state, mesh)
    for number in range(3):
        batch = ragged_batch(number)
        if mesh is not None:
            batch = place_batch(lambda rows, batch=batch: {k: v[rows] for k, v in batch.items()}, ROWS, mesh)
        state, metrics = compiled(state, batch)
        record.append([float(metrics["loss"].mean()), float(metrics["grad_norm"])])
    return jax.device_get(state.params), np.array(record)


def test_three_steps_with_dealt_queries_are_three_steps_on_one_device(small_blocks, unoptimized):
    dealt, record = three_steps("splash", mesh_of(data=2, sequence=2, tensor=2))
    whole, expected = three_steps("einsum", None)
    np.testing.assert_allclose(record, expected, rtol=5e-6)
    for a, b in zip(jax.tree.leaves(dealt), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
