"""skypilot.sh: the managed jobs of a sweep, as `sky` is sent them, and what SkyPilot's own parser makes of the task."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TASK = ["--name", "isoflop", "--shares", "3", "--accelerators", "tpu-v5litepod-8", "--bucket", "my-bucket"]
SWEEP = ["--", "lmjax", "sweep", "a 'b'.py", "--workdir", "/bucket/{share}"]
PARSE = """import json, sys
import sky
task = sky.Task.from_yaml_config(json.load(sys.stdin), env_overrides=[("SHARE_INDEX", "1")])
resources = next(iter(task.resources))
print("parsed", json.dumps({
    "accelerators": resources.accelerators, "spot": resources.use_spot, "recovery": resources.job_recovery,
    "nodes": task.num_nodes, "envs": task.envs, "run": task.run, "setup": task.setup,
    "mounts": {path: [store.source, store.mode.value] for path, store in task.storage_mounts.items()},
}))
"""


def launched(cloud, *options):
    """The task, as it is launched for every share."""
    code, output, calls = cloud("skypilot.sh", [*TASK, *options, *SWEEP])
    assert code == 0, output
    assert len({text for _, text in calls}) == 1
    return yaml.safe_load(calls[0][1]), [words for words, _ in calls]


def test_every_share_is_a_managed_job_of_one_task_with_its_index(cloud):
    _, calls = launched(cloud)
    launch = ["sky", "jobs", "launch", "--yes", "--detach-run", "--name"]
    assert [words[:-1] for words in calls] == [
        [*launch, f"isoflop-{index}", "--env", f"SHARE_INDEX={index}"] for index in range(3)
    ]


def test_a_task_has_what_recovery_needs_and_no_field_of_another_name(cloud):
    task, _ = launched(cloud, "--spot")
    assert set(task) == {"resources", "workdir", "envs", "file_mounts", "setup", "run"}
    assert task["resources"] == {
        "accelerators": "tpu-v5litepod-8",
        "use_spot": True,
        "job_recovery": {
            "strategy": "EAGER_NEXT_REGION",
            "max_restarts_on_errors": 0,  # neither a failed row (1) nor a mistake (2) is tried again
            "recover_on_exit_codes": [143],
        },
    }
    assert task["file_mounts"] == {"/bucket": {"source": "gs://my-bucket", "mode": "MOUNT"}}
    assert launched(cloud)[0]["resources"]["use_spot"] is False


def test_the_task_runs_the_share_of_its_index_with_the_words_as_given(cloud, tmp_path):
    task, _ = launched(cloud)
    (tmp_path / "tpu_setup").symlink_to(Path(task["workdir"], "tpu_setup"))
    show = tmp_path / ".venv" / "bin" / "lmjax"
    show.parent.mkdir(parents=True)
    show.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(1)\n")
    show.chmod(0o755)
    environment = os.environ | {"SHARE_INDEX": "1"}
    command = ["bash", "-c", task["run"]]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout) == ["sweep", "a 'b'.py", "--workdir", "/bucket/2", "--shard", "2/3"]


@pytest.mark.parametrize(("accelerators", "extra"), [("tpu-v6e-4", "tpu"), ("H100:1", "cuda")])
def test_the_packages_are_those_of_the_accelerator(cloud, accelerators, extra):
    task, _ = launched(cloud, "--accelerators", accelerators)
    assert f"'.[{extra}]'" in task["setup"]


@pytest.fixture(scope="module")
def skypilot():
    """A Python that has SkyPilot."""
    python = os.environ.get("LMJAX_SKYPILOT_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import sky"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no SkyPilot: set LMJAX_SKYPILOT_PYTHON to one that has (pip install skypilot)")
    return python


@pytest.mark.skypilot
@pytest.mark.parametrize(
    ("options", "accelerators"), [(["--spot"], {"tpu-v5litepod-8": 1}), (["--accelerators", "H100:1"], {"H100": 1})]
)
def test_skypilots_own_parser_takes_the_task(cloud, skypilot, tmp_path, options, accelerators):
    task, _ = launched(cloud, *options)

    def parsed(config):
        return subprocess.run(
            [skypilot, "-c", PARSE],
            input=json.dumps(config),
            env=os.environ | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = parsed(task)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.partition("parsed ")[2])
    assert found["accelerators"] == accelerators and found["spot"] == ("--spot" in options) and found["nodes"] == 1
    assert found["recovery"] == task["resources"]["job_recovery"]
    assert found["envs"] == {"SHARE_INDEX": "1"}
    assert (found["run"], found["setup"]) == (task["run"], task["setup"])
    assert found["mounts"] == {"/bucket": ["gs://my-bucket", "MOUNT"]}
    for field, wrong in (("recover_on_exit_codes", ["143"]), ("max_restarts_on_errors", "0")):
        recovery = task["resources"]["job_recovery"] | {field: wrong}
        refused = parsed(task | {"resources": task["resources"] | {"job_recovery": recovery}})
        assert refused.returncode != 0 and f"job_recovery.{field}" in refused.stderr + refused.stdout


def test_a_dry_run_pasted_into_a_shell_launches_what_the_real_run_does(cloud, tmp_path):
    words = ["--", "lmjax", "`touch pwned`", "$HOME", "$(id)", "", "f\ng", "@BUCKET@", "END_OF_TASK", "{share}"]
    _, _, real = cloud("skypilot.sh", [*TASK, *words])
    code, printed, calls = cloud("skypilot.sh", [*TASK, "--dry-run", *words])
    assert code == 0 and calls == []
    code, output, pasted = cloud(None, ["-c", f"cd {tmp_path}; {printed}"])
    assert (code, output) == (0, "")
    assert [(call[:-1], text) for call, text in pasted] == [(call[:-1], text) for call, text in real]


def test_a_launch_that_is_refused_is_tried_again(cloud):
    code, _, calls = cloud("skypilot.sh", [*TASK, *SWEEP], [(["isoflop-1"], 1, "the API server is down")])
    assert code == 0 and [words[6] for words, _ in calls] == ["isoflop-0", "isoflop-1", "isoflop-1", "isoflop-2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--accelerators", "tpu-v5litepod-16", *SWEEP], "every share runs on one host"),
        (["--accelerators", "a b", *SWEEP], "expected a name such as tpu-v5litepod-8"),
        (["--bucket", "a b", *SWEEP], "not the name of a bucket"),
        ([*SWEEP[:-1], "/bucket/x"], "every share needs a workdir of its own"),
        ([*SWEEP, "--shard=1/2"], "every share is given its own --shard"),
        ([], "no command"),
    ],
)
def test_jobs_that_cannot_be_are_refused_before_anything_is_called(cloud, changes, message):
    code, output, calls = cloud("skypilot.sh", [*TASK, *changes])
    assert code == 2 and message in output and calls == []
