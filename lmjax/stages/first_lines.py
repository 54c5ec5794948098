"""The first lines of a stage: its workdir and devices, what it trains, on how much, and how many hours that takes.

A run says them as it comes to know them, and a dry run those that are known before there are tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from lmjax.bucket import remote_of
from lmjax.data.batch import Batch
from lmjax.model.flops import count
from lmjax.notation import duration
from lmjax.settings import ModelSettings
from lmjax.tasks.task import Session

Step = Callable[..., Any]
SPEED = "tokens_per_second"


def place_lines(folder: Path) -> list[str]:
    """The workdir, and the devices of all processes."""
    devices, processes = jax.devices(), jax.process_count()
    of = f", {processes} processes" if processes > 1 else ""
    return [f"workdir: {remote_of(folder) or folder}", f"devices: {len(devices)} x {devices[0].device_kind}{of}"]


def model_line(model: ModelSettings, length: int) -> str:
    """The shape and the parameters of the language model, its vocabulary being known."""
    encoder = "" if model.encoder_layers is None else f"{model.encoder_layers} + "
    shape = (
        f"{encoder}{model.layers} layer{'s' * (model.layers > 1)} of width {model.width}, {model.vocab_size:,} entries"
    )
    return f"model: {shape}, {count(model, length).parameters:,} parameters"


def steps_line(steps: int, rows: int, length: int, tokens: int) -> str:
    """The steps, and the tokens of their batches."""
    return f"steps: {steps:,} of {rows:,} x {length:,} tokens, {tokens:,} tokens planned"


def hours_line(steps: int, done: int, values: dict[str, float]) -> str:
    """How long the steps that are left take at a speed that has been measured."""
    left = (steps - done) * values["step_seconds"]
    speed = f"{values[SPEED]:,.0f} tokens/s at step {done:,}"
    return f"hours: {left / 3600:.2f} ({duration(left)}) for the {steps - done:,} steps that are left, by {speed}"


def saying_compiling(step: Step, session: Session) -> Step:
    """The step, which says at the first batch of a shape that it compiles, and for how long; a loaded one does not."""
    if session.executable is not None:
        return step
    compiled: set[tuple[Any, ...]] = set()

    def call(state: Any, batch: Batch) -> Any:
        shapes = tuple(sorted((name, array.shape) for name, array in batch.items()))
        if shapes in compiled:
            return step(state, batch)
        compiled.add(shapes)
        began = time.monotonic()
        if len(compiled) == 1:
            session.display.say("compiling the step")
        with session.display.waiting("compiling"):
            result = step(state, batch)
        session.display.say(f"compiled in {duration(time.monotonic() - began)}")
        return result

    return call
