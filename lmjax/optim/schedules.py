"""Learning-rate schedules: a multiple of the peak for each step, counted in steps or in tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from lmjax.errors import require
from lmjax.settings import ScheduleSettings

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(
    settings: ScheduleSettings,
    peak: float | jax.Array,
    steps: int,
    tokens_at: Schedule | None = None,
    field: str = "optimizer.schedule",
) -> Schedule:
    """The learning rate of a step, as a function that can be traced; so can `peak` be, a float32 scalar.

    `steps` is the run's length, in steps; `tokens_at(step)` the tokens read before a step, needed where the schedule
    counts tokens. The rate rises linearly over the warmup and follows `settings.kind` from there; "constant" and
    "inverse_sqrt" (Raffel et al. 2020, section 3.1.2) know no end. A run that is shorter than its warmup ends in it.
    Raises FieldError where the pieces do not fit: `field` is the settings' place in the recipe.
    """
    in_tokens = settings.unit == "tokens"
    known = not in_tokens or tokens_at is not None
    require(known, f"{field}.unit", "tokens", "'steps' where no tokens are counted", "use 'steps'")
    clock = tokens_at if in_tokens and tokens_at is not None else (lambda step: step)
    with jax.ensure_compile_time_eval():  # also where the peak is traced
        length, warmup = float(clock(steps)), float(settings.warmup)  # tokens may be more than an int32 holds
    rises_only = settings.decay is None and length <= warmup
    end = float(settings.decay) if settings.decay is not None else max(length, warmup + 1.0)
    falls = settings.stable * end
    risen = settings.kind != "wsd" or warmup <= falls or rises_only
    require(risen, f"{field}.warmup", settings.warmup, f"at most stable x decay = {falls:g}", "shorten it")

    def rate(step: jax.Array | int) -> jax.Array:
        now = jnp.asarray(clock(step), jnp.float32)
        rising = settings.warmup_from + (1.0 - settings.warmup_from) * now / max(warmup, 1)
        return peak * jnp.where(now < warmup, rising, _after_warmup(settings, now, warmup, end))

    return rate


def _after_warmup(settings: ScheduleSettings, now: jax.Array, warmup: float, end: float) -> jax.Array:
    fall = 1.0 - settings.final
    if settings.kind == "cosine":
        return settings.final + fall * 0.5 * (1 + jnp.cos(jnp.pi * _progress(now, warmup, end)))
    if settings.kind == "linear":
        return settings.final + fall * (1.0 - _progress(now, warmup, end))
    if settings.kind == "inverse_sqrt":
        return jnp.sqrt(max(warmup, 1) / jnp.maximum(now, max(warmup, 1)))
    if settings.kind == "wsd":
        return settings.final + fall * (1.0 - _progress(now, settings.stable * end, end))
    return jnp.ones_like(now)


def _progress(now: jax.Array, begin: float, end: float) -> jax.Array:
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
