"""Multipliers of the learning rate: what they reach, frozen parameters, and one rate for each stacked layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.families import model_of
from lmjax.model.heads import TaskModel
from lmjax.model.language_model import LanguageModel
from lmjax.model.presets import preset
from lmjax.optim.optimizer import make_optimizer
from lmjax.optim.rates import Rates, layer_rates, model_rates
from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    FeedForwardSettings,
    ModelSettings,
    MuPSettings,
    NormSettings,
    OptimizerSettings,
    PositionSettings,
)

RATE = 0.5
BASE = MuPSettings(base_width=32, base_head_dim=8)
MODELS = {
    "gpt": ModelSettings(layers=2, width=128, vocab_size=64, attention=AttentionSettings(heads=4), mup=BASE),
    "llama": ModelSettings(
        layers=2,
        width=128,
        vocab_size=64,
        attention=AttentionSettings(heads=4, kv_heads=2, bias=False),
        feed_forward=FeedForwardSettings(width=256, gated=True, activation="silu", bias=False),
        norm=NormSettings(kind="rmsnorm"),
        positions=PositionSettings(kind="rotary"),
        tied_head=False,
        mup=BASE,
    ),
    "relative": ModelSettings(
        layers=2,
        width=128,
        vocab_size=64,
        attention=AttentionSettings(heads=4),
        positions=PositionSettings(kind="relative"),
        mup=BASE,
    ),
}


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_under_mup_matrices_from_width_to_width_learn_at_the_ratio_of_the_widths_and_all_else_at_the_rate(
    name, scan_layers
):
    axes = LanguageModel(MODELS[name], ComputeSettings(scan_layers=scan_layers)).logical_axes()
    rates = model_rates(axes, MODELS[name])
    assert rates.whole is None
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(rates.updates)}
    assert {path: leaf for path, leaf in found.items() if path.endswith("['kernel']")} != {}
    assert found == {path: 0.25 if path.endswith("['kernel']") else 1.0 for path in found}


def test_the_base_model_and_the_standard_parametrisation_have_no_multipliers():
    axes = LanguageModel(MODELS["gpt"]).logical_axes()
    for mup in (MuPSettings(), MuPSettings(128), MuPSettings(128, 32)):
        same = ModelSettings(layers=2, vocab_size=64, mup=mup)
        assert model_rates(axes, same) == Rates()


def updated(rates, weight_decay=0.1):
    """Stacked layers [3, 4, 5], an embedding and a bias after three updates, and as they were."""
    rng = np.random.default_rng(0)
    axes = {"kernel": ("layers", "embed", "mlp"), "tokens": ("vocab", "embed"), "bias": ("layers", "mlp")}
    shapes = {"kernel": (3, 4, 5), "tokens": (7, 4), "bias": (3, 5)}
    before = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    settings = OptimizerSettings(weight_decay=weight_decay, decay_embeddings=True, clip_norm=None)
    optimizer = make_optimizer(settings, lambda step: jnp.float32(RATE), axes, rates)
    params, state = before, optimizer.init(before)
    for step in range(3):
        grads = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
        updates, state = jax.jit(optimizer.update)(grads, state, params, step=step)
        params = jax.tree.map(jnp.add, params, updates)
    return params, before


def test_a_parameter_whose_whole_rate_is_0_stays_as_it_is_bit_for_bit_and_others_learn_as_without_it():
    free, before = updated(Rates())
    frozen, _ = updated(Rates(whole={"kernel": 0.0, "tokens": 0.0, "bias": 1.0}))
    for name in ("kernel", "tokens"):
        assert np.asarray(frozen[name]).tobytes() == np.asarray(before[name]).tobytes()
        assert not np.array_equal(free[name], before[name])
    np.testing.assert_array_equal(frozen["bias"], free["bias"])


def test_each_stacked_layer_has_its_own_rate_as_if_it_stood_alone():
    """The arrays of layer-wise decay: 0.5^(L - layer); the first layer is frozen, too."""
    decay = np.asarray([0.0, 0.5, 1.0], np.float32)
    rates = Rates(whole={"kernel": decay[:, None, None], "tokens": 0.25, "bias": decay[:, None]})
    found, before = updated(rates, weight_decay=0.0)
    free, _ = updated(Rates(), weight_decay=0.0)
    for name, factor in {"kernel": decay[:, None, None], "tokens": 0.25, "bias": decay[:, None]}.items():
        moved = (free[name] - before[name]) * factor
        np.testing.assert_allclose(found[name] - before[name], moved, rtol=1e-5, atol=1e-6)
    assert np.array_equal(found["kernel"][0], before["kernel"][0]) and np.array_equal(
        found["bias"][0], before["bias"][0]
    )


@pytest.mark.parametrize(("whole", "share"), [(None, 1.0), (0.5, 0.5)])
def test_a_multiplier_of_updates_leaves_weight_decay_as_it_is_and_one_of_the_whole_multiplies_it(whole, share):
    ones = {"tokens": 1.0, "bias": 1.0}
    found, before = updated(Rates({"kernel": 0.0} | ones, None if whole is None else {"kernel": whole} | ones))
    np.testing.assert_allclose(found["kernel"], before["kernel"] * (1 - RATE * share * 0.1) ** 3, rtol=1e-6)


@pytest.mark.parametrize("scan", [True, False])
def test_rates_fall_from_layer_to_layer_and_frozen_layers_have_none(scan):
    """Of BERT below a task's head: the head and the pooler learn at the rate, embeddings at the least."""
    bert = dataclasses.replace(preset("bert_tiny"), layers=4, vocab_size=9)
    model = TaskModel(model_of(bert, ComputeSettings(scan_layers=scan)), 2)
    axes = model.logical_axes()
    found = layer_rates(axes, bert, ("trunk",), 0.5, 0)
    trunk = found["trunk"]
    assert jax.tree.leaves(found["head"]) == [1.0, 1.0] and set(jax.tree.leaves(trunk["pooler"])) == {1.0}
    for name in ("tokens", "positions", "segment_types"):
        assert trunk[name] == 0.5**5
    assert set(jax.tree.leaves(trunk["embedding_norm"])) == {0.5**5}
    wanted = [0.5**4, 0.5**3, 0.5**2, 0.5]
    if scan:
        shapes = jax.eval_shape(model.init, jax.random.key(0))["trunk"]["periods"]
        for rates, leaf in zip(jax.tree.leaves(trunk["periods"]), jax.tree.leaves(shapes), strict=True):
            assert rates.ndim == leaf.ndim and rates.ravel().tolist() == wanted
    else:
        for layer, rate in enumerate(wanted):
            assert set(jax.tree.leaves(trunk[f"period_{layer}"])) == {rate}
    frozen = layer_rates(axes, bert, ("trunk",), 1.0, 3)["trunk"]
    assert frozen["tokens"] == 0.0 and set(jax.tree.leaves(frozen["pooler"])) == {1.0}
    last = [np.ravel(leaf)[-1] for leaf in jax.tree.leaves(frozen["periods" if scan else "period_3"])]
    first = [np.ravel(leaf)[0] for leaf in jax.tree.leaves(frozen["periods" if scan else "period_2"])]
    assert set(last) == {1.0} and set(first) == {0.0}
    assert layer_rates(axes, bert, ("trunk",), 1.0, 0) is None


def test_rates_follow_the_pattern_of_a_scanned_period():
    """Two blocks a period: layers 0 and 2 are stacked in one array, 1 and 3 in the other."""
    settings = ModelSettings(layers=4, vocab_size=9, attention=AttentionSettings(pattern=("dense", "banded"), band=4))
    found = layer_rates(model_of(settings).logical_axes(), settings, (), 0.1, 0)["periods"]
    for block, wanted in (("block_0", [1e-4, 1e-2]), ("block_1", [1e-3, 1e-1])):
        for rates in jax.tree.leaves(found[block]):
            np.testing.assert_allclose(np.ravel(rates), wanted, rtol=1e-6)
