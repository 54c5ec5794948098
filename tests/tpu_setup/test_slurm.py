"""slurm.sh: the script of the array, and how a job of it ends by each exit code and signal."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

ARRAY = ["--name", "isoflop", "--shares", "4"]
# Says its words, and ends with the code that it is given: at once, or when SIGTERM comes.
SHOW = """import json, os, signal, sys, time
code, waits = int(os.environ["CODE"]), os.environ["WAITS"] == "yes"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
print(json.dumps(sys.argv[1:]), flush=True)
time.sleep(60 if waits else 0)
sys.exit(code)
"""


def submitted(cloud, *arguments):
    code, output, calls = cloud("slurm.sh", arguments)
    assert code == 0, output
    assert [call for call, _ in calls] == [["sbatch"]]
    return calls[0][1]


def test_the_array_has_an_index_for_each_share_and_slurm_may_queue_it_again(cloud):
    options = ["--at-once", "2", "--time", "8:00:00", "--option", "--gres=gpu:1"]
    script = submitted(cloud, *ARRAY, *options, "--", "lmjax")
    assert [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")] == [
        "--job-name=isoflop",
        "--array=0-3%2",
        "--output=isoflop-%a.log",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@120",
        "--time=8:00:00",
        "--gres=gpu:1",
    ]
    assert "--array=0-3\n" in submitted(cloud, *ARRAY, "--", "lmjax")


@pytest.fixture
def job(cloud, tmp_path):
    """A function that starts the job of an index as Slurm does, with a program in place of lmjax."""
    (tmp_path / "show.py").write_text(SHOW)
    words = [sys.executable, str(tmp_path / "show.py"), "a 'b' $HOME", "é\n*", "/s/{share}"]
    (tmp_path / "job").write_text(submitted(cloud, *ARRAY, "--requeues", "3", "--", *words))
    (tmp_path / "calls").write_text("")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE_CLOUD": str(tmp_path)}

    def start(code, waits="no", restarts="0"):
        variables = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": restarts}
        variables |= {"CODE": str(code), "WAITS": waits}
        command = ["bash", str(tmp_path / "job")]
        process = subprocess.Popen(
            command, env=environment | variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        return process, json.loads(process.stdout.readline())

    start.calls = lambda: [json.loads(line)[0] for line in (tmp_path / "calls").read_text().splitlines()]
    return start


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_a_job_ends_with_the_code_of_its_command_and_is_not_queued_again(job, code):
    process, words = job(code)
    assert words == ["a 'b' $HOME", "é\n*", "/s/3", "--shard", "3/4"]
    assert process.wait(60) == code and job.calls() == []


@pytest.mark.parametrize(
    ("sent", "code", "restarts", "ends", "requeued"),
    [
        (signal.SIGUSR1, 143, "0", 0, True),  # the time limit: stopped and saved
        (signal.SIGUSR1, 143, "2", 0, True),
        (signal.SIGUSR1, 143, "3", 143, False),  # it never comes further
        (signal.SIGUSR1, 0, "0", 0, False),  # it was done just then
        (signal.SIGUSR1, 1, "0", 1, False),
        (signal.SIGTERM, 143, "0", 143, False),  # a preemption: Slurm's own; scancel: nobody's
    ],
)
def test_only_a_job_that_the_time_limit_stopped_queues_itself_again(job, sent, code, restarts, ends, requeued):
    process, _ = job(code, "yes", restarts)
    time.sleep(0.3)  # the shell has come to its wait
    process.send_signal(sent)
    assert process.wait(30) == ends
    assert job.calls() == ([["scontrol", "requeue", "77"]] if requeued else [])


def test_a_dry_run_pasted_into_a_shell_submits_what_the_real_run_does(cloud):
    words = ["lmjax", "`touch pwned`", "$HOME", "$(id)", "it's", "", "f\ng", "@NAME@", "END_OF_JOB"]
    script = submitted(cloud, *ARRAY, "--", *words)
    code, printed, calls = cloud("slurm.sh", [*ARRAY, "--dry-run", "--", *words])
    assert code == 0 and calls == []
    code, output, pasted = cloud(None, ["-c", printed])
    assert (code, output) == (0, "") and pasted == [[["sbatch"], script]]


def test_the_script_of_the_array_is_shellcheck_clean(cloud, tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("needs Debian's shellcheck")
    (tmp_path / "job.sh").write_text(submitted(cloud, *ARRAY, "--", "lmjax", "sweep", "a.py"))
    command = ["shellcheck", "--exclude=SC2317", str(tmp_path / "job.sh")]  # a function that a trap calls
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_array_is_asked_for_once(cloud):
    code, output, calls = cloud("slurm.sh", [*ARRAY, "--", "lmjax"], [(["sbatch"], 1, "sbatch: error: no partition")])
    assert code == 1 and len(calls) == 1
    assert "no partition" in output and "sbatch took no job" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ARRAY, "--option", "--gres=gpu:1 --x", "--", "a"], "expected one word, an option of sbatch"),
        ([*ARRAY, "--option", "x\n#", "--", "a"], "expected one word, an option of sbatch"),
        ([*ARRAY, "--time", "soon", "--", "a"], "--time 'soon': expected a time"),
        (["--name", "a b", "--shares", "1", "--", "a"], "--name 'a b': expected letters"),
        (["--name", "a", "--", "a"], "--shares is missing"),
        (ARRAY, "no command"),
        ([*ARRAY, "--", "lmjax", "--shard", "1/4"], "every share is given its own --shard"),
    ],
)
def test_an_array_that_cannot_be_is_refused_before_anything_is_called(cloud, arguments, message):
    code, output, calls = cloud("slurm.sh", arguments)
    assert code == 2 and message in output and calls == []
