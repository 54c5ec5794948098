"""Several processes on loopback: the same losses on any split, one decision to stop, a clear end for survivors."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lmjax.errors import PeerLostError, UserError
from lmjax.parallel import rendezvous
from lmjax.parallel.processes import _arguments
from lmjax.parallel.rendezvous import different, meet
from lmjax.settings import EvaluationSettings, MeasureSettings, MeshSettings, Pipeline, TrainSettings
from tests.tiny import LETTERS, base, hhh_sets, pretrain, reward_model, text, write_recipe, write_rows


def recipe_of(steps):
    return pretrain(
        text("text.txt"),
        model__layers=2,
        model__dropout=0.1,
        mesh=MeshSettings(fsdp=4),
        train=TrainSettings(steps=steps, seed=3),
        evaluation=EvaluationSettings(every=steps, batches=1),
        checkpoint__every=5,
    )


@pytest.fixture
def start(tmp_path):
    """A function (workdir, processes, devices of each) that starts `lmjax run` in each; their output is in files."""
    text = "".join(f"{i} bottles of beer on the wall, take {i % 7} down.\n" for i in range(200))
    (tmp_path / "text.txt").write_text(text)
    started = []

    def begin(workdir, processes, devices, steps=30, of_each=None, program=("-m", "lmjax.cli"), recipe=None):
        write_recipe(tmp_path / "tiny.py", recipe or recipe_of(steps))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        run = []
        for index in range(processes):
            several = {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                # Of two counts the last holds.
                "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
                "PYTHONPATH": str(Path(__file__).parents[2]),
                **(several if processes > 1 else {}),
            }
            log = (tmp_path / f"{workdir}.{index}.log").open("w")
            own = of_each[index] if of_each else []
            command = [sys.executable, *program, "run", "tiny.py", "--workdir", workdir, *own]
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
            process.log = Path(log.name)
            run.append(process)
        started.extend(run)
        return run

    yield begin
    for process in started:
        process.kill()


def finish(run, codes, seconds=900):
    deadline = time.monotonic() + seconds
    for process, code in zip(run, codes, strict=True):
        assert process.wait(timeout=deadline - time.monotonic()) == code, process.log.read_text()[-3000:]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def wait_for_step(folder, step, seconds=900):
    deadline = time.monotonic() + seconds
    while not (folder / "metrics.jsonl").exists() or max(losses(folder), default=0) < step:
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_stopped_and_killed_go_on_as_one_and_as_four_with_the_same_losses(start, tmp_path):
    finish(start("whole", 1, 8), [0])
    expected = losses(tmp_path / "whole")
    assert sorted(expected) == list(range(1, 31))

    run = start("split", 2, 4)
    wait_for_step(tmp_path / "split", 3)
    run[1].send_signal(signal.SIGTERM)  # one of them; both save and stop after the same step
    finish(run, [128 + signal.SIGTERM] * 2)
    stopped = max(int(path.name) for path in (tmp_path / "split" / "checkpoints" / "pretrain").iterdir())
    assert stopped >= 3 and max(losses(tmp_path / "split")) == stopped

    run = start("split", 2, 4)
    wait_for_step(tmp_path / "split", min(stopped + 7, 30))
    for process in run:
        process.kill()
    finish(run, [-signal.SIGKILL] * 2)

    run = start("split", 4, 2)
    wait_for_step(tmp_path / "split", min(stopped + 12, 30))
    run[0].send_signal(signal.SIGTERM)
    for process in run:
        assert process.wait(timeout=900) in (0, 128 + signal.SIGTERM), process.log.read_text()[-3000:]
    finish(start("split", 1, 8), [0])
    resumed = losses(tmp_path / "split")
    assert resumed.keys() == expected.keys()
    assert resumed == pytest.approx(expected, rel=2e-5)
    assert "report" in (tmp_path / "split.0.log").read_text()


@pytest.mark.slow
def test_the_files_of_all_processes_have_digests_and_all_pass_over_the_same_damage(start, tmp_path):
    finish(start("both", 2, 4, steps=10), [0, 0])
    steps = tmp_path / "both" / "checkpoints" / "pretrain"
    kept = json.loads((steps / "10" / "digests.json").read_text())["files"]
    for process in ("process_0", "process_1"):
        assert any(f"ocdbt.{process}/d/" in name for name in kept), kept.keys()
    damaged = max((name for name in kept if "process_1/d/" in name), key=lambda name: kept[name]["bytes"])
    content = bytearray((steps / "10" / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (steps / "10" / damaged).write_bytes(bytes(content))
    (tmp_path / "both" / "summary.json").unlink()
    finish(start("both", 2, 4, steps=10), [0, 0])  # each reads a share of the files: one of them sees the damage
    said = (tmp_path / "both.0.log").read_text().replace("\n", "")
    assert "10 is damaged" in said and "trying the one before it" in said
    assert sorted(path.name for path in steps.iterdir()) == ["10", "10.damaged", "5"]


@pytest.mark.slow
def test_two_processes_measure_the_models_of_a_pipeline_as_one_does_and_one_of_them_writes(start, tmp_path):
    rows = write_rows(tmp_path / "ranks.jsonl", [{"prompt": c, "chosen": c * 2, "rejected": c} for c in LETTERS])
    stages = (base(tmp_path, mesh=MeshSettings(fsdp=4)), reward_model(rows, dialogue__too_long="skip"))
    sets = MeasureSettings(str(hhh_sets(tmp_path / "sets")))
    recipe = Pipeline("measured", stages, sets)
    finish(start("run", 1, 4, recipe=recipe), [0])
    folders = [tmp_path / "run" / stage.name for stage in stages]
    alone = []
    for folder in folders:
        alone.append(json.loads((folder / "measures.json").read_text())["measures"])
        (folder / "measures.json").unlink()
    finish(start("run", 2, 2, recipe=recipe), [0, 0])
    for folder, expected in zip(folders, alone, strict=True):
        found = json.loads((folder / "measures.json").read_text())["measures"]
        assert [each["measure"] for each in found] == [each["measure"] for each in expected] and len(found) > 1
        values = [[each["value"] for each in measured] for measured in (found, expected)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)


@pytest.mark.slow
def test_a_peer_that_dies_ends_the_others_within_a_minute_and_says_so(start, tmp_path):
    run = start("lost", 2, 4, steps=100_000)
    wait_for_step(tmp_path / "lost", 3)
    run[1].kill()
    killed = time.monotonic()
    assert run[0].wait(timeout=60) != 0
    assert time.monotonic() - killed < 60
    said = run[0].log.read_text()
    if run[0].returncode == -signal.SIGABRT and "distributed collective mismatch" in said:
        pytest.xfail("Gloo takes a dead peer's last message for the next sum's and aborts before JAX can raise")
    assert "another process of this run has died" in said or "another task died" in said


def test_a_process_alone_joins_nobody():
    assert _arguments({}) is None
    assert _arguments({"TPU_WORKER_HOSTNAMES": "localhost", "SLURM_NTASKS": "8"}) is None


def test_launchers_are_known_by_their_variables():
    by_hand = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert _arguments(by_hand) == {"coordinator_address": "h:1", "num_processes": 4, "process_id": 3}
    for detected in ({"SLURM_STEP_NUM_TASKS": "2"}, {"TPU_WORKER_HOSTNAMES": "a,b"}, {"MEGASCALE_NUM_SLICES": "2"}):
        assert _arguments(detected) == {}


FACTS = {"the recipe": {"train.seed": "3"}, "the data": {"a.txt": "f00"}}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def met(facts, seconds=20.0, late=0.0):
    """What each of several processes, which are threads here, is told when they meet with these facts."""
    address = f"127.0.0.1:{free_port()}"
    told = {}

    def come(index):
        time.sleep(late if index else 0.0)
        try:
            told[index] = meet(address, len(facts), index, facts[index], seconds)
        except (UserError, PeerLostError) as error:
            told[index] = error

    threads = [threading.Thread(target=come, args=(index,)) for index in range(len(facts)) if facts[index] is not None]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_processes_that_are_about_to_do_the_same_meet_and_a_late_one_is_waited_for():
    assert met([FACTS] * 4) == dict.fromkeys(range(4))
    assert met([FACTS] * 2, late=3.0) == dict.fromkeys(range(2))


def test_processes_that_are_about_to_do_different_things_are_all_told_which_differs_in_what():
    other = {"the recipe": {"train.seed": "4"}, "the data": {"a.txt": "not there"}}
    told = met([FACTS, FACTS, other])
    said = (
        "process 2 differs from process 0 in the recipe (train.seed: '3' there, '4' here), and in the data "
        "(a.txt: 'f00' there, 'not there' here); expected the same in every process; start the same command with the "
        "same files and packages on each host"
    )
    assert {type(error) for error in told.values()} == {UserError}
    assert {str(error) for error in told.values()} == {said}
    many = {"the recipe": {f"field{n}": "x" * 10_000 for n in range(100)}}
    assert len(different(1, many, {})) < 3000 and "and 92 more" in different(1, many, {})


@pytest.mark.parametrize("who", [0, 2])
def test_a_mistake_of_one_process_is_told_to_all_also_to_those_that_come_later(monkeypatch, who):
    facts = [FACTS] * 3
    facts[who] = "no recipe 'tinny'"
    told = met(facts, late=1.0)
    assert {str(error) for error in told.values()} == {f"process {who}: no recipe 'tinny'"}
    assert {type(error) for error in told.values()} == {UserError}


def test_a_process_that_does_not_come_is_named_by_all_that_did():
    told = met([FACTS, FACTS, None, None], seconds=1.5)
    assert {type(error) for error in told.values()} == {PeerLostError} and sorted(told) == [0, 1]
    assert {str(error) for error in told.values()} == {
        "processes 2, 3 of 4 did not come within 2 s; see what became of it on its host, and start all of them again"
    }
    (alone,) = met([None, FACTS], seconds=1.5).values()
    assert isinstance(alone, PeerLostError)
    assert str(alone).startswith("process 0 of this run does not answer at JAX_COORDINATOR_ADDRESS = 127.0.0.1:")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS = 'somewhere': expected host:port of process 0"):
        meet("somewhere", 2, 1, FACTS, 0.0)


def test_who_is_no_process_of_the_run_is_not_heard_and_a_taken_port_is_named():
    port = free_port()
    host = threading.Thread(target=meet, args=(f"127.0.0.1:{port}", 2, 0, FACTS, 20.0))
    host.start()
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": 7}\n', b"[" * 100_000 + b"\n", b""):
        patience = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(noise)
                break
            except OSError:
                assert time.monotonic() < patience
                time.sleep(0.05)
    meet(f"127.0.0.1:{port}", 2, 1, FACTS, 20.0)
    host.join()
    with socket.create_server(("", port)), pytest.raises(UserError, match=f"cannot listen at port {port} "):
        rendezvous._listening(port)


def test_two_processes_with_different_recipes_and_one_with_a_mistake_leave_with_2_before_anything_runs(start, tmp_path):
    run = start("apart", 2, 4, of_each=[[], ["--train.seed", "4", "--workdir", "elsewhere"]])
    wrong = start("wrong", 2, 4, of_each=[["--train.stesp", "4"], []])
    began = time.monotonic()
    finish(run, [2, 2], 90)
    for process in run:
        said = process.log.read_text()
        assert "process 1 differs from process 0 in the recipe (train.seed: '3' there, '4' here); expected" in said
        assert "Traceback" not in said and "***" not in said
    assert not (tmp_path / "apart").exists() and not (tmp_path / "elsewhere").exists()
    finish(wrong, [2, 2], 90)
    assert "process 0: --train.stesp: no such field" in wrong[1].log.read_text()
    assert time.monotonic() - began < 60


LATE_MISTAKE = """
import lmjax.stages.pretrain as module
from lmjax.cli import main
from lmjax.errors import UserError
import sys, time, jax
train_task, who = module.train_task, int(sys.argv.pop())
def late(*arguments):
    if jax.process_index() == who:
        time.sleep(1)
        raise UserError("the file went away")
    return train_task(*arguments)
module.train_task = late
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("who", ["0", "1"])
def test_a_mistake_after_joining_ends_all_with_2_in_a_minute_whoever_makes_it(start, tmp_path, who):
    (tmp_path / "late.py").write_text(LATE_MISTAKE)
    run = start("late", 2, 4, of_each=[[who], [who]], program=["late.py"], steps=100_000)
    began = time.monotonic()
    finish(run, [2, 2], 120)
    assert time.monotonic() - began < 60
    for process in run:
        said = process.log.read_text()
        assert "the file went away" in said and "Traceback" not in said and "***" not in said
    assert f"lmjax: process {who} of 2: the file went away" in run[1 - int(who)].log.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "expected JAX_PROCESS_ID beside it"),
        ({"JAX_PROCESS_ID": "4"}, "expected less than JAX_NUM_PROCESSES = 4"),
        ({"JAX_NUM_PROCESSES": "many"}, "expected a whole number"),
    ],
)
def test_variables_that_do_not_fit_together_are_named(changes, message):
    by_hand = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    with pytest.raises(UserError, match=message):
        _arguments(by_hand | changes)
