"""Learning-rate schedules: a multiple of the peak for each step, counted in steps or in tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import require
from lmjax.settings import ScheduleSettings

Schedule = Callable[[jax.Array | int], jax.Array]
Number = float | np.floating | jax.Array


class Course(NamedTuple):
    """The numbers of a schedule that runs of one shape do not share, in its unit: Python's, or float32 scalars.

    As arrays they are arguments of a program, so that one program serves any of them.
    """

    peak: Number
    warmup: Number  # its end
    falls: Number  # where the rate of "wsd" begins to fall
    end: Number  # of the decay


def make_schedule(settings: ScheduleSettings, peak: float, steps: int, tokens_at: Schedule | None = None) -> Schedule:
    """The learning rate of a step, of a run of so many steps, as a function that can be traced."""
    return schedule_of(settings, course_of(settings, peak, steps, tokens_at), tokens_at)


def course_of(
    settings: ScheduleSettings,
    peak: float,
    steps: int,
    tokens_at: Schedule | None = None,
    field: str = "optimizer.schedule",
) -> Course:
    """The course of a run of so many steps.

    `tokens_at(step)` gives the tokens read before a step; it is needed where the schedule counts tokens. A run that is
    shorter than its warmup ends in it. Raises FieldError where the pieces do not fit: `field` is the settings' place in
    the recipe.
    """
    length, warmup = float(_clock(settings, tokens_at, field)(steps)), float(settings.warmup)
    rises_only = settings.decay is None and length <= warmup
    end = float(settings.decay) if settings.decay is not None else max(length, warmup + 1.0)
    falls = settings.stable * end
    risen = settings.kind != "wsd" or warmup <= falls or rises_only
    require(risen, f"{field}.warmup", settings.warmup, f"at most stable x decay = {falls:g}", "shorten it")
    return Course(peak, warmup, falls, end)


def schedule_of(settings: ScheduleSettings, course: Course, tokens_at: Schedule | None = None) -> Schedule:
    """The learning rate of a step, as a function that can be traced; so can the course be.

    The rate rises linearly over the warmup and follows `settings.kind` from there; "constant" and "inverse_sqrt"
    (Raffel et al. 2020, section 3.1.2) know no end. Where `settings.warmup_from` is None, the rise began a step before
    the first one, as nanoGPT's does: of a warmup of n steps, step i has (i + 1) / (n + 1) of the peak.
    """
    clock = _clock(settings, tokens_at)

    def rate(step: jax.Array | int) -> jax.Array:
        now = jnp.asarray(clock(step), jnp.float32)
        if settings.warmup_from is None:
            taken = jnp.asarray(clock(step + 1), jnp.float32) - now  # by this step
            rising = (now + taken) / (course.warmup + taken)
        else:
            rising = settings.warmup_from + (1.0 - settings.warmup_from) * now / jnp.maximum(course.warmup, 1)
        return course.peak * jnp.where(now < course.warmup, rising, _after_warmup(settings, course, now))

    return rate


def _clock(settings: ScheduleSettings, tokens_at: Schedule | None, field: str = "optimizer.schedule") -> Any:
    """(step) -> how far the run is before it, in the schedule's unit."""
    if settings.unit == "steps":
        return lambda step: step
    known = tokens_at is not None
    require(known, f"{field}.unit", "tokens", "'steps' where no tokens are counted", "use 'steps'")
    return tokens_at


def _after_warmup(settings: ScheduleSettings, course: Course, now: jax.Array) -> jax.Array:
    fall = 1.0 - settings.final
    if settings.kind == "cosine":
        return settings.final + fall * 0.5 * (1 + jnp.cos(jnp.pi * _progress(now, course.warmup, course.end)))
    if settings.kind == "linear":
        return settings.final + fall * (1.0 - _progress(now, course.warmup, course.end))
    if settings.kind == "inverse_sqrt":
        risen = jnp.maximum(course.warmup, 1)
        return jnp.sqrt(risen / jnp.maximum(now, risen))
    if settings.kind == "wsd":
        return settings.final + fall * (1.0 - _progress(now, course.falls, course.end))
    return jnp.ones_like(now)


def _progress(now: jax.Array, begin: Number, end: Number) -> jax.Array:
    """From 0 at `begin` to 1 at `end`, which is met exactly: XLA multiplies by a rounded reciprocal."""
    return jnp.where(now >= end, 1.0, jnp.maximum(now - begin, 0.0) / (end - begin))


def token_clock(
    first_steps: Sequence[int], batch_sizes: Sequence[int], tokens_before: Sequence[int], row: int
) -> Schedule:
    """The tokens read before a step, as a function that can be traced, from the table of a batch-size ramp.

    One entry per piece of the ramp (see `lmjax.data.ramp.RampTable`); a row holds `row` tokens. The result is float32:
    exact to one part in 16 million.
    """

    def tokens_at(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        piece = jnp.searchsorted(jnp.asarray(first_steps, jnp.int32), step, side="right") - 1
        inside = (step - jnp.asarray(first_steps, jnp.int32)[piece]).astype(jnp.float32)
        rate = jnp.asarray([size * row for size in batch_sizes], jnp.float32)[piece]
        return jnp.asarray(tokens_before, jnp.float32)[piece] + inside * rate

    return tokens_at
