"""Where states and batches lie on a mesh, measured on eight forced CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.data.ramp import BatchRamp
from lmjax.model.language_model import LanguageModel
from lmjax.objective.weighted import Weighted
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.train_state import TrainState
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import (
    abstract_state,
    batch_sharding,
    init_state,
    jit_eval,
    jit_step,
    on_mesh,
    parameter_shardings,
    place_batch,
    state_shardings,
)
from lmjax.settings import AttentionSettings, DataSettings, MeshSettings, ModelSettings, OptimizerSettings
from lmjax.training.step import make_eval_step, make_train_step

MODEL = LanguageModel(
    ModelSettings(layers=2, width=128, context=16, vocab_size=512, attention=AttentionSettings(heads=4))
)


def mesh_of(**sizes):
    return make_mesh(MeshSettings(**({"data": 1} | sizes)))


def optimizer_of(**settings):
    return make_optimizer(OptimizerSettings(**settings), lambda step: jnp.float32(0.01), MODEL.logical_axes())


def specs(tree):
    return jax.tree.map(lambda leaf: leaf.sharding.spec, tree)


def test_adams_moments_are_cut_like_their_parameters_and_its_count_is_whole():
    state = abstract_state(MODEL, optimizer_of(), mesh_of(fsdp=4, tensor=2))
    adam = next(part for part in state.opt_state if isinstance(part, optax.ScaleByAdamState))
    assert specs(adam.mu) == specs(adam.nu) == specs(state.params)
    assert specs((adam.count, state.step)) == (PartitionSpec(), PartitionSpec())
    block = specs(state.params)["periods"]["block_0"]
    assert block["feed_forward"]["up"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert block["attention"]["out"]["kernel"] == PartitionSpec(None, "tensor", None, "fsdp")
    assert specs(state.params)["tokens"] == PartitionSpec("tensor", "fsdp")


def test_adafactors_moments_are_cut_along_the_axes_that_they_keep():
    state = abstract_state(MODEL, optimizer_of(name="adafactor"), mesh_of(fsdp=4, tensor=2))
    moments = state.opt_state[1]
    row, column = (specs(part)["periods"]["block_0"]["feed_forward"]["up"] for part in (moments.row, moments.column))
    assert row["kernel"] == PartitionSpec(None, "fsdp", None)
    assert column["kernel"] == PartitionSpec(None, None, "tensor")
    assert row["bias"] == PartitionSpec(None, "tensor")  # not factored: like the bias itself
    assert column["bias"] == PartitionSpec(None, None)


def test_a_state_of_another_rank_is_whole_on_every_device():
    """optax's factored moments drop axes: they are small, and no parameter's sharding means them."""
    mesh = mesh_of(fsdp=4, tensor=2)
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    shapes = jax.eval_shape(lambda: TrainState.create(params, optax.scale_by_factored_rms()))
    cut = state_shardings(shapes, parameter_shardings(MODEL.logical_axes(), mesh), mesh)
    assert cut.opt_state.v_row["tokens"].spec == PartitionSpec()
    assert cut.params["tokens"].spec == PartitionSpec("tensor", "fsdp")


def test_an_abstract_state_allocates_nothing():
    before = len(jax.live_arrays())
    state = abstract_state(MODEL, optimizer_of(), mesh_of(fsdp=8))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
    assert len(jax.live_arrays()) <= before + 1  # the key


def test_a_fresh_state_is_made_in_its_shards_and_no_device_ever_holds_the_whole_model(unoptimized):
    optimizer, mesh = optimizer_of(), mesh_of(fsdp=4, tensor=2)
    wanted = abstract_state(MODEL, optimizer, mesh)
    state = init_state(MODEL, optimizer, 3, mesh)
    jax.tree.map(lambda x, w: (x.sharding, x.shape) == (w.sharding, w.shape) or pytest.fail(str(w)), state, wanted)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    held = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert max(held.values()) < total / 8 * 1.1  # norms and the position table's width are the rest

    shardings = jax.tree.map(lambda x: x.sharding, wanted)
    create = on_mesh(lambda rng: TrainState.create(MODEL.init(rng), optimizer), mesh)
    memory = jax.jit(create, out_shardings=shardings).lower(jax.random.key(3)).compile().memory_analysis()
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert memory.output_size_in_bytes < total / 8 * 1.1
    assert memory.temp_size_in_bytes < parameters / 2  # on the way there, too: 0.27; 0.66 where threefry is not cut

    alone = jax.jit(MODEL.init)(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state.params, alone)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_updates_of_a_sharded_state_are_those_of_a_whole_one(name, unoptimized):
    """Clipping by the global norm, Adafactor's means over rows and columns and its scales all reach over devices."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    params, grads = (
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes) for _ in range(2)
    )
    optimizer, mesh = optimizer_of(name=name), mesh_of(fsdp=2, data=2, tensor=2)
    wanted = abstract_state(MODEL, optimizer, mesh)

    def updated(params, grads):
        state = optimizer.init(params)
        updates, state = optimizer.update(grads, state, params, step=0)
        return optimizer.update(grads, state, optax.apply_updates(params, updates), step=1)

    cut = jax.tree.map(lambda leaf: leaf.sharding, (wanted.params, wanted.opt_state))
    sharded = jax.jit(updated, in_shardings=(cut[0], cut[0]), out_shardings=cut)(params, grads)
    whole = jax.jit(updated)(params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), sharded, whole)


class Toy:
    """A step and a state small enough to compile in a moment."""

    optimizer = optax.sgd(0.1)

    @staticmethod
    def loss(params, batch, rng):
        square = (batch["tokens"] * batch["weights"] * params["w"].sum()).sum()
        return Weighted(square, batch["weights"].sum()), {}

    @classmethod
    def state(cls, mesh):
        state = TrainState.create({"w": jnp.ones(8)}, cls.optimizer)
        return jax.device_put(state, NamedSharding(mesh, PartitionSpec()))


def toy_batch(rows, length=4):
    return {
        "tokens": np.arange(rows * length, dtype=np.int32).reshape(rows, length),
        "weights": np.ones((rows, length), np.float32),
    }


def test_a_batch_size_ramp_compiles_once_per_size():
    mesh = mesh_of(data=8)
    data = DataSettings(sequence_length=4, batch_size=32, ramp_from=8, ramp_tokens=400, ramp_sizes=3)
    ramp = BatchRamp(data)
    sizes = [ramp.batch_size_at(step) for step in range(14)]
    assert sorted(set(sizes)) == [8, 16, 32]
    step, state = jit_step(make_train_step(Toy.loss, Toy.optimizer), Toy.state(mesh), mesh), Toy.state(mesh)
    compiled = []
    for size in sizes:
        batch = toy_batch(size)
        placed = place_batch(lambda rows, batch=batch: {k: v[rows] for k, v in batch.items()}, size, mesh)
        state, _ = step(state, placed)
        compiled.append(step._cache_size())
    assert compiled[-1] == 3
    assert int(state.step) == 14


def test_a_compiled_step_reuses_the_states_memory_and_keeps_its_shardings():
    mesh = mesh_of(data=8)
    state = Toy.state(mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jit_step(make_train_step(Toy.loss, Toy.optimizer), state, mesh)
    after, metrics = step(state, jax.device_put(toy_batch(8), batch_sharding(mesh)))
    assert state.params["w"].is_deleted()
    assert jax.tree.map(lambda x: x.sharding, after) == shardings
    assert metrics["loss"].sum.sharding.is_fully_replicated


def test_a_compiled_evaluation_sums_over_all_devices_and_leaves_the_parameters():
    mesh = mesh_of(data=4, sequence=2)
    state, batch = Toy.state(mesh), toy_batch(8)
    batch["weights"][1:] = 0.0
    metrics = jit_eval(make_eval_step(Toy.loss), mesh, state.params)(
        state.params, jax.device_put(batch, batch_sharding(mesh))
    )
    assert (float(metrics["loss"].sum), float(metrics["loss"].weight)) == (8 * (0 + 1 + 2 + 3), 4)
    assert not state.params["w"].is_deleted()


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 2, "sequence": 2, "tensor": 2}, {"replica": 2, "tensor": 4}])
def test_a_placed_batch_is_the_batch_cut_over_rows_and_time(sizes):
    mesh, batch, asked = mesh_of(**sizes), toy_batch(16, 6), []

    def read(rows):
        asked.append(rows)
        return {name: array[rows] for name, array in batch.items()}

    placed = place_batch(read, 16, mesh)
    assert asked == [slice(0, 16)]
    for name, array in placed.items():
        assert array.sharding == batch_sharding(mesh)
        assert array.dtype == batch[name].dtype
        np.testing.assert_array_equal(array, batch[name])


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 2, "sequence": 2, "tensor": 2}, {"replica": 2, "tensor": 4}])
def test_each_of_two_processes_reads_only_the_rows_of_its_own_devices(sizes, monkeypatch):
    """The other process's devices are left out of what a process is told to fill, as JAX does there."""
    mesh, batch = mesh_of(**sizes), toy_batch(16, 6)
    every = NamedSharding.devices_indices_map
    rebuilt = {name: np.full_like(array, -1) for name, array in batch.items()}
    for own in (jax.devices()[:4], jax.devices()[4:]):

        def indices(self, shape, own=own):
            return {device: index for device, index in every(self, shape).items() if device in own}

        def make(shape, sharding, take, own=own):
            return [(index, take(index)) for index in indices(sharding, shape, own).values()]

        def read(rows, own=own):
            first = 0 if own[0].id == 0 else 8
            assert (rows.start, rows.stop) == (first, first + 8)
            return {name: array[rows] for name, array in batch.items()}

        monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", indices)
        monkeypatch.setattr(jax, "make_array_from_callback", make)
        for name, pieces in place_batch(read, 16, mesh).items():
            for index, piece in pieces:
                rebuilt[name][index] = piece
    for name, array in batch.items():
        np.testing.assert_array_equal(rebuilt[name], array)
