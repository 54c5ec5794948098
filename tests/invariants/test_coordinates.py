"""Coordinate check: how large each layer's activations are over widths, as training begins, with and without muP.

The check is that of Yang & Hu et al. 2022, "Tensor Programs V", appendix D.1. Logits of a fresh model fall as
1 / sqrt(width) under muP, as the paper's do, and so does what the first steps change through that head: logits are
judged by their change since the beginning, which evens out within some steps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.language_model import LanguageModel
from lmjax.objective.next_token import language_loss
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.rates import model_rates
from lmjax.optim.train_state import TrainState
from lmjax.settings import AttentionSettings, ComputeSettings, ModelSettings, MuPSettings, OptimizerSettings
from lmjax.training.step import make_train_step

HEADS, LAYERS, STEPS, RATE = 4, 2, 10, 5e-3
BASE = MuPSettings(base_width=32, base_head_dim=8)
OVER = [(32, 256), pytest.param((32, 64, 128, 256), marks=pytest.mark.slow)]
FADED = 5  # steps after which the fresh head's part of the logits' change is small beside what was learned
V, B, T = 64, 16, 16
UNROLLED = ComputeSettings(scan_layers=False)


def batches():
    """Fields [STEPS, B, T] of a language in which 5 x the last token, and a little more, comes next."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, V, (STEPS, B, T + 1))
    for t in range(T):
        tokens[..., t + 1] = (5 * tokens[..., t] + rng.integers(0, 3, (STEPS, B))) % V
    ones = np.ones((STEPS, B, T), np.int32)
    places = np.broadcast_to(np.arange(T, dtype=np.int32), ones.shape)
    fields = {"tokens": tokens[..., :-1], "targets": tokens[..., 1:], "positions": places, "segments": ones}
    return {name: jnp.asarray(x, jnp.int32) for name, x in fields.items()} | {"weights": jnp.asarray(ones, jnp.float32)}


def activations(settings, params, batch):
    """The residual stream behind the embeddings and behind each block, and the logits."""
    found = {"embeddings": params["tokens"][batch["tokens"]] + params["positions"][batch["positions"]]}
    unnormed = dataclasses.replace(settings.norm, final=False)
    for layers in range(1, LAYERS + 1):  # of deeper models the first layers are those of shallower ones
        first = dataclasses.replace(settings, layers=layers, norm=unnormed)
        found[f"block {layers}"] = LanguageModel(first, UNROLLED).hidden(params, batch).hidden
    return found | {"logits": LanguageModel(settings, UNROLLED).logits(params, batch)}


@functools.cache
def sizes(width, mup):
    """The mean size of each layer's activations after 1 to STEPS steps; of the logits that of their change."""
    shape = {"layers": LAYERS, "width": width, "context": T, "vocab_size": V}
    settings = ModelSettings(**shape, attention=AttentionSettings(heads=HEADS), mup=BASE if mup else MuPSettings())
    model = LanguageModel(settings, UNROLLED)
    axes = model.logical_axes()
    optimizer = make_optimizer(OptimizerSettings(), lambda step: jnp.float32(RATE), axes, model_rates(axes, settings))
    step = make_train_step(language_loss(model), optimizer)

    @jax.jit
    def trained(rng, batches):
        state = TrainState.create(model.init(rng), optimizer)
        probe = jax.tree.map(lambda field: field[0], batches)
        fresh = activations(settings, state.params, probe)["logits"]

        def one(state, batch):
            state, _ = step(state, batch)
            found = activations(settings, state.params, probe)
            found["logits"] -= fresh
            return state, {name: jnp.abs(x).mean() for name, x in found.items()}

        return jax.lax.scan(one, state, batches)[1]

    return jax.tree.map(np.asarray, trained(jax.random.key(0), batches()))


def spread(widths, mup):
    """For each layer and step, the largest size over the widths in the smallest."""
    found = [sizes(width, mup) for width in widths]
    over_widths = {name: np.stack([each[name] for each in found]) for name in found[0]}
    return {name: array.max(axis=0) / array.min(axis=0) for name, array in over_widths.items()}


@pytest.mark.slow
@pytest.mark.parametrize("widths", OVER)
def test_under_mup_every_layers_activations_are_as_large_at_all_widths(widths):
    found = spread(widths, mup=True)
    early, settled = found["logits"][:FADED], found["logits"][FADED:]
    assert early.max() < 1.75 and settled.max() < 1.5
    assert {name: array.max() for name, array in found.items() if name != "logits" and not array.max() < 1.5} == {}


@pytest.mark.slow
@pytest.mark.parametrize("widths", OVER)
def test_under_the_standard_parametrisation_they_grow_with_the_width_at_the_same_rate(widths):
    found = spread(widths, mup=False)
    assert {name: found[name].min() for name in ("block 1", "block 2", "logits") if not found[name].min() > 1.5} == {}
    assert found["block 2"].max() > 5
