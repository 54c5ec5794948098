"""Temperature, top-k, top-p and the repetition penalty against NumPy, and draws against their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.generate.sampling import (
    SamplingSettings,
    categorical,
    draw,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
)

V = 12
LOGITS = np.random.default_rng(0).normal(size=(4, V)).astype(np.float32) * 2


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def kept(logits):
    return np.asarray(logits) > -1e29


@pytest.mark.parametrize("k", [1, 3, V, V + 5])
def test_top_k_keeps_the_k_largest(k):
    found = kept(keep_top_k(jnp.asarray(LOGITS), k))
    for row, logits in zip(found, LOGITS, strict=True):
        assert set(np.flatnonzero(row)) == set(np.argsort(-logits)[:k])


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.75, 0.95, 0.9999])
def test_top_p_keeps_the_fewest_tokens_whose_probabilities_reach_p(p):
    found = kept(keep_top_p(jnp.asarray(LOGITS), p))
    for row, probabilities in zip(found, softmax(LOGITS.astype(np.float64)), strict=True):
        nucleus, total = set(), 0.0
        for token in np.argsort(-probabilities):
            if total >= p:
                break
            nucleus.add(token)
            total += probabilities[token]
        assert set(np.flatnonzero(row)) == nucleus


def test_equally_likely_tokens_are_kept_or_left_out_together():
    logits = jnp.asarray([[0.0, 3.0, 3.0, 3.0, 1.0]])
    assert kept(keep_top_k(logits, 2)).tolist() == [[False, True, True, True, False]]
    assert kept(keep_top_p(logits, 0.3)).tolist() == [[False, True, True, True, False]]


def test_the_penalty_makes_seen_tokens_less_likely_whatever_the_sign_of_their_logits():
    logits = np.array([[2.0, -2.0, 2.0, -2.0, 0.0]], np.float32)
    seen = np.array([[True, True, False, False, True]])
    found = penalise_repetition(jnp.asarray(logits), jnp.asarray(seen), 1.25)
    np.testing.assert_allclose(found, [[2.0 / 1.25, -2.0 * 1.25, 2.0, -2.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "kept_tokens"),
    [
        (SamplingSettings(), V),
        (SamplingSettings(top_k=4), 4),
        (SamplingSettings(top_p=0.8), None),
        (SamplingSettings(top_k=5, top_p=0.9), None),
    ],
)
def test_draws_have_the_frequencies_of_the_kept_and_renormalised_probabilities(settings, kept_tokens):
    draws = 20_000
    logits = LOGITS[0]
    order = np.argsort(-logits)[: settings.top_k or V]
    probabilities = np.zeros(V)
    probabilities[order] = softmax(logits[order].astype(np.float64))
    if settings.top_p:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= settings.top_p]] = 0
        probabilities /= probabilities.sum()
    assert kept_tokens is None or (probabilities > 0).sum() == kept_tokens
    keys = jax.random.split(jax.random.key(1), draws)
    tokens = jax.jit(draw, static_argnums=2)(jnp.tile(logits, (draws, 1)), keys, settings)
    found = np.bincount(np.asarray(tokens), minlength=V) / draws
    error = 5 * np.sqrt(probabilities * (1 - probabilities) / draws)  # five standard errors; none where excluded
    assert (np.abs(found - probabilities) <= error).all()


def test_greedy_takes_the_most_likely_token_whatever_else_is_set():
    keys = jax.random.split(jax.random.key(0), 4)
    settings = SamplingSettings(temperature=0, top_k=5, top_p=0.9)
    assert np.asarray(draw(jnp.asarray(LOGITS), keys, settings)).tolist() == LOGITS.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("top", -1),
        ("seed", -1),
        ("seed", 2**32),
        ("stop", ("a", "")),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(field, value):
    with pytest.raises(UserError, match=f"^{field} = "):
        SamplingSettings(**{field: value})


def test_draws_from_a_large_vocabulary_have_their_frequencies_in_and_across_blocks():
    vocabulary, draws = 1_000, 40_000  # four blocks, the last of which is not full
    logits = np.random.default_rng(3).normal(size=vocabulary).astype(np.float32) * 2
    logits[::7] = -np.inf
    keys = jax.random.split(jax.random.key(2), draws)
    tokens = np.asarray(jax.jit(jax.vmap(categorical, in_axes=(None, 0)))(jnp.asarray(logits), keys))
    probabilities = softmax(logits.astype(np.float64))
    found = np.bincount(tokens, minlength=vocabulary) / draws
    assert not found[::7].any()
    often = probabilities * draws >= 5
    statistic = (draws * (found - probabilities) ** 2 / np.where(often, probabilities, 1.0))[often].sum()
    assert often.sum() > 300 and abs(statistic - often.sum()) < 5 * np.sqrt(2 * often.sum())  # chi-squared
    rare = probabilities[~often].sum()
    assert abs(found[~often].sum() - rare) < 5 * np.sqrt(rare / draws)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_uniform_numbers_draw_no_excluded_token(monkeypatch, uniform):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, uniform, jnp.float32))
    logits = jnp.asarray([-np.inf, -np.inf, 0.3, -40.0, 0.1, -np.inf, *[-np.inf] * 600], jnp.float32)
    token = int(categorical(logits, jax.random.key(0)))
    assert token == (2 if uniform == 0.0 else 4)
