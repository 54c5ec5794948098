"""What later families need of the one Block: cross-attention, bidirectional attention, a relative bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import meta

from lmjax.model.blocks import Block, BlockContext, Surroundings
from lmjax.model.masks import Mask
from lmjax.settings import AttentionSettings, ModelSettings, NormSettings, PositionSettings

T, M, WIDTH, HEADS = 5, 7, 8, 2
MEMORY_SEGMENTS = np.array([[1] * 7, [1] * 3 + [0] * 4], np.int32)


def make(norm="pre", positions="learned", causal=True):
    settings = ModelSettings(
        layers=1,
        width=WIDTH,
        attention=AttentionSettings(heads=HEADS),
        norm=NormSettings(position=norm),
        positions=PositionSettings(kind=positions),
    )
    block = Block(BlockContext(settings, jnp.dtype(jnp.float32), flatten=False, attention="einsum"), "dense")
    rng = np.random.default_rng(0)
    x, memory = (jnp.asarray(rng.normal(size=(2, length, WIDTH)), jnp.float32) for length in (T, M))
    bias = jnp.asarray(rng.normal(size=(1, HEADS, T, T)), jnp.float32)
    around = Surroundings(
        mask=Mask(causal, None),
        positions=jnp.broadcast_to(jnp.arange(T), (2, T)),
        bias=bias if positions == "relative" else None,
        memory=memory,
        memory_mask=Mask(False, None, jnp.ones((2, T), jnp.int32), jnp.asarray(MEMORY_SEGMENTS)),
    )

    def draw(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(around + 0.5 * rng.normal(size=leaf.shape), jnp.float32)

    shapes = meta.unbox(jax.eval_shape(block.init, jax.random.key(0), x, None, None, around)["params"])
    return block, jax.tree_util.tree_map_with_path(draw, shapes), x, around


def run(block, params, x, around):
    return block.apply({"params": params}, x, None, None, around)[0]


def normed(params, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]


def attended(params, x, source, seen, bias=0.0):
    q, kv = (
        np.tensordot(a, params[n]["kernel"], 1) + params[n]["bias"] for a, n in ((x, "query"), (source, "key_value"))
    )
    scores = np.einsum("bthk,bshk->bhts", q, kv[:, :, 0]) / np.sqrt(WIDTH // HEADS) + bias
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bhts,bshk->bthk", weights / weights.sum(-1, keepdims=True), kv[:, :, 1])
    return np.tensordot(y, params["out"]["kernel"], 2) + params["out"]["bias"]


def fed_forward(params, x):
    hidden = np.tensordot(x, params["up"]["kernel"], 1) + params["up"]["bias"]
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return np.tensordot(hidden, params["down"]["kernel"], 1) + params["down"]["bias"]


def expected(params, x, around, norm, causal):
    """The three branches in the order of Vaswani et al. 2017, section 3.1; the bias is added in the first one only."""
    params, x, memory = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x, around.memory))
    own = np.tril(np.ones((T, T), bool)) if causal else np.ones((T, T), bool)
    theirs = (MEMORY_SEGMENTS != 0)[:, None, None, :]
    bias = 0.0 if around.bias is None else np.asarray(around.bias)
    for name, branch in (
        ("attention_norm", lambda x: attended(params["attention"], x, x, own, bias)),
        ("cross_norm", lambda x: attended(params["cross_attention"], x, memory, theirs)),
        ("feed_forward_norm", lambda x: fed_forward(params["feed_forward"], x)),
    ):
        x = x + branch(normed(params[name], x)) if norm == "pre" else normed(params[name], x + branch(x))
    return x


@pytest.mark.parametrize(
    ("norm", "positions", "causal"), [("pre", "relative", True), ("post", "learned", True), ("pre", "learned", False)]
)
def test_a_block_with_a_memory_is_self_attention_cross_attention_and_feed_forward(norm, positions, causal):
    block, params, x, around = make(norm, positions, causal)
    np.testing.assert_allclose(run(block, params, x, around), expected(params, x, around, norm, causal), atol=3e-5)


def test_rotary_positions_turn_nothing_in_cross_attention():
    """Positions of queries and of the memory count from different starts: only self-attention may move with them."""
    block, params, x, around = make(positions="rotary")
    silent = params | {"attention": jax.tree.map(jnp.zeros_like, params["attention"])}
    moved = Surroundings(around.mask, around.positions * 3 + 1, None, around.memory, around.memory_mask)
    assert (run(block, silent, x, around) == run(block, silent, x, moved)).all()
    assert np.abs(run(block, params, x, around) - run(block, params, x, moved)).max() > 1e-2


def test_padding_of_the_memory_gets_no_gradient_and_the_rest_does():
    block, params, x, around = make()

    def total(memory):
        return (
            run(block, params, x, Surroundings(around.mask, around.positions, None, memory, around.memory_mask)) ** 2
        ).sum()

    grad = np.abs(jax.grad(total)(around.memory)).max(-1)
    assert ((grad > 0) == (MEMORY_SEGMENTS != 0)).all()
