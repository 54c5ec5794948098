"""The one loop: what is fetched when, what is written when, and how it stops."""

import dataclasses
import gzip
import json
import math
import os
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.objective.weighted import Weighted
from lmjax.optim.train_state import TrainState
from lmjax.settings import CheckpointSettings, EvaluationSettings, LogSettings
from lmjax.training.loop import Job, UnfinishedStepError, fit
from lmjax.training.stop import StopRequest
from lmjax.training.throughput import Meter


@jax.jit
def _step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    """Adds the batch up; a negative batch is a step that is not finite."""
    skipped = (batch["x"][0] < 0).astype(jnp.float32)
    loss = Weighted(jnp.where(skipped, jnp.nan, batch["x"].sum()), jnp.float32(batch["x"].shape[0]))
    state = dataclasses.replace(state, step=state.step + 1, params=state.params + batch["x"].sum() * (1 - skipped))
    return state, {"loss": loss, "skipped": skipped, "grad_norm": batch["x"][0]}


class Run:
    """A job over scalar batches whose value is `value(step)`, and the log of all that the loop asked of it."""

    def __init__(
        self, steps: int = 20, value=float, rows=lambda step: 2, profile_folder: Path | None = None, **settings
    ):
        self.events: list[tuple] = []
        self.lines: dict[int, dict] = {}
        self.stop = StopRequest()
        evaluation = settings.get("evaluation", 100)
        checkpoint = settings.get("checkpoint", 100)
        self.job = Job(
            steps=steps,
            step=self.step,
            batch_at=lambda i: {"x": jnp.full(rows(i), value(i), jnp.float32)},
            tokens_in=lambda i: 10 * rows(i),
            evaluate=self.evaluate,
            save=lambda state, done: self.events.append(("save", done, int(state.step))),
            evaluated=lambda done, values: self.events.append(("evaluated", done, values)),
            record=self.record,
            show=lambda done, values: self.events.append(("show", done)),
            meter=Meter(1.0, "cpu", 1),
            evaluation=EvaluationSettings(every=evaluation),
            checkpoint=CheckpointSettings(every=checkpoint),
            log=LogSettings(every=settings.get("log", 5), profile=settings.get("profile")),
            abort_after_skipped=settings.get("abort_after_skipped", 10),
            profile_folder=profile_folder,
        )

    def step(self, state, batch):
        self.events.append(("step", int(batch["x"].shape[0])))
        return _step(state, batch)

    def evaluate(self, state, done) -> dict:
        self.events.append(("evaluate", done))
        return {"validation_loss": 1.0 / done}

    def record(self, done, values) -> None:
        assert done not in self.lines, "each step once"
        self.events.append(("record", done))
        self.lines[done] = values

    def of(self, kind: str) -> list[int]:
        return [event[1] for event in self.events if event[0] == kind]

    def fit(self, first: int = 0) -> TrainState:
        return fit(self.job, TrainState(jnp.int32(first), jnp.float32(0), ()), self.stop)


def test_every_step_sees_its_own_batch_once():
    run = Run(steps=12)
    state = run.fit(first=3)
    assert int(state.step) == 12
    assert float(state.params) == 2 * sum(range(3, 12))


def test_means_are_of_the_steps_since_the_last_line_weighted_by_rows():
    run = Run(steps=10, rows=lambda i: 1 + i % 3)
    run.fit()
    for done in (5, 10):
        steps = range(done - 5, done)
        rows = [1 + i % 3 for i in steps]
        expected = sum(r * i for r, i in zip(rows, steps, strict=True)) / sum(rows)
        assert run.lines[done]["loss"] == pytest.approx(expected, rel=1e-6)
        assert run.lines[done]["grad_norm"] == done - 1, "a scalar is the last step's"


def test_metrics_are_fetched_after_the_next_step_was_dispatched():
    run = Run(steps=20, log=1)
    run.fit()
    order = [event[:2] for event in run.events if event[0] in ("step", "record")]
    for done in range(1, 20):
        dispatched = order[: order.index(("record", done))]
        assert sum(kind == "step" for kind, _ in dispatched) == done + 1
    assert order[-1] == ("record", 20), "and the last one at the end"


def test_the_loop_itself_never_transfers_implicitly():
    def careless(state, batch):
        return _step(state, {"x": np.ones(2, np.float32)})

    run = Run(steps=2)
    run.job = dataclasses.replace(run.job, step=careless)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run.fit()
    with jax.transfer_guard("disallow"):  # over the loop's own bookkeeping too, whose transfers are explicit
        made = TrainState(jax.device_put(np.int32(0)), jax.device_put(np.float32(0)), ())
        batches = [jax.device_put({"x": np.ones(2, np.float32)}) for _ in range(12)]
        run = Run(steps=12, log=2, evaluation=4, checkpoint=3)
        run.job = dataclasses.replace(run.job, batch_at=batches.__getitem__, save=lambda *_: None, step=_step)
        state = fit(run.job, made, run.stop)
    assert float(state.params) == 24


def test_evaluation_and_saving_come_at_their_steps_and_at_the_end():
    run = Run(steps=11, evaluation=4, checkpoint=3)
    run.fit()
    assert run.of("evaluate") == [4, 8, 11]
    assert run.of("save") == [3, 6, 9, 11]
    assert all(step == done for kind, done, step, *_ in (e for e in run.events if e[0] == "save"))


def test_a_state_is_saved_before_it_is_evaluated_and_then_told_its_validation_loss():
    run = Run(steps=8, evaluation=2, checkpoint=4)
    run.fit()
    kinds = ("save", "evaluate", "evaluated")
    assert [(kind, done) for kind, done, *_ in run.events if kind in kinds] == [
        ("evaluate", 2),
        ("save", 4),
        ("evaluate", 4),
        ("evaluated", 4),
        ("evaluate", 6),
        ("save", 8),
        ("evaluate", 8),
        ("evaluated", 8),
    ]
    told = {done: values for kind, done, *rest in run.events if kind == "evaluated" for values in rest}
    assert told == {4: {"validation_loss": 1 / 4}, 8: {"validation_loss": 1 / 8}}


def test_what_may_be_kept_as_the_best_is_evaluated_whenever_it_is_saved():
    run = Run(steps=20, evaluation=7, checkpoint=5)
    run.job = dataclasses.replace(run.job, checkpoint=CheckpointSettings(every=5, keep_best=1))
    run.fit()
    assert run.of("evaluate") == [5, 7, 10, 14, 15, 20]
    assert run.of("evaluated") == run.of("save") == [5, 10, 15, 20]


@pytest.mark.parametrize("checkpoint", [5, 100])
def test_an_evaluation_that_fails_loses_no_step(checkpoint):
    run = Run(steps=20, evaluation=5, checkpoint=checkpoint)

    def evaluate(state, done):
        raise OSError("no such reward model")

    run.job = dataclasses.replace(run.job, evaluate=evaluate)
    with pytest.raises(OSError, match="no such reward model"):
        run.fit()
    assert run.of("save") == [5] and 5 in run.lines


@pytest.mark.parametrize("checkpoint", [5, 100])
@pytest.mark.parametrize("steps", [20, 5])
def test_a_request_during_an_evaluation_interrupts_it_and_leaves_it_to_the_next_run(checkpoint, steps):
    run = Run(steps=steps, evaluation=5, checkpoint=checkpoint)
    parts = []

    def evaluate(state, done):
        for part in range(100):
            run.stop.check()
            parts.append(part)
            if part == 3:
                run.stop.signal = signal.SIGTERM
        return {"validation_loss": 1.0}

    run.job = dataclasses.replace(run.job, evaluate=evaluate)
    assert int(run.fit().step) == 5
    assert parts == [0, 1, 2, 3] and run.of("save") == [5]
    assert run.of("evaluated") == [] and run.stop.left_off


def test_a_line_of_a_saved_step_is_written_before_it_is_saved():
    run = Run(steps=10, log=5, evaluation=5, checkpoint=5)
    run.fit()
    order = [event[:2] for event in run.events if event[1] in (5, 10) and event[0] != "step"]
    assert order[:4] == [("record", 5), ("show", 5), ("save", 5), ("evaluate", 5)]


def test_a_finished_run_does_nothing():
    run = Run(steps=5)
    assert int(run.fit(first=5).step) == 5
    assert run.events == []


@pytest.mark.parametrize("at", [1, 4, 5, 7])
def test_a_request_to_stop_saves_the_step_under_way_and_returns(at):
    run = Run(steps=20, evaluation=5, checkpoint=7)
    inner = run.job.step

    def step(state, batch):
        if len(run.of("step")) == at - 1:
            run.stop.signal = signal.SIGTERM
        return inner(state, batch)

    run.job = dataclasses.replace(run.job, step=step)
    state = run.fit()
    assert int(state.step) == at
    assert run.of("save") == [at] and len(run.of("step")) == at
    assert run.of("evaluate") == [done for done in (5,) if done < at], (
        "whoever asks for a stop does not wait for an evaluation"
    )


def test_a_request_during_an_evaluation_is_not_lost():
    run = Run(steps=20, evaluation=5)

    def evaluate(state, done):
        run.stop.signal = signal.SIGINT
        return {}

    run.job = dataclasses.replace(run.job, evaluate=evaluate)
    assert int(run.fit().step) == 5
    assert run.of("save") == [5]
    assert not run.stop.left_off, "it was whole when the request was seen"


def test_a_request_at_any_moment_loses_no_line_of_the_record():
    for moment in range(1, 40):
        run = Run(steps=20, log=1, evaluation=5, checkpoint=7)

        class Asking(StopRequest):
            """Asks from the n-th look at it on."""

            looks = 0
            asks_from = moment

            def asked(self):
                self.looks += 1
                self.signal = 15 if self.looks >= self.asks_from else None
                return super().asked()

        run.stop = Asking()
        reached = int(run.fit().step)
        assert sorted(run.lines) == list(range(1, reached + 1))
        assert run.of("save")[-1] == reached


def test_a_request_at_the_last_step_saves_it_and_leaves_its_evaluation_to_the_next_run():
    run = Run(steps=6, value=float)
    run.job = dataclasses.replace(run.job, tokens_in=lambda i: setattr(run.stop, "signal", 15 if i == 5 else None) or 1)
    run.fit()
    assert run.of("evaluate") == [] and run.of("save") == [6] and 5 in run.lines
    assert run.stop.left_off


def test_a_request_before_the_first_step_runs_none():
    run = Run()
    run.stop.signal = signal.SIGTERM
    assert int(run.fit(first=7).step) == 7
    assert run.events == []


def test_skipped_steps_are_counted_and_leave_the_mean_alone():
    run = Run(steps=10, value=lambda i: -1.0 if i in (1, 2, 8) else float(i))
    run.fit()
    assert run.lines[5]["skipped"] == 2.0 and run.lines[10]["skipped"] == 1.0
    assert run.lines[5]["loss"] == pytest.approx((0 + 3 + 4) / 3)
    assert run.lines[10]["loss"] == pytest.approx((5 + 6 + 7 + 9) / 4)


def test_only_n_skipped_steps_in_a_row_abort_the_run():
    bad = {2, 3, 5, 6, 9, 10, 11}
    run = Run(steps=20, value=lambda i: -1.0 if i in bad else 1.0, abort_after_skipped=3, checkpoint=4)
    with pytest.raises(UserError) as caught:
        run.fit()
    text = str(caught.value)
    assert "step 11: 3 steps in a row had a loss or gradient that is not finite" in text
    assert "train.abort_after_skipped = 3" in text and "batch of step 9" in text and "learning_rate" in text
    assert run.of("save") == [4, 8], "nothing is saved in the middle of it"
    Run(steps=9, value=lambda i: -1.0 if i in bad else 1.0, abort_after_skipped=3).fit()


def test_an_error_ends_the_threads_that_prepare_batches():
    run = Run(steps=20)
    run.job = dataclasses.replace(run.job, record=lambda *_: math.log(0))
    with pytest.raises(ValueError, match="math domain"):
        run.fit()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")] == []


def test_an_error_in_a_batch_comes_out_at_its_step():
    def batch_at(step):
        if step == 7:
            raise UserError("batch 7 is bad")
        return {"x": jnp.ones(2)}

    run = Run(steps=20)
    run.job = dataclasses.replace(run.job, batch_at=batch_at)
    with pytest.raises(UserError, match="batch 7 is bad"):
        run.fit()
    assert len(run.of("step")) == 7


def test_throughput_counts_the_tokens_of_each_step_and_not_the_evaluations(monkeypatch):
    now = [0.0]
    run = Run(steps=10, rows=lambda i: 1 + i, evaluation=2)
    meter = Meter(1.0, "cpu", 1, clock=lambda: now[0])

    def step(state, batch):
        now[0] += 2.0
        return _step(state, batch)

    def evaluate(state, done):
        now[0] += 100.0
        return {}

    run.job = dataclasses.replace(run.job, meter=meter, step=step, evaluate=evaluate)
    run.fit()
    tokens = sum(10 * (1 + i) for i in range(1, 10))  # the first step compiles and does not count
    assert run.lines[10]["tokens_per_second"] == pytest.approx(tokens / (9 * 2.0))
    assert run.lines[10]["step_seconds"] == pytest.approx(2.0)


def _traced(folder: Path) -> int:
    """How many calls of `_step` the trace holds; JAX marks each one by two events, one inside the other."""
    (file,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "PjitFunction(_step)")
    return sum(not any(a <= start and end <= b for a, b in spans[:i]) for i, (start, end) in enumerate(spans))


def test_the_profile_holds_the_chosen_steps_and_no_others(tmp_path):
    Run(steps=9, profile=(3, 5), profile_folder=tmp_path / "some").fit()
    assert _traced(tmp_path / "some") == 3
    Run(steps=5, profile=(3, 99), profile_folder=tmp_path / "end").fit()
    assert _traced(tmp_path / "end") == 2
    Run(steps=5, profile_folder=tmp_path / "none").fit()
    assert not (tmp_path / "none").exists()


def test_a_real_signal_is_seen_between_steps():
    run = Run(steps=2000, log=2000)
    inner = run.job.step

    def step(state, batch):
        if len(run.of("step")) == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(state, batch)

    run.job = dataclasses.replace(run.job, step=step)
    with run.stop as stop, stop.deferred():
        state = run.fit()
    assert run.stop.signal == signal.SIGTERM
    assert int(state.step) == 31 and run.of("save") == [31]


@pytest.mark.parametrize(
    ("failing", "kept", "every", "saves"),
    [
        (3, 0, 100, [3]),  # met before the step: the three that are done are saved
        (3, 1, 100, [4]),  # met behind it
        (3, 0, 3, [3]),  # saved already, as due
        (3, 1, 4, [4]),
        (0, 0, 100, []),  # nothing is done
    ],
)
def test_what_a_step_that_failed_had_done_is_saved_before_the_error_is_raised(failing, kept, every, saves):
    run = Run(steps=6, checkpoint=every, log=1)

    def step(state, batch):
        if len([event for event in run.events if event[0] == "step"]) == failing:
            after = run.step(state, batch)[0] if kept else state
            raise UnfinishedStepError("rewards.py:3: ValueError", after)
        return run.step(state, batch)

    job = dataclasses.replace(run.job, step=step)
    with pytest.raises(UserError, match=r"rewards\.py:3"):
        fit(job, TrainState(jnp.int32(0), jnp.float32(0), ()), run.stop)
    assert [event[1:3] for event in run.events if event[0] == "save"] == [(done, done) for done in saves]
    assert list(run.lines) == list(range(1, failing + 1))  # every iteration that is done is in the record
