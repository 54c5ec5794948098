"""The record holds each step once, whatever killed the run, and nothing that is written is changed by reading it."""

import json
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.errors import UserError
from lmjax.training import record
from lmjax.training.record import Recorder, read_metrics
from lmjax.training.trackers import TENSORBOARD_FOLDER, Tracked, open_trackers


def _recorder(folder, resumed_at=0, tensorboard=False) -> Recorder:
    def trackers(next_step: int) -> list:
        return open_trackers((), Tracked(folder, "run", {}, next_step), tensorboard=tensorboard)

    return Recorder(folder, resumed_at=resumed_at, trackers=trackers)


def _write(folder, steps, resumed_at=0, **settings) -> None:
    recorder = _recorder(folder, resumed_at, **settings)
    for step in steps:
        recorder.write(step, {"loss": float(step)})
    recorder.close()


def test_lines_are_on_disk_when_write_returns(tmp_path):
    recorder = _recorder(tmp_path)
    recorder.write(5, {"loss": 1.5})
    assert read_metrics(tmp_path) == [{"step": 5, "loss": 1.5}]
    recorder.close()


def test_a_resumed_run_holds_each_step_once(tmp_path):
    _write(tmp_path, range(1, 8))
    recorder = _recorder(tmp_path, resumed_at=4)
    assert [line["step"] for line in recorder.kept] == [1, 2, 3, 4]
    recorder.write(5, {"loss": 50.0})
    recorder.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 50),
    ]


def test_a_fresh_start_forgets_a_run_that_saved_nothing(tmp_path):
    _write(tmp_path, range(1, 4))
    _write(tmp_path, range(1, 3))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step": 4, "loss": 4.0}', '{"sample": "caf\u00e9'])
def test_a_torn_last_line_is_dropped_wherever_it_was_cut(tmp_path, torn):
    _write(tmp_path, range(1, 4))
    raw = torn.encode()
    for length in range(1, len(raw) + 1):
        path = tmp_path / record.METRICS_FILE
        whole = path.read_bytes()
        path.write_bytes(whole + raw[:length])
        assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
        _recorder(tmp_path, resumed_at=9).close()
        assert path.read_bytes() == whole


def test_a_damaged_line_inside_is_an_error_that_names_file_and_line(tmp_path):
    (tmp_path / record.METRICS_FILE).write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: expected a JSON object with a step; delete the line"):
        read_metrics(tmp_path)
    (tmp_path / record.METRICS_FILE).write_text('{"step": 1}\n[1]\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: "):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match=r"no such file; expected the record of a run"):
        read_metrics(tmp_path / "elsewhere")


def test_every_line_is_strict_json_even_when_a_number_is_not_finite(tmp_path):
    recorder = _recorder(tmp_path)
    recorder.write(1, {"loss": math.nan, "grad_norm": math.inf, "x": -math.inf})
    recorder.close()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    (text,) = (tmp_path / record.METRICS_FILE).read_text().splitlines()
    assert json.loads(text, parse_constant=refuse)["grad_norm"] == "inf"
    (line,) = read_metrics(tmp_path)
    assert math.isnan(line["loss"]) and line["grad_norm"] == math.inf and line["x"] == -math.inf


@given(
    numbers=st.dictionaries(st.sampled_from(["loss", "grad_norm", "mfu"]), st.floats(allow_nan=False)),
    prompt=st.text() | st.sampled_from(["nan", "inf"]),
    sample=st.text() | st.sampled_from(["nan", "-inf", "\u2028\n\x85"]),
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_what_is_read(tmp_path_factory, numbers, prompt, sample):
    folder = tmp_path_factory.mktemp("record")
    recorder = _recorder(folder)
    recorder.write(3, numbers)
    recorder.write(3, {"prompt": prompt, "sample": sample})
    recorder.close()
    for _ in range(2):  # the second time, after a resumed run has written the file anew
        assert read_metrics(folder) == [{"step": 3, **numbers}, {"step": 3, "prompt": prompt, "sample": sample}]
        _recorder(folder, resumed_at=3).close()


# TensorBoard's format: length, checksum, an Event, checksum.
def _events(folder) -> list:
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted((folder / TENSORBOARD_FOLDER).iterdir()):
        assert ".tfevents." in file.name, "the name by which TensorBoard finds it"
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_tensorboard_reads_scalars_and_samples(tmp_path):
    recorder = _recorder(tmp_path, tensorboard=True)
    recorder.write(2, {"loss": 0.5, "epochs": 1})
    recorder.write(2, {"prompt": "The ", "sample": "cat"})
    events = _events(tmp_path)
    recorder.close()
    assert events[0].file_version == "brain.Event:2"
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value if v.HasField("simple_value")]
    assert scalars == [(2, "loss", 0.5), (2, "epochs", 1.0)]
    texts = [(v.tag, v.tensor.string_val[0]) for e in events for v in e.summary.value if v.HasField("tensor")]
    assert texts == [("sample/text_summary", b"The cat")]


def test_a_resumed_run_tells_tensorboard_from_where_to_forget_and_overwrites_no_file(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog

    _write(tmp_path, [1, 2, 3, 4], tensorboard=True)
    _write(tmp_path, [3, 4], resumed_at=2, tensorboard=True)  # within the same second
    seen: dict[int, int] = {}
    for event in _events(tmp_path):
        if event.session_log.status == SessionLog.START:
            seen = {step: n for step, n in seen.items() if step < event.step}
        for _ in event.summary.value:
            seen[event.step] = seen.get(event.step, 0) + 1
    assert seen == {1: 1, 2: 1, 3: 1, 4: 1}
    assert len(list((tmp_path / TENSORBOARD_FOLDER).iterdir())) == 2


def test_a_full_disk_is_raised_and_not_waited_for(tmp_path, monkeypatch):
    recorder = _recorder(tmp_path, tensorboard=True)

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder._trackers[0]._writer, "write_event", full)
    with pytest.raises(OSError, match="No space left"):
        for step in range(100):
            recorder.write(step, {"loss": 1.0})
    recorder.close()
