"""The phases of a program, such as PPO's rollout and updates, in the names that a compiler gives to its operations."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager

import jax

_NAME = re.compile(r"phase\.(\w+)")


def phase(name: str) -> AbstractContextManager[None]:
    """What is traced within belongs to the phase of this name, a word; it changes nothing of what is computed."""
    return jax.named_scope(f"phase.{name}")


def phase_of(operation: str) -> str | None:
    """The phase that an operation's name tells, or None."""
    found = _NAME.search(operation)
    return found.group(1) if found else None
