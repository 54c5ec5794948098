"""What tests of attention on a mesh share: an implementation there against `einsum` without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.attention import attention
from lmjax.parallel.placement import on_mesh


@pytest.fixture
def assert_is_einsum():
    """A function (implementation, mask, mesh, q, k, v, gradient of the result, cap=None): they compute the same."""

    def value_and_gradients(implementation, mask, mesh, q, k, v, g, cap):
        shown = jnp.ones(q.shape[:2], bool) if mask.query_segments is None else mask.query_segments != 0
        shown = jnp.broadcast_to(shown[:, :, None, None], g.shape)

        def loss(q, k, v, mask):
            y = attention(q, k, v, mask, implementation=implementation, interpret=True, cap=cap)
            return jnp.where(shown, y * g, 0).sum(), jnp.where(shown, y, 0)

        function = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
        (_, y), grads = jax.jit(on_mesh(function, mesh) if mesh else function)(q, k, v, mask)
        return [y, *grads]

    def check(implementation, mask, mesh, *arrays, cap=None):
        cut = value_and_gradients(implementation, mask, mesh, *arrays, cap)
        whole = value_and_gradients("einsum", mask, None, *arrays, cap)
        for name, a, b in zip(("out", "dq", "dk", "dv"), cut, whole, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5, err_msg=name)

    return check
