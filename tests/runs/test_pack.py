"""Several processes on parts of one host's devices: even parts, nothing lost by a death, signals for all."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from lmjax.errors import UserError
from lmjax.runs import pack
from lmjax.runs.pack import part_environments, run_packed
from lmjax.scaling.sweep_table import SweepTable

FORCED = "--xla_force_host_platform_device_count"


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """A function that puts files with these names where drivers put devices."""

    def place(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()

    monkeypatch.setattr(pack, "DEVICES", tmp_path)
    return place


@pytest.mark.parametrize(("parts", "own"), [(1, 8), (4, 2), (8, 1)])
def test_forced_cpu_devices_are_cut_evenly(devices, parts, own):
    found = part_environments(parts, {"XLA_FLAGS": f"--other {FORCED}=8 --last", "A": "b"})
    assert found == [{"XLA_FLAGS": f"--other {FORCED}={own} --last", "A": "b"}] * parts


@pytest.mark.parametrize("parts", [3, 16])
def test_parts_that_do_not_divide_the_devices_are_refused(devices, parts):
    with pytest.raises(UserError, match=rf"--pack = {parts}: expected a divisor of 8 forced CPU devices; use "):
        part_environments(parts, {"XLA_FLAGS": f"{FORCED}=8"})


def test_a_cpu_without_flags_serves_any_number_of_processes(devices):
    assert part_environments(3, {"A": "b"}) == [{"A": "b"}] * 3
    with pytest.raises(UserError, match="--pack = 0: expected a number of parts above 0"):
        part_environments(0, {})


def test_each_part_sees_tpu_chips_of_its_own(devices):
    devices(*(f"vfio/{chip}" for chip in range(8)))
    found = part_environments(4, {})
    assert [each["TPU_VISIBLE_CHIPS"] for each in found] == ["0,1", "2,3", "4,5", "6,7"]
    assert {each["TPU_CHIPS_PER_PROCESS_BOUNDS"] for each in found} == {"1,2,1"}
    assert len({each["TPU_PROCESS_PORT"] for each in found}) == 4
    assert part_environments(2, {"JAX_PLATFORMS": "cpu"}) == [{"JAX_PLATFORMS": "cpu"}] * 2


def test_each_part_sees_gpus_of_its_own(devices):
    devices("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in part_environments(2, {})] == ["0,1", "2,3"]
    with pytest.raises(UserError, match="--pack = 3: expected a divisor of 4 GPUs; use 2 or 4"):
        part_environments(3, {})


COUNTED = """
import os, sys, time, signal
count = 0
while True:
    try:
        os.mkdir(f"begun{count}")
        break
    except FileExistsError:
        count += 1
"""


def script(tmp_path, body):
    """A command that runs `body`, in which `count` is how many processes began before."""
    path = tmp_path / "work.py"
    path.write_text(COUNTED + body)
    return [sys.executable, str(path)]


@pytest.fixture
def here(tmp_path, devices, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return tmp_path


def test_lines_of_a_process_have_its_number(here):
    said = []
    assert run_packed(script(here, "print('hello', flush=True)"), 2, lambda: True, said.append) is None
    assert sorted(said) == ["[1] hello", "[2] hello"]


def test_a_process_that_dies_leaves_its_work_to_another_round(here):
    said = []
    command = script(here, "os.kill(os.getpid(), 9) if count < 1 else None")
    assert run_packed(command, 2, lambda: len(list(here.glob("begun*"))) == 4, said.append) is None
    assert len(list(here.glob("begun*"))) == 4
    assert said[0].endswith("what they left is taken up")


def test_a_death_that_left_nothing_behind_is_the_end(here):
    assert run_packed(script(here, "os.kill(os.getpid(), 9) if count < 1 else None"), 2, lambda: True, print) is None
    assert len(list(here.glob("begun*"))) == 2


def test_processes_that_always_die_end_in_an_error(here):
    with pytest.raises(UserError, match="--pack: 3 rounds of processes have died; run without --pack to see why"):
        run_packed(script(here, "os.kill(os.getpid(), 9)"), 2, lambda: False, lambda line: None)


def test_a_mistake_of_the_user_is_not_tried_again(here):
    assert run_packed(script(here, "sys.exit(2)"), 2, lambda: False, lambda line: None) == 2
    assert len(list(here.glob("begun*"))) == 2


def test_a_signal_reaches_every_process(here):
    body = "signal.signal(15, lambda *_: sys.exit(143))\nopen(f'ready{count}', 'w').close()\ntime.sleep(60)"

    def stop():
        while len(list(here.glob("ready*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    began = time.monotonic()
    assert run_packed(script(here, body), 2, lambda: False, lambda line: None) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 30


SWEEP = """
from pathlib import Path
from lmjax.scaling.ladder import grid, search
from lmjax.scaling.rules import fixed
from lmjax.settings import *


def recipe():
    source = (SourceSettings(kind="text", path=str(Path(__file__).parent / "text.txt"), documents="line"),)
    base = Pretrain(
        data=DataSettings(train=source, validation=source, sequence_length=16),
        model=ModelSettings(layers=1, width=16, context=16, attention=AttentionSettings(heads=2)),
        optimizer=OptimizerSettings(eps=1e-3),
        evaluation=EvaluationSettings(every=1000),
        log=LogSettings(every=2, tensorboard=False),
    )
    return Sweep("packed", search(grid(base, [base.model], [640], fixed(1e-2, 4)), seeds=range(8)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "own"), [(4, 2), (8, 1)])
def test_runs_beside_each_other_have_the_losses_of_single_ones(tmp_path, monkeypatch, parts, own):
    (tmp_path / "text.txt").write_text("the cat sat on a mat and ran to the sea\n" * 60)
    (tmp_path / "sweep.py").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = pack.sweep_command(["sweep.py", "--workdir", "alone"])
    monkeypatch.setenv("XLA_FLAGS", f"{FORCED}={own}")
    assert run_packed(command, 1, lambda: True) is None
    monkeypatch.setenv("XLA_FLAGS", f"{FORCED}=8")
    said = []
    assert run_packed([*command[:-1], "packed"], parts, lambda: True, said.append) is None
    alone, packed = (SweepTable(tmp_path / name / "table.jsonl", print).rows() for name in ("alone", "packed"))
    assert len(packed) == len((tmp_path / "packed" / "table.jsonl").read_text().splitlines()) == 8
    assert {name: row["loss"] for name, row in packed.items()} == {name: row["loss"] for name, row in alone.items()}
    assert {row["devices"] for row in packed.values()} == {own}
    taken = {line.split("]")[0] for line in said if ": N " in line}
    assert len(taken) > 1, json.dumps(said)
