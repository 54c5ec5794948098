"""Runs that train together under vmap are the runs alone, and none of them sees another."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import init_state
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    Member,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.next_token_together import NextTokenTogether
from lmjax.tasks.resolved import resolve
from lmjax.tasks.together import runs_together

B, T, STEPS = 4, 16, 6
SEEDS, RATES = (3, 3, 2**31 - 1), (1e-3, 1e-2, 4e-3)
RECIPE = Pretrain(
    tokenizer=TokenizerSettings(kind="byte"),
    model=ModelSettings(layers=1, width=32, context=T, dropout=0.1, attention=AttentionSettings(heads=2)),
    # A large eps: where a gradient is next to nothing, Adam's quotient would make rounding as large as the rate.
    optimizer=OptimizerSettings(eps=1e-3, schedule=ScheduleSettings(warmup=2 * B * T, unit="tokens")),
    data=DataSettings(sequence_length=T, batch_size=B),
    train=TrainSettings(steps=STEPS, microbatches=2),
)


def batch_of(number):
    tokens = np.random.default_rng(number).integers(0, 257, (B, T + 1)).astype(np.int32)
    ones = np.ones((B, T), np.int32)
    places = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    fields = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "positions": places, "segments": ones}
    return fields | {"weights": ones.astype(np.float32)}


def of_run(tree, run):
    return jax.tree.map(lambda leaf: np.asarray(leaf[run]), tree)


@functools.cache
def programs(own_batches=False):
    return runs_together(NextToken(), resolve(RECIPE), STEPS, own_batches=own_batches)


def together(seeds, rates, own_batches=False):
    """The fresh states of the runs, those after all steps, and the metrics of each step."""
    runs = programs(own_batches)
    seeds, rates = jnp.asarray(seeds, jnp.int32), jnp.asarray(rates, jnp.float32)
    states, metrics = runs.fresh(seeds), []
    fresh = jax.tree.map(np.asarray, states)
    for at in range(STEPS):
        batch = batch_of(at)
        if own_batches:
            each = [batch_of(100 * run + at) for run in range(len(seeds))]
            batch = {name: np.stack([fields[name] for fields in each]) for name in batch}
        states, values = runs.step(states, seeds, rates, batch)
        metrics.append(values)
    return fresh, states, metrics


@pytest.mark.parametrize(("own_batches", "compared"), [(False, (1,)), (True, (2,))])
def test_runs_that_train_together_are_the_runs_alone(own_batches, compared):
    """Up to rounding: the compiler folds the rate that it knows of a run alone into its arithmetic."""
    fresh, states, metrics = together(SEEDS, RATES, own_batches)
    held = programs(own_batches).evaluate(states.params, batch_of(99))
    for run in compared:
        seed, rate = SEEDS[run], RATES[run]
        recipe = dataclasses.replace(
            RECIPE,
            train=dataclasses.replace(RECIPE.train, seed=seed),
            optimizer=dataclasses.replace(RECIPE.optimizer, learning_rate=rate),
        )
        mesh, resolved = make_mesh(recipe.mesh, jax.devices()[:1]), resolve(recipe)
        program = NextToken().build(resolved, mesh, STEPS)
        state = init_state(program.model, program.optimizer, seed, mesh)
        jax.tree.map(np.testing.assert_array_equal, of_run(fresh, run), jax.tree.map(np.asarray, state))
        for at in range(STEPS):
            state, expected = program.step(state, batch_of(100 * run + at) if own_batches else batch_of(at))
            found = of_run(metrics[at], run)
            assert found["loss"].sum / found["loss"].weight == pytest.approx(float(expected["loss"].mean()), rel=1e-6)
            assert found["learning_rate"] == pytest.approx(float(expected["learning_rate"]), rel=1e-6)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-7)
        jax.tree.map(close, of_run(states.params, run), state.params)
        alone = jax.jit(NextToken().read(program.model, resolved))(state.params, batch_of(99))
        jax.tree.map(close, of_run(held, run), alone)
    last = [float(metrics[-1]["loss"].sum[run]) for run in range(3)]
    assert len(set(last)) == 3, "the runs differ"


def test_seed_peak_rate_and_length_are_no_constants_of_a_step():
    """Runs of one shape compile one program, alone and together: the persistent cache knows it by its text."""
    mesh, shorter = make_mesh(RECIPE.mesh, jax.devices()[:1]), 7

    def text(task, recipe, steps):
        return task.build(resolve(recipe), mesh, steps).lower().as_text()

    optimizer = dataclasses.replace(
        RECIPE.optimizer, learning_rate=0.5, schedule=ScheduleSettings(warmup=9, decay=99, unit="tokens")
    )
    other = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, seed=9), optimizer=optimizer)
    assert text(NextToken(), RECIPE, STEPS) == text(NextToken(), other, shorter)
    two, others = ((Member("a", 0, 0.1), Member("b", 1, 0.2)), (Member("a", 5, 0.3), Member("b", 6, 0.4)))
    stacked = [text(NextTokenTogether(members=members), RECIPE, STEPS) for members in (two, others)]
    assert stacked[0] == stacked[1]
    heavier = dataclasses.replace(optimizer, weight_decay=0.3)
    assert text(NextToken(), RECIPE, STEPS) != text(NextToken(), dataclasses.replace(other, optimizer=heavier), STEPS)


def test_a_run_that_diverges_skips_its_steps_and_changes_no_bit_of_the_others():
    _, calm, _ = together(SEEDS, RATES)
    _, states, metrics = together(SEEDS, (RATES[0], 1e30, RATES[2]))
    skipped = np.asarray([values["skipped"] for values in metrics])
    assert skipped[-1].tolist() == [0.0, 1.0, 0.0]
    for run in (0, 2):
        jax.tree.map(np.testing.assert_array_equal, of_run(states, run), of_run(calm, run))


def test_a_run_does_not_depend_on_its_place_nor_a_step_on_what_was_called_before():
    _, states, _ = together(SEEDS, RATES)
    _, turned, _ = together(SEEDS[::-1], RATES[::-1])
    jax.tree.map(np.testing.assert_array_equal, of_run(states, 0), of_run(turned, 2))


def test_runs_with_an_initial_checkpoint_are_refused():
    started = dataclasses.replace(RECIPE, start="elsewhere")
    resolved = dataclasses.replace(resolve(RECIPE), settings=started)
    with pytest.raises(
        UserError, match=r"^start = 'elsewhere': expected none for runs that train together; .+ one by one"
    ):
        runs_together(NextToken(), resolved, STEPS)
