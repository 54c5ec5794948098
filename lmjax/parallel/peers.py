"""The processes of a run that JAX has connected: who must leave tells the others why, and barriers wait for slow ones.

In: JAX's coordination service, which process 0 holds. Out: notes in its store of keys and values, and barriers that
know no time limit: a process that says nothing is found out by JAX's heartbeats, and one that is slow is waited for.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

import jax
from jax._src.distributed import global_state

from lmjax.errors import UserError
from lmjax.parallel.rendezvous import Facts, different

LEFT, HEARD, FACTS = "lmjax/left/", "lmjax/heard/", "lmjax/facts/"
LOOK_SECONDS = 2.0  # between two looks at what the others say
PATIENCE_SECONDS = 20.0  # for the others to have heard
LONGEST_MS = 2**31 - 1  # of a barrier: 24 days

_counts: dict[str, int] = {}  # how often each name has been used: a barrier and a key serve once


def watch() -> None:
    """From now on, what another process leaves with ends this one with the same exit code."""
    threading.Thread(target=_watch, name="lmjax peers", daemon=True).start()


def tell(message: str, code: int) -> None:
    """Tells the others that this process ends with `code`, and why; returns when they have heard, or soon after."""
    _client().key_value_set(f"{LEFT}{jax.process_index()}", json.dumps([code, message]))
    _part()


def barrier(name: str) -> None:
    """Returns when every process has come here, however long that takes."""
    _client().wait_at_barrier(f"lmjax/{name}/{_once(name)}", LONGEST_MS)


def agree(facts: Facts) -> None:
    """Raises UserError where this process is about to do something else than process 0; returns when none is."""
    number, own = _once(FACTS), jax.process_index()
    if own == 0:
        _client().key_value_set(f"{FACTS}{number}", json.dumps(facts))
    else:
        first = json.loads(_client().blocking_key_value_get(f"{FACTS}{number}", LONGEST_MS))
        wrong = different(own, first, facts)
        if wrong:
            raise UserError(wrong)
    barrier("agreed")


def _watch() -> None:
    own = str(jax.process_index())
    while _client() is not None:
        time.sleep(LOOK_SECONDS)
        left = _notes(LEFT)
        if left and own not in left:
            code, message = json.loads(next(iter(left.values())))
            print(f"lmjax: {message}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            _part()
            os._exit(code)


def _part() -> None:
    """Waits until this process may end: process 0 holds what the others read, so it goes last."""
    own, deadline = jax.process_index(), time.monotonic() + PATIENCE_SECONDS
    _client().key_value_set(f"{HEARD}{own}", "")
    wanted = {str(index) for index in range(jax.process_count())} if own == 0 else {"0"}
    while not wanted <= _notes(HEARD).keys() and time.monotonic() < deadline:
        time.sleep(0.2)
    if own == 0:
        time.sleep(1.0)  # the others have seen that it has heard


def _notes(folder: str) -> dict[str, str]:
    """What the processes have left in a folder of the store, by their index; nothing where the store is gone."""
    try:
        client = _client()
        found = [] if client is None else client.key_value_dir_get(folder)
    except jax.errors.JaxRuntimeError:  # process 0 is gone: JAX says so, and ends this process
        return {}
    return {key.rpartition("/")[2]: value for key, value in found}


def _client() -> Any:
    """JAX's connection to process 0; None once it is closed."""
    return global_state.client


def _once(name: str) -> int:
    _counts[name] = _counts.get(name, 0) + 1
    return _counts[name]
