"""A signal ends a run at once where nothing is lost by it, and between two steps where something would be."""

import os
import signal
import threading

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
