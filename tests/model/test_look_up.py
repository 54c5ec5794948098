"""An embedding whose width fsdp cuts, looked up for a residual stream whose rows it cuts: only parts are exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.batch import FIELD_DTYPES
from lmjax.model.embeddings import look_up
from lmjax.model.language_model import LanguageModel
from lmjax.model.sharding import constrain
from lmjax.objective.next_token import language_loss
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import batch_sharding, on_mesh, parameter_shardings
from lmjax.plan.hlo import costs, parse
from lmjax.settings import AttentionSettings, ComputeSettings, MeshSettings, ModelSettings

pytestmark = pytest.mark.usefixtures("optimized")  # what programs exchange is read off them

V, D, B, T = 64, 32, 16, 8
WARNING = "Involuntary full rematerialization"
MESHES = [
    *({"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"replica": 2, "fsdp": 2, "sequence": 2}),
    *({"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 8}),
]


def mesh_of(sizes):
    return make_mesh(MeshSettings(**{"data": 1} | sizes))


def plain(table, places, dtype):
    return jnp.take(table, places, axis=0).astype(dtype)


def compiled(look, mesh):
    """Value and gradient of what is looked up, as the model's residual stream holds it."""

    def loss(table, places, weights):
        x = constrain(look(table, places, jnp.bfloat16), "batch", "time", "act_embed")
        return (x * weights).astype(jnp.float32).sum(), x

    cut, table = batch_sharding(mesh), parameter_shardings(("vocab", "embed"), mesh)
    shapes = [
        jax.ShapeDtypeStruct((V, D), jnp.float32, sharding=table),
        jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=cut),
        jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16, sharding=cut),
    ]
    function = on_mesh(jax.value_and_grad(loss, has_aux=True), mesh)
    return jax.jit(function, out_shardings=((None, cut), table)).lower(*shapes).compile()


def collective_bytes(program):
    return sum(each.bytes for each in costs(parse(program.as_text())).collectives)


def test_nothing_is_made_whole_on_its_way_into_the_residual_stream(capfd):
    said = []
    for sizes in MESHES:
        compiled(plain, mesh_of(sizes))
        said.append(WARNING in capfd.readouterr().err)
        compiled(look_up, mesh_of(sizes))
        assert WARNING not in capfd.readouterr().err, sizes
    assert any(said)  # the compiler does say so; of which meshes depends on its version


def parts(sizes):
    """Bytes that a look-up and its gradient exchange where nothing is made whole, in float32, axis by axis.

    What is looked up is cut along its width and each row is wanted whole, there and back. With the table's rows cut
    over tensor, the lookup is a sum over it. The table's gradient is summed over whatever else cuts the tokens.
    """
    fsdp, tensor, sequence = (sizes.get(axis, 1) for axis in ("fsdp", "tensor", "sequence"))
    copies = sizes.get("data", 1) * sizes.get("replica", 1)
    tokens = B * T // (copies * sequence)
    places = tokens * (fsdp > 1)
    exchanged = 2 * tokens * D // fsdp * (fsdp > 1) + tokens * D // fsdp * (tensor > 1)
    summed = V * D // (fsdp * tensor) * ((copies > 1) + (sequence > 1))
    loss = 1 + (sequence > 1)  # a number, summed once for each axis that cuts it otherwise than the others
    return 4 * (places + exchanged + summed + loss)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_only_parts_are_exchanged(sizes):
    assert collective_bytes(compiled(look_up, mesh_of(sizes))) <= parts(sizes)


# With fsdp and tensor, the compiler of jax 0.12 makes less of a plain look-up: each tensor device exchanges a part.
@pytest.mark.parametrize("sizes", [each for each in MESHES if each != {"fsdp": 2, "tensor": 4}], ids=str)
def test_no_more_is_communicated_than_by_a_plain_look_up(sizes):
    mesh = mesh_of(sizes)
    assert collective_bytes(compiled(look_up, mesh)) <= collective_bytes(compiled(plain, mesh))


def test_values_and_gradients_are_those_of_a_plain_look_up():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(V, D)).astype(np.float32)
    places, weights = rng.integers(0, V, (B, T)), jnp.asarray(rng.normal(size=(B, T, D)), jnp.bfloat16)
    (_, x), grad = compiled(look_up, mesh_of(MESHES[1]))(table, places.astype(np.int32), weights)
    np.testing.assert_array_equal(x, table[places].astype(jnp.bfloat16))
    expected = np.zeros((V, D), np.float32)
    np.add.at(expected, places, np.asarray(weights, np.float32))
    np.testing.assert_allclose(grad, expected, rtol=1e-6, atol=1e-6)  # summed in float32


def test_a_models_gradient_is_partitioned_without_making_anything_whole(capfd, unoptimized):
    mesh = mesh_of(MESHES[0])
    settings = ModelSettings(1, D, T, V, AttentionSettings(heads=4, implementation="einsum"), dropout=0.1)
    model = LanguageModel(settings, ComputeSettings(dtype="float32", remat="full"), "tpu")
    cut = parameter_shardings(model.logical_axes(), mesh)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, cut)
    batch = {n: jax.ShapeDtypeStruct((B, T), d, sharding=batch_sharding(mesh)) for n, d in FIELD_DTYPES.items()}
    loss_fn = language_loss(model)

    def gradient(params, batch):
        return jax.grad(lambda params: loss_fn(params, batch, jax.random.key(0))[0].sum)(params)

    jax.jit(on_mesh(gradient, mesh), out_shardings=cut).lower(params, batch).compile()
    assert WARNING not in capfd.readouterr().err
