"""Splash attention cut over a mesh: every device its rows, heads and queries, and nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.attention import attention
from lmjax.model.masks import Mask
from lmjax.model.sharding import bound_mesh
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import on_mesh
from lmjax.settings import MeshSettings

B, T, K = 4, 256, 64


def arrays(heads, kv_heads):
    keys = jax.random.split(jax.random.key(0), 4)
    q, g = (jax.random.normal(k, (B, T, heads, K)) for k in keys[:2])
    k, v = (jax.random.normal(k, (B, T, kv_heads, K)) for k in keys[2:])
    return q, k, v, g


def ragged():
    """Documents that end at a different place in every row, and padding (segment 0) at the end of one."""
    ends = np.array([[100, 256], [7, 130], [255, 256], [128, 200]])
    index = np.arange(T)[None]
    segments = np.where(index < ends[:, :1], 1, np.where(index < ends[:, 1:], 2, 3))
    segments[1, 240:] = 0
    return jnp.asarray(segments, jnp.int32)


@pytest.mark.parametrize(
    ("axes", "heads", "kv_heads", "causal", "band", "cap"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, 4, 4, True, None, None),
        ({"data": 2, "tensor": 4}, 8, 4, True, None, None),  # grouped queries
        ({"data": 2, "sequence": 2, "tensor": 2}, 2, 2, True, None, None),
        ({"data": 4, "sequence": 2}, 2, 1, True, 100, 1.5),
        ({"data": 4, "sequence": 2}, 2, 2, False, None, None),
    ],
)
def test_splash_cut_over_a_mesh_gives_the_values_and_gradients_of_einsum(
    axes, heads, kv_heads, causal, band, cap, assert_is_einsum
):
    mesh = make_mesh(MeshSettings(**{"data": 1} | axes))
    segments = ragged()
    mask = Mask(causal, band, segments, segments)
    assert_is_einsum("splash", mask, mesh, *arrays(heads, kv_heads), cap=cap)


def test_each_device_runs_the_kernel_on_its_own_part_only():
    mesh = make_mesh(MeshSettings(data=4, tensor=2))
    q, k, v, _ = arrays(4, 4)
    segments = ragged()

    def call(q, k, v):
        return attention(q, k, v, Mask(True, None, segments, segments), implementation="splash", interpret=True)

    text = str(jax.make_jaxpr(on_mesh(call, mesh))(q, k, v))
    assert f"f32[{B // 4},{4 // 2},{T},{K}]" in text.split("shard_map", 1)[1]


def test_no_mesh_is_bound_outside_of_a_traced_function():
    mesh = make_mesh(MeshSettings(data=8))
    seen = []
    with pytest.raises(ZeroDivisionError):
        on_mesh(lambda: (seen.append(bound_mesh()), 1 / 0), mesh)()
    assert seen[0].mesh is mesh and bound_mesh() is None
