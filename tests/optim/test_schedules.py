"""Learning rates at their corners, against a loop, in steps and in tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError
from lmjax.optim.schedules import Course, course_of, make_schedule, schedule_of, token_clock
from lmjax.settings import DataSettings, ScheduleSettings

PEAK = 3e-4
KINDS = ("constant", "cosine", "linear", "inverse_sqrt", "wsd")


def rates(steps, run=100, tokens_at=None, peak=1.0, **settings):
    schedule = make_schedule(ScheduleSettings(**settings), peak, run, tokens_at)
    return np.asarray(schedule(jnp.asarray(steps)))


def loop(kind, now, warmup, decay, final, stable, taken=1):
    if now < warmup:
        return (now + taken) / (warmup + taken)
    progress = min((now - warmup) / (decay - warmup), 1)
    if kind == "cosine":
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
    if kind == "linear":
        return 1 + (final - 1) * progress
    if kind == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / max(now, warmup, 1))
    if kind == "wsd" and now > stable * decay:
        return 1 + (final - 1) * min((now - stable * decay) / (decay - stable * decay), 1)
    return 1.0


@pytest.mark.parametrize(
    ("kind", "corners"),
    [
        ("constant", {10: 1.0, 110: 1.0, 1000: 1.0}),
        ("cosine", {10: 1.0, 60: 0.625, 110: 0.25, 1000: 0.25}),
        ("linear", {10: 1.0, 60: 0.625, 110: 0.25, 1000: 0.25}),
        ("inverse_sqrt", {10: 1.0, 40: 0.5, 160: 0.25, 1000: 0.1}),
        ("wsd", {10: 1.0, 55: 1.0, 110: 0.25, 1000: 0.25}),
    ],
)
@pytest.mark.parametrize(("start", "rise"), [(None, {0: 1 / 11, 4: 5 / 11, 9: 10 / 11}), (0.0, {0: 0.0, 5: 0.5})])
def test_corners_are_met_exactly(kind, corners, start, rise):
    corners = rise | corners
    shape = {"warmup": 10, "decay": 110, "final": 0.25, "stable": 0.5}
    found = rates(list(corners), kind=kind, warmup_from=start, **shape)
    np.testing.assert_array_equal(found, np.asarray(list(corners.values()), np.float32))


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_agrees_with_a_loop(kind, warmup):
    shape = {"warmup": warmup, "decay": 53, "final": 0.1, "stable": 0.6}
    wanted = [PEAK * loop(kind, step, **shape) for step in range(70)]
    np.testing.assert_allclose(rates(range(70), peak=PEAK, kind=kind, **shape), wanted, rtol=2e-6, atol=1e-12)


def nano_gpt(it, learning_rate=6e-4, warmup_iters=20, lr_decay_iters=60, min_lr=6e-5):
    """The rate of an iteration as nanoGPT's train.py describes it (get_lr, since 2025)."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    falling = 0.5 * (1.0 + math.cos(math.pi * (it - warmup_iters) / (lr_decay_iters - warmup_iters)))
    return min_lr + falling * (learning_rate - min_lr)


def test_the_default_is_nano_gpts_whose_first_update_is_not_lost():
    shape = {"peak": 6e-4, "warmup": 20, "decay": 60, "final": 0.1}
    steps = range(80)
    np.testing.assert_allclose(rates(steps, **shape), [nano_gpt(it) for it in steps], rtol=1e-6)
    before = rates(steps, **shape, warmup_from=0.0)  # nanoGPT's until then
    np.testing.assert_allclose(before[:20], [6e-4 * it / 20 for it in range(20)], rtol=1e-6)
    np.testing.assert_array_equal(before[20:], rates(steps, **shape)[20:])
    assert before[0] == 0.0 < rates([0], **shape)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_warmup_starts_at_the_peak(kind):
    assert rates([0], kind=kind, peak=0.5)[0] == 0.5


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_without_a_decay_the_rate_falls_until_the_run_ends(kind):
    last, end, after = rates([99, 100, 150], run=100, kind=kind, warmup=3, final=0.1)
    assert last > end == after == np.float32(0.1)


def test_a_warmup_that_starts_at_the_peak_is_t5s_constant_rate():
    """Raffel et al. 2020, section 3.1.2: 1 / sqrt(max(n, 10,000)), which is 0.01 for the first 10,000 steps."""
    steps = np.array([0, 1, 9_999, 10_000, 40_000, 1_000_000])
    found = rates(steps, run=10**6, peak=1e-2, kind="inverse_sqrt", warmup=10_000, warmup_from=1.0)
    np.testing.assert_allclose(found, 1 / np.sqrt(np.maximum(steps, 10_000)), rtol=1e-6)


def test_a_warmup_may_start_at_a_fraction_of_the_peak():
    found = rates([0, 5, 10], kind="constant", warmup=10, warmup_from=0.1)
    np.testing.assert_allclose(found, [0.1, 0.55, 1.0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "inverse_sqrt", "wsd"])
def test_a_run_shorter_than_its_warmup_ends_in_it(kind):
    short = make_schedule(ScheduleSettings(kind=kind, warmup=100), PEAK, 100)
    np.testing.assert_allclose([short(step) / PEAK for step in (0, 50, 99)], [1 / 101, 51 / 101, 100 / 101], rtol=1e-6)


def test_the_rate_is_the_same_traced_and_not():
    schedule = make_schedule(ScheduleSettings(warmup=10), PEAK, 100)
    assert [float(jax.jit(schedule)(step)) for step in (3, 50)] == [float(schedule(step)) for step in (3, 50)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("warmup", "decay"), [(0, 53), (7, 53), (7, None), (100, None)])
def test_a_course_of_arrays_is_one_program_of_the_same_rates(kind, warmup, decay):
    settings = ScheduleSettings(kind=kind, warmup=warmup, decay=decay, stable=2 / 3)
    other = ScheduleSettings(kind=kind, warmup=3, decay=20, stable=0.5)
    rates = jax.jit(lambda course, steps: schedule_of(settings, course)(steps))
    for own, peak, run in ((settings, PEAK, 90), (other, 2.0, 40)):
        course, steps = course_of(own, peak, run), jnp.arange(95)
        found = rates(Course(*map(jnp.float32, course)), steps)
        np.testing.assert_allclose(found, make_schedule(own, peak, run)(steps), rtol=0, atol=3e-7 * peak)
    assert rates._cache_size() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": 40, "decay": 40}, r"^ScheduleSettings\.warmup = 40: expected less than decay = 40"),
        ({"kind": "wsd", "warmup": 70, "stable": 0.5}, r"warmup = 70: expected at most stable x decay = 50"),
        ({"unit": "tokens"}, r"^optimizer\.schedule\.unit = 'tokens'"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_schedule(ScheduleSettings(**settings), PEAK, 100)


RAMPED = DataSettings(sequence_length=16, batch_size=64, ramp_from=8, ramp_tokens=20_000, ramp_sizes=4)


def clock_of(data):
    return token_clock(*BatchRamp(data).table, row=data.sequence_length)


def test_the_token_clock_counts_what_a_loop_over_ramped_batches_counts():
    ramp = BatchRamp(RAMPED)
    read, wanted = 0, []
    for step in range(130):
        wanted.append(read)
        read += ramp.batch_size_at(step) * RAMPED.sequence_length
    assert len({ramp.batch_size_at(step) for step in range(130)}) == 4
    np.testing.assert_array_equal(clock_of(RAMPED)(jnp.arange(130)), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_in_tokens_follows_the_tokens_read_through_a_ramp(kind):
    tokens_at = BatchRamp(RAMPED).tokens_at
    shape = {"warmup": 5_000, "decay": 50_000, "final": 0.1, "stable": 0.5}
    taken = [tokens_at(step + 1) - tokens_at(step) for step in range(130)]
    wanted = [loop(kind, tokens_at(step), **shape, taken=taken[step]) for step in range(130)]
    assert wanted[0] == taken[0] / (5_000 + taken[0]) and wanted == sorted(wanted[:40]) + wanted[40:]
    found = rates(range(130), tokens_at=clock_of(RAMPED), kind=kind, unit="tokens", **shape)
    np.testing.assert_allclose(found, wanted, rtol=3e-6)


def test_a_schedule_in_tokens_without_a_decay_ends_with_the_run():
    run = 120
    before, end = rates([run - 1, run], run=run, tokens_at=clock_of(RAMPED), unit="tokens", final=0.1)
    assert before > end == np.float32(0.1)


def test_gpt3s_clock_is_exact_to_a_millionth_after_three_hundred_billion_tokens():
    data = DataSettings(sequence_length=2048, batch_size=1600, ramp_from=16, ramp_tokens=12 * 10**9, ramp_sizes=5)
    steps = np.array([0, 1, 1_000, 91_000, 120_000, 200_000])
    wanted = [float(BatchRamp(data).tokens_at(int(step))) for step in steps]
    assert wanted[-1] > 2.9e11
    np.testing.assert_allclose(clock_of(data)(jnp.asarray(steps)), wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "inverse_sqrt"])
def test_a_schedule_may_count_more_tokens_than_an_int32_holds(kind):
    row, billion = 2048, 10**9
    settings = ScheduleSettings(kind=kind, unit="tokens", warmup=3 * billion, decay=260 * billion, final=0.1)
    rate = make_schedule(settings, 1.0, 150_000, token_clock((0,), (1024,), (0,), row))
    step = jax.jit(rate)
    batch = 1024 * row
    assert step(1000) == pytest.approx(1001 * batch / (3 * billion + batch), rel=1e-5)  # still rising
    if kind != "inverse_sqrt":
        assert step(150_000) == pytest.approx(0.1)
