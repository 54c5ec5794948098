"""An iteration on a mesh of eight devices is the iteration on one."""

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.rows import compile_step, place_rows
from lmjax.parallel.shardings import on_mesh, parameter_shardings
from lmjax.settings import MeshSettings
from lmjax.stages.steps import ppo_state

from .conftest import first_state, make_learner, models, parameters


def placed(array, like):
    return jax.device_put(jnp.copy(array), like.sharding)  # a step uses the state's memory again


def test_an_iteration_does_not_depend_on_the_mesh(prompts):
    learner = make_learner(average=0.9)
    policy, scalar = models()
    axes = {"policy": policy.logical_axes(), "value": scalar.logical_axes()}
    own = parameters()
    results = []
    for settings, devices in ((MeshSettings(), 1), (MeshSettings(data=2, fsdp=2, tensor=2), 8)):
        mesh = make_mesh(settings, jax.devices()[:devices])
        abstract = ppo_state(learner, axes, mesh)
        state = jax.tree.map(placed, first_state(learner), abstract)
        frozen = {
            "reference": jax.device_put(own["reference"], parameter_shardings(axes["policy"], mesh)),
            "reward": jax.device_put(own["reward"], parameter_shardings(scalar.logical_axes(), mesh)),
        }
        batch = place_rows({name: np.asarray(array) for name, array in prompts.items()}, mesh)
        rollout = jax.jit(on_mesh(learner.roll, mesh))(state, batch)
        after, metrics = compile_step(learner.iterate, mesh, abstract, frozen)(state, frozen, batch)
        if devices == 8:
            for tree in (after.params["policy"], after.opt_state["average"], after.params["value"]["trunk"]):
                assert not tree["tokens"].sharding.is_fully_replicated
        results.append(jax.device_get((rollout.responses, after.params, after.opt_state["average"], metrics["reward"])))
    (responses, *one), (responses_on_mesh, *eight) = results
    np.testing.assert_array_equal(responses, responses_on_mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, eight)
