"""An iteration on a mesh of eight devices is the iteration on one, for every baseline; it is compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.heads import scalar_axes
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import ROWS, batch_sharding, jit_step, on_mesh, parameter_shardings, place_rows
from lmjax.plan.hlo import parse
from lmjax.settings import MeshSettings
from lmjax.stages.ppo_learner import ppo_state

from .conftest import first_state, make_learner, models, parameters, ragged_prompts

CUBE = MeshSettings(data=2, fsdp=2, tensor=2)
CASES = [
    ({"ema_decay": 0.9}, CUBE),
    pytest.param({"ptx_coefficient": 5.0}, CUBE, marks=pytest.mark.slow),
    pytest.param({"baseline": "value_head"}, CUBE, marks=pytest.mark.slow),
    ({"baseline": "group", "group": 2}, MeshSettings(fsdp=4, tensor=2)),
]


def placed(array, like):
    return jax.device_put(jnp.copy(array), like.sharding)  # a step uses the state's memory again


def batch_of(learner):
    """Prompts and, where they are mixed in, pretraining rows of very unequal weight."""
    batch = {name: np.asarray(array) for name, array in ragged_prompts().items()}
    if learner.ppo.ptx_coefficient:
        rng = np.random.default_rng(5)
        rows = {name: rng.integers(4, 13, (4, 10)).astype(np.int32) for name in ("tokens", "targets")}
        rows |= {"positions": np.tile(np.arange(10, dtype=np.int32), (4, 1)), "segments": np.ones((4, 10), np.int32)}
        rows["weights"] = (np.arange(10) < np.array([[1], [10], [4], [0]])).astype(np.float32)
        batch |= {f"mix_{name}": array for name, array in rows.items()}
    return batch


def placed_on(learner, mesh):
    """The shapes of the state, the state, and the frozen models."""
    policy, scalar = models()
    value = {"value": {"value": scalar.logical_axes()}, "value_head": {"value": scalar_axes()}, "group": {}}
    axes = {"policy": policy.logical_axes()} | value[learner.ppo.baseline]
    abstract = ppo_state(learner, axes, mesh)
    own = {"reference": (policy, parameters()["reference"]), "reward": (scalar, parameters()["reward"])}
    frozen = {
        name: jax.device_put(params, parameter_shardings(model.logical_axes(), mesh))
        for name, (model, params) in own.items()
    }
    return abstract, jax.tree.map(placed, first_state(learner), abstract), frozen


def close(one, eight, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, **tolerance), one, eight)


def phases(settings, devices):
    """Responses, their scores, and their divergences from the reference."""
    learner, mesh = make_learner(), make_mesh(settings, jax.devices()[:devices])
    _, state, frozen = placed_on(learner, mesh)
    rollout = jax.jit(on_mesh(learner.roll, mesh))(state, place_rows(batch_of(learner), mesh))
    scores = jax.jit(on_mesh(learner.score, mesh))(frozen["reward"], rollout)
    divergences = jax.jit(on_mesh(learner.divergence, mesh))(state, frozen["reference"], rollout)
    return jax.device_get((rollout.responses, scores, divergences))


def test_responses_scores_and_divergences_do_not_depend_on_the_mesh():
    (responses, *one), (responses_on_mesh, *eight) = phases(MeshSettings(), 1), phases(CUBE, 8)
    np.testing.assert_array_equal(responses, responses_on_mesh)
    assert np.std(one[0]) > 0.1 and np.abs(one[1]).max() > 1e-3
    close(one, eight)


def iteration(learner, settings, devices):
    """The parameters and the average behind an iteration, and its metrics."""
    mesh = make_mesh(settings, jax.devices()[:devices])
    abstract, state, frozen = placed_on(learner, mesh)
    batch = place_rows(batch_of(learner), mesh)
    step = jit_step(learner.iterate, abstract, mesh, frozen=(frozen,), batch=batch_sharding(mesh, ROWS))
    after, metrics = step(state, frozen, batch)
    if devices == 8:
        trained = [after.params["policy"], after.opt_state.get("average"), after.params.get("value", {}).get("trunk")]
        assert not any(tree["tokens"].sharding.is_fully_replicated for tree in trained if tree)
    return jax.device_get(((after.params, after.opt_state.get("average")), metrics))


@pytest.mark.parametrize(("changes", "settings"), CASES)
def test_an_iteration_does_not_depend_on_the_mesh(changes, settings):
    learner = make_learner(**changes)
    (one, metrics), (eight, metrics_on_mesh) = iteration(learner, MeshSettings(), 1), iteration(learner, settings, 8)
    close(one, eight)
    close(metrics, metrics_on_mesh, rtol=1e-5)  # sums over tokens, some of them large


def test_an_iteration_is_compiled_once_whatever_its_prompts():
    learner, mesh = make_learner(), make_mesh(MeshSettings(), jax.devices()[:1])
    abstract, state, frozen = placed_on(learner, mesh)
    iterate = jit_step(learner.iterate, abstract, mesh, frozen=(frozen,), batch=batch_sharding(mesh, ROWS))
    lengths = set()
    for iteration in range(4):
        prompts = {name: np.roll(array, iteration, axis=0) for name, array in ragged_prompts().items()}
        prompts["tokens"] = np.where(prompts["segments"] > 0, prompts["tokens"] % (5 + iteration), 0)
        state, metrics = iterate(state, frozen, place_rows(prompts, mesh))
        lengths.add(float(metrics["response_length"].sum))
    assert len(lengths) > 1  # the loop over tokens ended in other places
    assert iterate._cache_size() == 1


def test_sampling_gathers_the_policy_once_and_no_token_gathers_a_matrix():
    learner, mesh = make_learner(), make_mesh(MeshSettings(data=1, fsdp=8))
    abstract = ppo_state(learner, {"policy": models()[0].logical_axes(), "value": models()[1].logical_axes()}, mesh)
    rows = batch_sharding(mesh, ROWS)
    prompts = {name: jax.ShapeDtypeStruct((8, 8), jnp.int32, sharding=rows) for name in ragged_prompts()}
    compiled = jax.jit(on_mesh(learner.roll, mesh), out_shardings=rows).lower(abstract, prompts).compile()
    module = parse(compiled.as_text())
    gathered = {
        name: [shape for each in body if each.opcode.startswith("all-gather") for shape in each.result]
        for name, body in module.computations.items()
    }
    matrices = {
        name: [shape for shape in shapes if len(shape.dims) > 1 and "f" in shape.dtype]
        for name, shapes in gathered.items()
    }
    assert len(matrices.pop(module.entry)) >= 6 and not any(matrices.values())
