"""A sweep's table: whole rows or none, whoever writes and whenever it is killed."""

import json
import multiprocessing
import resource
import signal

import pyarrow.parquet as pq
import pytest

from lmjax.errors import UserError
from lmjax.scaling.sweep_table import SweepTable, write_parquet


@pytest.fixture
def said():
    return []


@pytest.fixture
def table(tmp_path, said):
    return SweepTable(tmp_path / "table.jsonl", said.append)


def row(name, **values):
    return {"name": name, "loss": 2.5, **values}


def test_a_table_that_does_not_exist_has_no_rows(table):
    assert table.rows() == {}


def test_rows_come_back_as_they_were_appended(table):
    table.append(row("a", steps=3, error='a "quoted"\nline'))
    table.append(row("b", loss=float("nan")))
    assert table.rows() == {"a": row("a", steps=3, error='a "quoted"\nline'), "b": row("b", loss=None)}


def test_of_two_rows_of_one_run_the_last_counts(table):
    table.append(row("a", loss=3.0))
    table.append(row("a", loss=2.0))
    assert table.rows() == {"a": row("a", loss=2.0)}


def test_a_writer_that_dies_at_any_byte_loses_its_own_row_alone(table, said):
    table.append(row("a"))
    whole = table.path.read_bytes()
    table.append(row("b", note="é"))
    both = table.path.read_bytes()
    for end in range(len(whole) + 1, len(both)):
        table.path.write_bytes(both[:end])
        assert table.rows() == {"a": row("a")}
        table.append(row("c"))
        assert table.rows() == {"a": row("a"), "c": row("c")}
        assert said.pop() == f"{table.path}: its last line was not finished, and is dropped: its run runs again"
    assert said == []


@pytest.mark.parametrize("line", [b"{not json}", b"[1]", b'{"loss": 2.5}', b'{"name": 3}', b"", b"\xff"])
def test_a_line_that_is_no_row_is_named(table, line):
    table.append(row("a"))
    table.path.write_bytes(table.path.read_bytes() + line + b"\n")
    with pytest.raises(UserError, match=r"table.jsonl:2: found .*expected the row of a run.*delete the line"):
        table.rows()


def _append_many(path, worker):
    table = SweepTable(path, print)
    for number in range(50):
        table.append(row(f"{worker}-{number}", filler="x" * (number * 37 % 900)))


def test_several_processes_append_at_once(table):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(table.path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert set(table.rows()) == {f"{worker}-{number}" for worker in range(4) for number in range(50)}
    assert len(table.path.read_bytes().splitlines()) == 200


def test_a_full_disk_loses_no_row(table):
    table.append(row("a"))
    whole = table.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
    try:
        with pytest.raises(UserError, match=str(table.path.parent)):
            table.append(row("b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert table.path.read_bytes() == whole


def test_parquet_has_every_column(table, tmp_path):
    table.append(row("a", steps=3))
    table.append(row("b", error="lost"))
    write_parquet(table.rows(), tmp_path / "table.parquet")
    assert pq.read_table(tmp_path / "table.parquet").to_pylist() == [
        {"name": "a", "loss": 2.5, "steps": 3, "error": None},
        {"name": "b", "loss": 2.5, "steps": None, "error": "lost"},
    ]


def test_a_row_is_one_line_of_json(table):
    table.append(row("a"))
    assert json.loads(table.path.read_text()) == row("a")
