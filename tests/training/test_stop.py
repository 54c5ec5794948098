"""A signal ends a run at once where nothing is lost by it, and between two steps where something would be."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmjax.training.stop import Interrupted, Stopped, StopRequest


@pytest.fixture(autouse=True)
def _handlers_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_raises_where_nothing_has_to_be_saved(number):
    with pytest.raises(Stopped, match=number.name), StopRequest() as stop:
        _send(number)
    assert stop.signal == number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_deferred_signal_is_only_noted(number):
    with StopRequest() as stop, stop.deferred():
        assert stop.signal is None
        _send(number)
        assert stop.signal == number


def test_after_the_deferral_a_signal_raises_again():
    with pytest.raises(Stopped), StopRequest() as stop:
        with stop.deferred():
            pass
        _send(signal.SIGTERM)


def test_stopped_is_not_caught_with_errors():
    assert not issubclass(Stopped, Exception)


def test_a_second_signal_acts_as_without_the_request():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop, stop.deferred():
        _send(signal.SIGTERM)
        _send(signal.SIGINT)
    assert stop.signal == signal.SIGTERM


def test_outside_the_main_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def other() -> None:
        with StopRequest() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.signal])

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before, None]


def test_where_others_decide_they_are_asked_for_place_after_place():
    """JAX agrees on the first place that no process has come to, and counts on coming to every one."""
    places = []

    def agree(place):
        places.append(place)
        return place == 4

    stop = StopRequest(agree)
    assert [stop.asked() for _ in range(3)] == [False] * 3
    stop.signal = None
    with pytest.raises(Interrupted):
        stop.check()
    assert places == [1, 2, 3, 4] and stop.signal == signal.SIGTERM
    assert not issubclass(Interrupted, Exception), "what guards a user's function does not catch it"


BUSY = """
import contextlib, hashlib
from lmjax.training import stop
stop.GRACE_SECONDS = 0.5
with stop.StopRequest() as request, {within}:
    {before}
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})  # in C, as a compiler or the training of a tokenizer
    print("through", request.signal, flush=True)
"""


def _busy(within: str, before: str, rounds: int) -> tuple[int, str, float]:
    """How a process ends that gets SIGTERM while it is busy in a library, what it prints, and after how long."""
    code = BUSY.format(within=within, before=before, rounds=rounds)
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    try:
        assert child.stdout.readline() == "busy\n"
        time.sleep(1.0)  # until it is in the library
        sent = time.monotonic()
        child.send_signal(signal.SIGTERM)
        said, _ = child.communicate(timeout=120)
        return child.returncode, said, time.monotonic() - sent
    finally:
        child.kill()  # a process that does not obey would be busy for a quarter of an hour


@pytest.mark.parametrize("within", ["contextlib.nullcontext()", "request.deferred()"])
def test_sigterm_ends_a_process_within_seconds_whatever_library_it_is_busy_in(within):
    code, said, seconds = _busy(within, "pass", 10**9)
    assert (code, said) == (143, "stopped; the same command resumes\n")
    assert seconds < 30, "10^9 rounds take a quarter of an hour"


def test_sigterm_waits_for_the_step_where_steps_are_to_be_saved():
    code, said, _ = _busy("request.deferred()", "request.to_save = True", 10**7)
    assert (code, said) == (0, f"through {int(signal.SIGTERM)}\n")
