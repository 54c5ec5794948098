"""Sampled responses: what the sampler saw is what the full forward pass sees, and nothing after end-of-text matters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.rl.rollout import cut_at_end, join, moved_right, read_responses, repeated, sample
from lmjax.settings import ComputeSettings

from .conftest import END, LENGTHS, VOCABULARY, models, parameters, ragged_prompts

TOKENS = 12


@functools.cache
def sampler(temperature, tokens):
    policy, _ = models()

    def call(params, prompts, key):
        return sample(policy, params, prompts, key, VOCABULARY, tokens=tokens, temperature=temperature)

    return jax.jit(call)


def rolled(prompts, temperature=0.8, tokens=TOKENS, seed=0):
    return sampler(temperature, tokens)(parameters()["policy"], prompts, jax.random.key(seed))


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_the_samplers_log_probabilities_are_those_of_the_full_forward_pass(prompts, temperature):
    policy, _ = models()
    rollout = rolled(prompts, temperature)
    got, entropy, *_ = jax.jit(
        lambda params, rows: read_responses(policy, params, rows, TOKENS, VOCABULARY, temperature)
    )(parameters()["policy"], rollout.rows)
    live = np.asarray(rollout.mask) > 0
    assert live.sum() > 15
    np.testing.assert_allclose(np.asarray(got)[live], np.asarray(rollout.sampled)[live], atol=1e-5)
    assert (np.asarray(entropy)[live] > 0).all()
    # and those of the plain softmax over logits, of rows that begin in the first column
    begun = {name: np.zeros((4, 8 + TOKENS), np.int32) for name in ("tokens", "positions", "segments")}
    for row, length in enumerate(LENGTHS):
        width = length + int(rollout.mask[row].sum())
        begun["tokens"][row, :width] = rollout.rows["tokens"][row, 8 - length : 8 - length + width]
        begun["positions"][row, :width], begun["segments"][row, :width] = np.arange(width), 1
    logits = np.asarray(jax.jit(policy.logits)(parameters()["policy"], begun), np.float64) / temperature
    logits = logits[:, :, : VOCABULARY.size]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, length in enumerate(LENGTHS):
        n = int(rollout.mask[row].sum())
        chosen = log_p[row, length - 1 + np.arange(n), np.asarray(rollout.responses[row, :n])]
        np.testing.assert_allclose(rollout.sampled[row, :n], chosen, atol=2e-5)


def test_a_group_of_responses_is_what_its_prompt_gets_so_often(prompts):
    policy, _ = models()
    call = functools.partial(sample, policy, vocabulary=VOCABULARY, tokens=TOKENS, temperature=0.8)
    key, params = jax.random.key(0), parameters()["policy"]
    together = jax.jit(lambda prompts: call(params, prompts, key, group=3))(prompts)
    apart = jax.jit(lambda prompts: call(params, repeated(prompts, 3), key))(prompts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), together, apart)
    responses = np.asarray(together.responses).reshape(len(LENGTHS), 3, TOKENS)
    assert (responses[:, 0] != responses[:, 1]).any(axis=1).all()


def test_prompts_padded_on_either_side_are_answered_alike():
    left, right = rolled(ragged_prompts("left")), rolled(ragged_prompts("right"))
    jax.tree.map(np.testing.assert_array_equal, left, right)
    for name, array in moved_right(ragged_prompts("right")).items():
        np.testing.assert_array_equal(array, ragged_prompts("left")[name])


def test_a_response_ends_with_its_first_end_of_text_and_rows_hold_nothing_behind_it(prompts):
    rollout = rolled(prompts)
    assert bool(rollout.finished.any()) and not bool(rollout.finished.all())
    for row, length in enumerate(LENGTHS):
        n = int(rollout.mask[row].sum())
        response = np.asarray(rollout.responses[row])
        assert (END in response) == bool(rollout.finished[row]) == (response[n - 1] == END)
        assert not response[n:].any() and END not in response[: n - 1]
        np.testing.assert_array_equal(
            rollout.rows["segments"][row], [0] * (8 - length) + [1] * (length + n) + [0] * (TOKENS - n)
        )
        np.testing.assert_array_equal(rollout.rows["positions"][row, 8 - length : 8 + n], np.arange(length + n))
        assert n == TOKENS or bool(rollout.finished[row])


def test_the_context_limits_a_response():
    rollout = rolled(ragged_prompts(), tokens=20)  # a context of 24
    lengths = rollout.mask.sum(axis=1) + jnp.asarray(LENGTHS)
    assert int(lengths.max()) <= 24


def test_whatever_is_sampled_after_end_of_text_is_cut():
    tokens = jnp.asarray([[5, END, 7, END], [END, 5, 6, 7], [5, 6, 7, 8], [5, 6, END, END], [5, END, 0, 0]])
    mask, finished = cut_at_end(tokens, jnp.asarray([4, 4, 4, 2, 0]), END)
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(finished, [True, True, False, False, False])


def test_what_stands_after_end_of_text_changes_no_bit_of_a_row(prompts):
    tokens = jnp.asarray([[5, END, 7, END, 9], [END, 5, 6, 7, 8], [5, 6, 7, 8, END], [5, 6, END, END, 4]])
    mask, _ = cut_at_end(tokens, jnp.full(4, 5), END)
    other = jnp.where(mask > 0, tokens, 11)
    np.testing.assert_array_equal(cut_at_end(other, jnp.full(4, 5), END)[0], mask)
    jax.tree.map(np.testing.assert_array_equal, join(prompts, tokens, mask), join(prompts, other, mask))


def test_a_rows_draw_does_not_depend_on_the_other_rows(prompts):
    whole = rolled(prompts)
    others = {name: array.at[2:].set(array[:2]) for name, array in prompts.items()}
    np.testing.assert_array_equal(rolled(others).responses[:2], whole.responses[:2])
    assert not np.array_equal(rolled(prompts, seed=1).responses, whole.responses)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_prompt_that_is_read_once_for_its_group_gives_the_same_readings_and_gradients(prompts, scan_layers):
    policy = dataclasses.replace(models()[0], compute=ComputeSettings(scan_layers=scan_layers))
    params = parameters()["policy"] if scan_layers else policy.unstacked(parameters()["policy"])
    rollout = rolled(repeated(prompts, 3))
    assert (np.asarray(rollout.mask).sum(axis=1) < TOKENS).any()

    def read(params, group):
        found = read_responses(policy, params, rollout.rows, TOKENS, VOCABULARY, 0.8, group=group)
        masked = [jnp.where(rollout.mask > 0, array, 0.0) for array in (found.log_probs, found.entropy)]
        return (masked[0] * jnp.arange(TOKENS)[None]).sum(), masked

    (_, once), gradient = jax.jit(jax.value_and_grad(lambda p: read(p, 3), has_aux=True))(params)
    (_, apart), expected = jax.jit(jax.value_and_grad(lambda p: read(p, 1), has_aux=True))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), once, apart)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert largest > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), gradient, expected)
