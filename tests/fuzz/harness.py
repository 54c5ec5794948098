"""Gives a reader many damaged inputs: what may come out of each is a value, or a UserError that can be read."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lmjax.errors import UserError

LONGEST_MESSAGE = 2_000  # characters, whatever is in the input
SHOWN = 1_500  # characters of an input that a failure shows


def survives(
    call: Callable[[Any], Any], make: Callable[[Random], Any], trials: int, seed: int, *, always: str = ""
) -> None:
    """`call(make(rng))` for so many inputs. Fails with every kind of other exception, once, and its first input.

    Some inputs must be refused and some taken, unless the damage is `always` "taken", "refused" or may be "either".
    """
    rng, refused, wrong = Random(seed), 0, {}
    for trial in range(trials):
        content = make(rng)
        try:
            call(content)
        except UserError as error:
            refused += 1
            if len(str(error)) > LONGEST_MESSAGE:
                wrong.setdefault(("a message that nobody can read", place_of(error)), (trial, content, str(error)))
        except Exception as error:
            wrong.setdefault((type(error).__name__, place_of(error)), (trial, content, traceback.format_exc()))
    if wrong:
        parts = [f"{kind} at {at}, trial {n}:\n{shown(c)}\n{t[-1_500:]}" for (kind, at), (n, c, t) in wrong.items()]
        pytest.fail(f"{len(parts)} kinds\n" + "\n\n".join(parts), pytrace=False)
    assert refused < trials or always in ("refused", "either"), "what is still valid is taken"
    assert refused > 0 or always in ("taken", "either"), "damage is refused"


def place_of(error: BaseException) -> str:
    """The line of lmjax that raised, or called what did."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if "/lmjax/" in frame.filename), frames[-1])
    return f"{Path(where.filename).name}:{where.lineno}"


def shown(content: Any) -> str:
    """The input, of which runs of one character are cut."""
    text = re.sub(r"(.)\1{80,}", lambda run: f"{run[1]}..({len(run[0]):,})..", repr(content))
    return text if len(text) < SHOWN else f"{text[:SHOWN]}... of {len(text):,}"


def written(path: Path, call: Callable[[], Any]) -> Callable[[bytes], Any]:
    """`call` behind writing an input to the file."""

    def write_and_call(content: bytes) -> Any:
        path.write_bytes(content)
        return call()

    return write_and_call
