"""The block of the attention kernel is a setting that reaches the kernel and changes no value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from lmjax.errors import UserError
from lmjax.model.language_model import LanguageModel
from lmjax.settings import AttentionSettings, ComputeSettings, ModelSettings

T = 512
SHAPE = ModelSettings(
    1, 32, T, 64, AttentionSettings(heads=1, implementation="splash", pattern=("banded",), band=200), dropout=0.0
)
TOKENS = jax.random.randint(jax.random.key(1), (1, T), 0, 64)
BATCH = {"tokens": TOKENS, "positions": jnp.arange(T)[None], "segments": jnp.ones((1, T), jnp.int32)}


def loss(model):
    return lambda params: (model.logits(params, BATCH) ** 2).mean()


def made(block):
    return LanguageModel(SHAPE, ComputeSettings(attention_block=block))


def grids(jaxpr):
    """Of all Pallas calls, at any depth."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found.append(equation.params["grid_mapping"].grid)
        for inner in jaxprs_in_params(equation.params):
            found += grids(inner)
    return found


@pytest.mark.parametrize(("block", "blocks", "kernels"), [(None, 1, 2), (256, 2, 3), (128, 4, 3), (384, 2, 3)])
def test_the_kernels_take_blocks_of_the_size_that_is_set(block, blocks, kernels):
    """Forward, dk and dv, and dq, which the kernel of dk and dv makes, too, where there is one block."""
    model = made(block)
    params = jax.eval_shape(model.init, jax.random.key(0))
    found = grids(jax.make_jaxpr(jax.grad(loss(model)))(params).jaxpr)
    assert [max(grid) for grid in found] == [blocks] * kernels, found


@pytest.mark.parametrize("block", [None, 128])
def test_no_value_or_gradient_depends_on_the_block(block):
    params = made(None).init(jax.random.key(0))
    einsum = dataclasses.replace(SHAPE, attention=dataclasses.replace(SHAPE.attention, implementation="einsum"))
    expected = jax.value_and_grad(loss(LanguageModel(einsum)))(params)
    found = jax.value_and_grad(loss(made(block)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), found, expected)


@pytest.mark.parametrize("block", [0, 100, -128])
def test_a_block_that_fills_no_register_is_refused(block):
    with pytest.raises(UserError, match=r"^ComputeSettings\.attention_block = "):
        ComputeSettings(attention_block=block)
