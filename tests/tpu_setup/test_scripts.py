"""The cloud scripts, driven with a fake `gcloud` and `kubectl`: exact commands, retries, idempotence, preemption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from lmjax.plan.topology import names

SCRIPTS = Path(__file__).parents[2] / "tpu_setup"
PLACE = ["--name", "gpt2", "--project", "my-project", "--zone", "us-west4-a"]
GKE = ["--name", "gpt2", "--type", "v5e", "--topology", "4x4", "--image", "host/p/lmjax:1", "--bucket", "my-bucket"]

# Notes each call with its standard input; answers from `answers`, a JSON list of [words of the call, exit code, output]
# whose first match is used up, or with nothing and exit code 0.
FAKE = f"""#!{sys.executable}
import json, os, sys
folder = os.environ["FAKE_CLOUD"]
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
stdin = "" if sys.stdin.isatty() or call[0] == "gcloud" else sys.stdin.read()
with open(folder + "/calls", "a") as file:
    file.write(json.dumps([call, stdin]) + "\\n")
with open(folder + "/answers") as file:
    answers = json.load(file)
for i, (words, code, output) in enumerate(answers):
    if all(word in call for word in words):
        del answers[i]
        with open(folder + "/answers", "w") as file:
            json.dump(answers, file)
        print(output, file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""
ABSENT = (1, "ERROR: NOT_FOUND: no such resource")
NODE, QUEUE = ["tpu-vm", "describe"], ["queued-resources", "describe"]
NOTHING = [(QUEUE, *ABSENT), (NODE, *ABSENT)]  # is there by that name


@pytest.fixture
def cloud(tmp_path):
    """A function (script or None, arguments of bash, answers) -> (exit code, output, calls of the cloud)."""
    for name in ("gcloud", "kubectl"):
        path = tmp_path / name
        path.write_text(FAKE)
        path.chmod(0o755)
    (tmp_path / "sleep").write_text("#!/bin/sh\n")  # nobody waits here
    (tmp_path / "sleep").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE_CLOUD": str(tmp_path)}

    def call(script, arguments, answers=()):
        (tmp_path / "answers").write_text(json.dumps(list(answers)))
        (tmp_path / "calls").write_text("")
        command = ["bash", *([str(SCRIPTS / script)] if script else []), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
        )
        calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        return done.returncode, done.stdout + done.stderr, calls

    return call


def verbs(calls):
    """What was asked of gcloud, as `create`, `ssh`, ..."""
    return [words[4] for words, _ in calls]


def deeds(calls):
    """What was asked of gcloud besides a look, as `queued-resources create`, `tpu-vm ssh`, ..."""
    return [f"{words[3]} {words[4]}" for words, _ in calls if words[4] != "describe"]


def test_the_scripts_are_shellcheck_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("needs Debian's shellcheck")
    scripts = sorted(map(str, SCRIPTS.glob("*.sh")))
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True, cwd=SCRIPTS, check=False)
    assert len(scripts) == 8
    assert (done.returncode, done.stdout) == (0, "")


def test_create_on_demand_waits_until_the_machine_is_ready(cloud):
    answers = [*NOTHING, (NODE, 0, "CREATING"), (NODE, 0, "READY")]
    code, _, calls = cloud("create.sh", [*PLACE, "--type", "v5e-16", "--provision", "on-demand"], answers)
    assert code == 0
    assert verbs(calls) == ["describe", "describe", "create", "describe", "describe"]
    assert calls[2][0] == [
        *("gcloud", "compute", "tpus", "tpu-vm", "create", "gpt2", "--project=my-project", "--zone=us-west4-a"),
        *("--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"),
    ]


@pytest.mark.parametrize("provision", ["spot", "queued"])
def test_create_again_makes_nothing_new_whatever_the_kind_of_what_exists(cloud, provision):
    options = [*PLACE, "--type", "v4-8", "--provision", provision]
    code, output, calls = cloud("create.sh", options, [(QUEUE, *ABSENT), (NODE, 0, "CREATING"), (NODE, 0, "READY")])
    assert code == 0 and "gpt2 exists already, as a TPU VM" in output and "gpt2: READY" in output
    assert deeds(calls) == []
    code, output, calls = cloud("create.sh", options, [(QUEUE, 0, "ACCEPTED"), (QUEUE, 0, "ACTIVE")])
    assert code == 0 and "gpt2 exists already, as a queued resource" in output and "gpt2: ACTIVE" in output
    assert deeds(calls) == []


def test_several_slices_are_not_taken_for_a_single_machine_of_that_name(cloud):
    code, output, calls = cloud(
        "create.sh", [*PLACE, "--type", "v4-8", "--slices", "2"], [(QUEUE, *ABSENT), (NODE, 0, "READY")]
    )
    assert code == 2 and "gpt2 is a single TPU VM" in output and deeds(calls) == []


def test_create_of_several_slices_asks_for_a_queued_resource(cloud):
    arguments = [*PLACE, "--type", "v5p-128", "--provision", "queued-spot", "--slices", "2"]
    code, _, calls = cloud("create.sh", arguments, [*NOTHING, (QUEUE, 0, "ACTIVE")])
    assert code == 0
    assert calls[2][0] == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "gpt2"),
        *("--project=my-project", "--zone=us-west4-a", "--node-count=2", "--node-prefix=gpt2"),
        *("--accelerator-type=v5p-128", "--runtime-version=v2-alpha-tpuv5", "--spot"),
    ]


def test_a_queued_resource_that_fails_is_an_error_that_says_what_to_do(cloud):
    answers = [*NOTHING, (QUEUE, 0, "FAILED")]
    code, output, _ = cloud("create.sh", [*PLACE, "--type", "v6e-8"], answers)
    assert code == 1 and "gpt2 is FAILED" in output and "delete.sh" in output


def test_a_command_that_fails_is_tried_again_and_then_given_up(cloud):
    refused = (["create"], 1, "ERROR: quota")
    options = [*PLACE, "--type", "v4-8", "--provision", "spot", "--attempts", "2"]
    create = "tpu-vm create"
    code, _, calls = cloud("create.sh", options, [*NOTHING, refused, (NODE, 0, "READY")])
    assert code == 0 and deeds(calls) == [create, create]
    code, output, calls = cloud("create.sh", options, [*NOTHING, refused, refused])
    assert code == 1 and "failed 2 times" in output and deeds(calls) == [create, create]


def test_an_answer_that_is_not_about_absence_is_not_taken_for_absence(cloud):
    answers = [(["describe"], 1, "ERROR: PERMISSION_DENIED")]
    code, output, calls = cloud("create.sh", [*PLACE, "--type", "v4-8", "--provision", "spot"], answers)
    assert code == 1 and "PERMISSION_DENIED" in output and verbs(calls) == ["describe"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--project", "p", "--zone", "z"], "--name is missing"),
        ([*PLACE, "--type", "v9-8"], "expected v4-N"),
        ([*PLACE, "--type", "v5e-17"], "--type v5e-17: expected 1, 4, 8, 16, 32, 64, 128 or 256 chips"),
        ([*PLACE, "--type", "v5e-"], "--type v5e-: expected 1, 4"),
        ([*PLACE, "--type", "v6e-512"], "--type v6e-512: expected 1, 4"),
        ([*PLACE, "--type", "v5p-12"], "--type v5p-12: expected a multiple of 8 TensorCores"),
        ([*PLACE, "--type", "v4-x8"], "--type v4-x8: expected a multiple of 8 TensorCores"),
        ([*PLACE, "--type", "tpu7x-8"], "gke.sh"),
        ([*PLACE], "--type is missing"),
        ([*PLACE, "--type"], "needs a value"),
        ([*PLACE, "--type", "v4-8", "--slices", "0"], "whole number above 0"),
        ([*PLACE, "--type", "v4-8", "--slices", "2", "--provision", "spot"], "queued"),
        ([*PLACE, "--type", "v4-8", "--provision", "free"], "expected on-demand"),
        ([*PLACE, "--typo", "v4-8"], "--typo: unknown option"),
        (["--name", "a; rm -rf b", "--project", "p", "--zone", "z"], "lower-case letters"),
    ],
)
def test_mistakes_are_named_and_nothing_is_called(cloud, arguments, message):
    code, output, calls = cloud("create.sh", arguments)
    assert code == 2 and message in output and calls == []


def test_every_slice_that_can_be_planned_can_be_asked_for(cloud):
    types = [name for generation in ("v4", "v5e", "v5p", "v6e") for name in names(generation)]
    asked = f"source {SCRIPTS}/cloud.sh; for TYPE in {' '.join(types)}; do accelerator; echo; done"
    code, output, _ = cloud(None, ["-c", asked])
    assert code == 0 and len(types) > 40
    assert output.split() == [name.replace("v5e", "v5litepod") for name in types]


def test_watch_follows_the_host_and_the_slice_that_are_named(cloud):
    code, _, calls = cloud("watch.sh", [*PLACE, "--slices", "3", "--slice", "2", "--worker", "1"])
    assert code == 0 and calls[0][0][4:6] == ["ssh", "gpt2-2"] and "--worker=1" in calls[0][0]
    code, _, calls = cloud("watch.sh", PLACE)
    assert code == 0 and calls[0][0][4:6] == ["ssh", "gpt2"] and "--worker=0" in calls[0][0]
    for slice_, slices in (("1", "1"), ("3", "3"), ("x", "2"), ("08", "9")):
        code, output, calls = cloud("watch.sh", [*PLACE, "--slices", slices, "--slice", slice_])
        assert code == 2 and f"--slice {slice_}: expected a slice's number" in output and calls == []


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_a_bash_that_is_too_old_is_told_so(cloud, tmp_path, script):
    folder = tmp_path / "old"
    shutil.copytree(SCRIPTS, folder)
    library = folder / "cloud.sh"
    text = library.read_text().replace("BASH_VERSINFO", "OLD").replace("$BASH_VERSION ", "3.2.57 ")
    library.write_text(f"OLD=(3 2 57)\n{text}")
    code, output, calls = cloud(None, [str(folder / script), "--help"])
    assert (code, calls) == (2, [])
    assert output.startswith(f"{script}: bash 3.2.57 is too old: expected 4.4 or newer") and output.count("\n") == 1


@pytest.mark.parametrize("script", ["create", "bootstrap", "launch", "watch", "resume", "delete", "gke"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "--type", "v5e-16", "--", "a"], "--name needs a value, and --type follows it"),
        (["--name", "gpt2", "--slices", "--dry-run"], "--slices needs a value, and --dry-run follows it"),
        (["--name", "--", "lmjax"], "--name needs a value, and -- follows it"),
        (["--name"], "--name needs a value, and nothing follows it"),
        (["--typo"], "--typo: unknown option"),
    ],
)
def test_an_option_is_never_taken_for_a_value(cloud, script, arguments, message):
    code, output, calls = cloud(f"{script}.sh", arguments)
    assert code == 2 and message in output and calls == []
    assert output.startswith(f"{script}.sh: ") and output.count("\n") == 1


def test_a_zone_that_is_forgotten_before_dry_run_does_not_make_the_run_real(cloud):
    code, output, calls = cloud("create.sh", [*PLACE[:4], "--type", "v5e-16", "--zone", "--dry-run"])
    assert code == 2 and "--zone needs a value, and --dry-run follows it" in output and calls == []


def test_bootstrap_sends_the_committed_files_to_every_slice(cloud):
    code, _, calls = cloud("bootstrap.sh", [*PLACE, "--slices", "2", "--bucket", "my-bucket"])
    assert code == 0
    assert [(words[4], words[5 if words[4] == "ssh" else 8]) for words, _ in calls] == [
        *(("scp", "gpt2-0:lmjax.tar.gz"), ("ssh", "gpt2-0")),
        *(("scp", "gpt2-1:lmjax.tar.gz"), ("ssh", "gpt2-1")),
    ]
    assert all("--worker=all" in words for words, _ in calls)
    assert "gcsfuse --implicit-dirs my-bucket" in calls[1][0][-1]
    assert not Path(calls[0][0][5]).exists(), "the archive is deleted at the end"


@pytest.mark.parametrize("script", ["bootstrap", "launch", "resume"])
def test_a_name_that_no_bucket_can_have_is_refused_before_anything_is_printed(cloud, script):
    arguments = [*PLACE, "--type", "v5e-16", "--dry-run", "--bucket", "my bucket", "--", "lmjax"]
    code, output, calls = cloud(f"{script}.sh", arguments)
    assert (code, calls) == (2, [])
    assert output == f"{script}.sh: --bucket my bucket: not the name of a bucket\n"


def remote(calls, home):
    """Carries out the command that was last sent to a host, in a home folder of its own, whose ~/bin comes first."""
    environment = os.environ | {"HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"}
    command = calls[-1][0][-1].removeprefix("--command=")
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def home(tmp_path):
    """The home folder of a host where lmjax is installed, with a folder ~/lmjax/.venv/bin for programs."""
    home = tmp_path / "home"
    (home / "lmjax" / ".venv" / "bin").mkdir(parents=True)
    (home / "lmjax" / ".installed").touch()
    return home


def waited_for(path):
    """The text of a file, as soon as there is one."""
    for _ in range(300):
        if path.exists() and path.read_text().strip():
            break
        time.sleep(0.1)
    return path.read_text().strip()


def test_launch_runs_exactly_the_given_words_on_a_host_and_notes_the_exit_code(cloud, home):
    show = f"#!{sys.executable}\nimport sys, json\nprint(json.dumps(sys.argv[1:]))\nsys.exit(3)\n"
    program(home / "lmjax" / ".venv" / "bin" / "show", show)
    words = ["--zone", "--dry-run", "a b", "$HOME", "it's", '"q"', "~/bucket/x y", "*", "; rm -rf /"]
    code, _, calls = cloud("launch.sh", [*PLACE, "--", "show", *words])
    assert code == 0
    assert remote(calls, home).returncode == 0
    assert waited_for(home / "job.exit") == "3"
    expected = [word.replace("~/", f"{home}/") if word.startswith("~/") else word for word in words]
    assert json.loads((home / "job.log").read_text()) == expected


def test_launch_refuses_a_host_without_lmjax(cloud, home):
    (home / "lmjax" / ".installed").unlink()
    _, _, calls = cloud("launch.sh", [*PLACE, "--", "true"])
    done = remote(calls, home)
    assert done.returncode == 1 and "lmjax is not installed; run bootstrap.sh" in done.stderr
    assert not (home / "job.pid").exists()


def asked(cloud):
    """What resume.sh sends to a host to ask for the job, and to stop it, each as `remote` takes it."""
    answers = [(NODE, 0, "READY"), (["--worker=0"], 0, "1"), (NODE, 0, "READY"), (["--worker=0"], 0, "0")]
    code, _, calls = cloud("resume.sh", [*PLACE, "--type", "v5e-16", "--", "a"], answers)
    ssh = [call for call in calls if call[0][4] == "ssh"]
    assert code == 0 and len(ssh) == 4
    return ssh[:1], ssh[1:2]


def test_a_job_that_runs_is_left_alone_and_stops_when_it_is_told_to(cloud, home):
    status, stop = asked(cloud)
    program(home / "lmjax" / ".venv" / "bin" / "work", '#!/bin/sh\necho $$ >> "$HOME/started"\nexec sleep 600\n')
    _, _, calls = cloud("launch.sh", [*PLACE, "--", "work"])
    assert remote(status, home).stdout == "none\n"
    assert remote(calls, home).stdout == ""
    worker = int(waited_for(home / "started"))
    assert remote(status, home).stdout == "running\n"
    assert remote(calls, home).stdout == "already running\n"
    program(home / "bin" / "sleep", "#!/bin/sh\n")  # a container may never bury the dead that `stop` waits for
    assert remote(stop, home).returncode == 0
    state = Path(f"/proc/{worker}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    assert remote(status, home).stdout == "none\n"
    assert (home / "started").read_text().count("\n") == 1


def test_a_number_that_another_process_has_now_is_not_taken_for_the_job(cloud, home):
    status, stop = asked(cloud)
    other = subprocess.Popen(["bash", "-c", "sleep 600; true", "other"], start_new_session=True)
    try:
        (home / "job.pid").write_text(f"{other.pid}\n")
        assert remote(status, home).stdout == "none\n"
        assert remote(stop, home).returncode == 0
        assert not (home / "job.pid").exists() and other.poll() is None
        (home / "job.pid").write_text(f"{other.pid}\n")
        _, _, calls = cloud("launch.sh", [*PLACE, "--", "true"])
        assert "already running" not in remote(calls, home).stdout
        assert waited_for(home / "job.exit") == "0" and other.poll() is None
    finally:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()


def test_a_host_says_what_is_there(cloud, home):
    status, _ = asked(cloud)
    (home / "lmjax" / ".installed").unlink()
    assert remote(status, home).stdout == "bare\n"
    (home / "job.exit").write_text("139\n")
    assert remote(status, home).stdout == "139\n"


@pytest.fixture
def mount(home):
    """The host's home folder with programs in ~/bin that note how they were called in ~/log."""
    note = '#!/bin/sh\necho "$(basename "$0") $*" >> "$HOME/log"\n'
    program(home / "bin" / "mountpoint", '#!/bin/sh\ntest -e "$HOME/mounted"\n')
    program(home / "bin" / "fusermount", note + "exit 1\n")
    program(home / "bin" / "curl", note + "echo the key\n")
    program(home / "bin" / "lsb_release", "#!/bin/sh\necho jammy\n")
    program(home / "gcsfuse", note + 'touch "$HOME/mounted"\n')
    put = '[ "$1" != tee ] || cat >> "$HOME/log"\n[ "$1 $7" != "apt-get gcsfuse" ] || cp "$HOME/gcsfuse" "$HOME/bin"\n'
    program(home / "bin" / "sudo", note + put)
    return home


def test_launch_mounts_the_bucket_where_it_is_not_before_the_job_begins(cloud, mount):
    shutil.copy(mount / "gcsfuse", mount / "bin")
    _, _, calls = cloud("launch.sh", [*PLACE, "--bucket", "my-bucket", "--", "test", "-e", "~/mounted"])
    assert remote(calls, mount).returncode == 0
    assert waited_for(mount / "job.exit") == "0"
    once = f"fusermount -uz {mount}/bucket\ngcsfuse --implicit-dirs my-bucket {mount}/bucket\n"
    assert (mount / "log").read_text() == once
    assert remote(calls, mount).returncode == 0
    assert (mount / "log").read_text() == once, "mounted already"


def test_gcsfuse_is_installed_from_googles_repository_where_it_is_missing(cloud, mount):
    _, _, calls = cloud("launch.sh", [*PLACE, "--bucket", "my-bucket", "--", "true"])
    done = remote(calls, mount)
    assert (done.returncode, done.stderr) == (0, "")
    key = "/usr/share/keyrings/cloud.google.asc"
    log = (mount / "log").read_text().splitlines()
    assert sorted(log[:3]) == sorted(
        ["curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg", f"sudo tee {key}", "the key"]
    )
    assert log[3:] == [
        "sudo tee /etc/apt/sources.list.d/gcsfuse.list",
        f"deb [signed-by={key}] https://packages.cloud.google.com/apt gcsfuse-jammy main",
        "sudo apt-get -qq update",
        "sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y gcsfuse",
        f"fusermount -uz {mount}/bucket",
        f"gcsfuse --implicit-dirs my-bucket {mount}/bucket",
    ]


def test_a_job_does_not_begin_without_its_bucket(cloud, mount):
    program(mount / "bin" / "gcsfuse", "#!/bin/sh\necho no access >&2\nexit 1\n")
    _, _, calls = cloud("launch.sh", [*PLACE, "--bucket", "my-bucket", "--", "true"])
    done = remote(calls, mount)
    assert done.returncode == 1 and "no access" in done.stderr and not (mount / "job.pid").exists()


def test_bootstrap_says_that_lmjax_is_installed_only_when_it_is(cloud, mount):
    shutil.copy(mount / "gcsfuse", mount / "bin")
    _, _, calls = cloud("bootstrap.sh", [*PLACE, "--bucket", "my-bucket"])
    program(mount / "bin" / "python3", '#!/bin/sh\n[ "$3" != pip ] || echo broken >&2\ntest -e "$HOME/online"\n')
    with tarfile.open(mount / "lmjax.tar.gz", "w:gz") as archive:
        archive.add(__file__, "sent")
    done = remote(calls, mount)
    assert done.returncode == 1 and not (mount / "lmjax" / ".installed").exists()
    (mount / "online").touch()
    done = remote(calls, mount)
    assert done.returncode == 0 and (mount / "lmjax" / ".installed").exists()
    assert (mount / "lmjax" / "sent").exists() and (mount / "mounted").exists()


def test_resume_makes_preempted_slices_anew_and_starts_the_job_again_until_it_ends_well(cloud):
    answers = [
        (NODE, 0, "READY"),
        (["--worker=0"], 0, "139"),  # it crashed
        (NODE, 0, "READY"),
        (["--worker=0"], 0, "running"),
        (NODE, 0, "PREEMPTED"),
        *((QUEUE, 0, "SUSPENDED"), (NODE, *ABSENT)),  # seen by delete.sh
        *NOTHING,  # by create.sh
        (QUEUE, 0, "ACTIVE"),
        (NODE, 0, "READY"),
        (["--worker=0"], 0, "0"),
    ]
    options = ["--type", "v5e-16", "--provision", "queued-spot"]
    code, output, calls = cloud("resume.sh", [*PLACE, *options, "--", "lmjax", "run", "gpt2"], answers)
    assert code == 0 and "the job is done" in output
    done = [(words[3], words[4]) for words, _ in calls if words[4] != "describe" and "--worker=0" not in words]
    stop, start = ("tpu-vm", "ssh"), ("tpu-vm", "ssh")
    remade = [
        *(("queued-resources", "delete"), ("queued-resources", "create")),
        *(("tpu-vm", "scp"), ("tpu-vm", "ssh"), start),
    ]
    assert done == [stop, start, *remade]


JOB, ALL = ["--worker=0"], ["ssh", "--worker=all"]
READY, DONE = (NODE, 0, "READY"), [(NODE, 0, "READY"), (["--worker=0"], 0, "0")]
REMADE = ["queued-resources create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]  # created, bootstrapped, launched
START = ["tpu-vm ssh", "tpu-vm ssh"]  # stopped, launched


@pytest.fixture
def resume(cloud):
    """A function (answers, *options) -> (exit code, output, what was done besides looking)."""

    def call(answers, *options):
        arguments = [*PLACE, "--type", "v5e-16", "--attempts", "2", *options, "--", "lmjax", "run", "gpt2"]
        code, output, calls = cloud("resume.sh", arguments, answers)
        return code, output, deeds([call for call in calls if "--worker=0" not in call[0]])

    return call


def test_resume_looks_again_when_a_slice_is_taken_away_before_the_job_is_asked_for(resume):
    answers = [READY, *[(JOB, 255, "timed out")] * 2, (NODE, 0, "PREEMPTED"), *NOTHING, *NOTHING, (QUEUE, 0, "ACTIVE")]
    code, output, done = resume([*answers, *DONE])
    assert code == 0 and "the job is done" in output and done == REMADE


@pytest.mark.parametrize("succeeded", [0, 1])
def test_resume_looks_again_when_a_slice_is_taken_away_before_the_job_is_stopped_or_launched(resume, succeeded):
    answers = [READY, (JOB, 0, "139"), *[(ALL, 0, "")] * succeeded, *[(ALL, 255, "timed out")] * 2]
    remade = [(NODE, 0, "PREEMPTED"), *NOTHING, *NOTHING, (QUEUE, 0, "ACTIVE")]
    code, output, done = resume([*answers, *remade, *DONE])
    assert code == 0 and "the job is done" in output
    assert f"gpt2: {['stop', 'launch'][succeeded]} failed; looking at its state again" in output
    assert done == [*["tpu-vm ssh"] * (succeeded + 2), *REMADE]


def test_resume_installs_again_and_starts_all_hosts_when_a_launch_failed_on_some(resume):
    answers = [
        READY,
        (JOB, 0, "none"),
        (ALL, 0, ""),
        *[(ALL, 1, "lmjax is not installed")] * 2,
        READY,
        (JOB, 0, "running"),
    ]
    code, _, done = resume([*answers, *DONE])
    bootstrap = ["tpu-vm scp", "tpu-vm ssh"]
    assert code == 0 and done == [*START, "tpu-vm ssh", "tpu-vm ssh", *bootstrap, "tpu-vm ssh"]


def test_resume_bootstraps_a_slice_that_never_was(resume):
    code, output, done = resume([READY, (JOB, 0, "bare"), *DONE])
    assert code == 0 and "without lmjax" in output and done == ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_resume_asks_once_more_for_slices_that_could_not_be_had(resume, state):
    preempted = [(NODE, 0, "PREEMPTED"), *NOTHING, *NOTHING, (QUEUE, 0, state)]
    again = [(NODE, *ABSENT), (QUEUE, 0, state), (NODE, *ABSENT), *NOTHING, (QUEUE, 0, "ACTIVE")]
    code, output, done = resume([*preempted, *again, *DONE])
    assert code == 0 and f"gpt2 is {state}" in output and "gpt2: create failed" in output
    assert done == ["queued-resources create", "queued-resources delete", *REMADE]


def test_resume_gives_up_after_as_many_restarts_as_it_may(resume):
    answers = [READY, (JOB, 0, "1")] * 9
    code, output, done = resume(answers, "--max-restarts", "2")
    assert code == 1 and "gave up after 2 restarts" in output and done == START * 3
    code, output, done = resume([READY, *[(JOB, 255, "timed out")] * 2] * 9, "--max-restarts", "2")
    assert code == 1 and "gave up after 2 restarts" in output and done == []


def test_resume_bears_with_a_cloud_that_does_not_answer_unless_it_never_did(resume):
    denied = (NODE, 1, "ERROR: PERMISSION_DENIED")
    code, output, done = resume([denied] * 3)
    assert code == 1 and output.count("PERMISSION_DENIED") == 1 and done == []
    code, output, done = resume([READY, (JOB, 0, "running"), denied, *DONE])
    assert code == 0 and "PERMISSION_DENIED" in output and "the job is done" in output and done == []


def test_resume_names_a_mistake_before_it_looks(cloud):
    for arguments, message in ((PLACE, "--type is missing"), ([*PLACE, "--type", "v9-8"], "expected v4-N")):
        code, output, calls = cloud("resume.sh", [*arguments, "--", "lmjax"])
        assert code == 2 and message in output and calls == []


def test_resume_gives_up_on_a_command_that_is_wrong(cloud):
    answers = [(["describe"], 0, "READY"), (["--worker=0"], 0, "2")]
    code, output, _ = cloud("resume.sh", [*PLACE, "--type", "v4-8", "--", "lmjax", "run", "gpt9"], answers)
    assert code == 1 and "exit code 2" in output


def test_delete_of_what_is_not_there_does_nothing(cloud):
    code, output, calls = cloud("delete.sh", PLACE, NOTHING)
    assert code == 0 and "does not exist" in output and verbs(calls) == ["describe", "describe"]


@pytest.mark.parametrize("provision", [[], ["--provision", "spot"], ["--provision", "queued"]])
@pytest.mark.parametrize(
    ("answers", "deleted"),
    [
        ([(QUEUE, *ABSENT), (NODE, 0, "READY")], ["tpu-vm delete"]),
        ([(QUEUE, 0, "ACTIVE"), (NODE, *ABSENT)], ["queued-resources delete"]),
        ([(QUEUE, 0, "FAILED"), (NODE, 0, "READY")], ["queued-resources delete", "tpu-vm delete"]),
        ([(QUEUE, 0, "ACTIVE"), (NODE, 0, "DELETING")], ["queued-resources delete"]),
    ],
)
def test_delete_takes_away_whatever_bears_the_name(cloud, provision, answers, deleted):
    code, output, calls = cloud("delete.sh", [*PLACE, *provision], answers)
    assert code == 0 and deeds(calls) == deleted and "does not exist" not in output
    assert all("gpt2" in words and "--quiet" in words for words, _ in calls if words[4] == "delete")


def test_a_dry_run_of_delete_names_both_kinds(cloud):
    code, output, calls = cloud("delete.sh", [*PLACE, "--dry-run"])
    assert code == 0 and calls == []
    assert [line.split()[3:5] for line in output.splitlines()] == [["queued-resources", "delete"], ["tpu-vm", "delete"]]


@pytest.mark.parametrize("script", ["create", "bootstrap", "launch", "watch", "resume", "delete"])
def test_a_dry_run_prints_the_commands_and_calls_nothing(cloud, script):
    options = ["--type", "v5e-16", "--dry-run", "--", "lmjax", "run", "gpt2"]
    code, output, calls = cloud(f"{script}.sh", [*PLACE, *options])
    assert code == 0 and calls == []
    assert "gcloud compute tpus" in output and "--zone=us-west4-a" in output


def test_a_job_set_has_one_pod_per_host_and_the_command_word_for_word(cloud):
    yaml = pytest.importorskip("yaml")
    words = ["lmjax", "run", "gpt2", "--name", 'a "b" \\ c', "*"]
    code, _, calls = cloud("gke.sh", [*GKE, "--slices", "3", "--spot", "--", *words])
    assert code == 0 and [call for call, _ in calls] == [["kubectl", "apply", "-f", "-"]]
    manifest = yaml.safe_load(calls[0][1])
    job = manifest["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (3, 4)
    assert pod["containers"][0]["command"] == words
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert "@" not in calls[0][1]


def test_every_line_of_a_sweep_becomes_a_job_set(cloud, tmp_path):
    yaml = pytest.importorskip("yaml")
    sweep = tmp_path / "sweep"
    sweep.write_text(
        "# sizes\nlmjax run gpt2:124m --workdir /bucket/small\n\nlmjax run gpt2:355m --workdir '/bucket/a b'"
    )
    code, _, calls = cloud("gke.sh", [*GKE, "--sweep", str(sweep)])
    assert code == 0
    manifests = [yaml.safe_load(stdin) for _, stdin in calls]
    assert [manifest["metadata"]["name"] for manifest in manifests] == ["gpt2-0", "gpt2-1"]
    pods = [m["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"] for m in manifests]
    assert pods[1]["containers"][0]["command"] == ["lmjax", "run", "gpt2:355m", "--workdir", "/bucket/a b"]


def commands(calls):
    """The command of each JobSet that kubectl was sent."""
    yaml = pytest.importorskip("yaml")
    jobs = [yaml.safe_load(stdin)["spec"]["replicatedJobs"][0] for _, stdin in calls]
    return [job["template"]["spec"]["template"]["spec"]["containers"][0]["command"] for job in jobs]


def test_the_words_of_a_sweep_are_what_a_shell_would_make_of_them(cloud, tmp_path):
    (tmp_path / "sweep").write_bytes(
        b"lmjax run --name ''\r\n\t # a comment, isn't it\r\n   \r\n  lmjax 'a \"b\"' \"it's\" c\\ d $HOME `id` '' *"
    )
    code, _, calls = cloud("gke.sh", [*GKE, "--sweep", str(tmp_path / "sweep")])
    assert code == 0
    assert commands(calls) == [
        ["lmjax", "run", "--name", ""],
        ["lmjax", 'a "b"', "it's", "c d", "$HOME", "`id`", "", "*"],
    ]


def test_a_sweep_with_a_bad_line_submits_nothing(cloud, tmp_path):
    sweep = tmp_path / "sweep"
    sweep.write_text("lmjax run gpt2\n\nlmjax run 'gpt2\n")
    code, output, calls = cloud("gke.sh", [*GKE, "--sweep", str(sweep)])
    assert code == 2 and calls == []
    assert f"--sweep {sweep}, line 3: cannot be split into words" in output and output.endswith("lmjax run 'gpt2\n")


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_a_sweep_without_a_command_is_refused(cloud, tmp_path, text):
    (tmp_path / "sweep").write_text(text)
    code, output, calls = cloud("gke.sh", [*GKE, "--sweep", str(tmp_path / "sweep")])
    assert code == 2 and "holds no command" in output and calls == []


def test_a_dry_run_pasted_into_a_shell_does_what_the_real_run_does(cloud, tmp_path):
    words = ["lmjax", "run", "`touch pwned`", "$HOME", "$(id)", "a 'b'", '"c"', "d\\e", "", "f\ng", "EOF"]
    _, _, real = cloud("gke.sh", [*GKE, "--spot", "--", *words])
    code, printed, calls = cloud("gke.sh", [*GKE, "--spot", "--dry-run", "--", *words])
    assert code == 0 and calls == []
    code, output, pasted = cloud(None, ["-c", printed])
    assert (code, output) == (0, "")
    assert pasted == real and commands(pasted) == [words]


def test_job_sets_are_deleted_by_name(cloud, tmp_path):
    def deleted(calls):
        assert all(
            words[:3] == ["kubectl", "delete", "jobset"] and words[4:] == ["--ignore-not-found"] for words, _ in calls
        )
        return [words[3] for words, _ in calls]

    code, _, calls = cloud("gke.sh", ["--name", "gpt2", "--delete"])
    assert code == 0 and deleted(calls) == ["gpt2"]
    (tmp_path / "sweep").write_text("lmjax run a\n# no\nlmjax run b\n")
    arguments = ["--name", "gpt2", "--sweep", str(tmp_path / "sweep"), "--delete"]
    code, _, calls = cloud("gke.sh", arguments)
    assert code == 0 and deleted(calls) == ["gpt2-0", "gpt2-1"]
    code, output, calls = cloud("gke.sh", [*arguments, "--dry-run"])
    assert code == 0 and calls == []
    assert [line.split() for line in output.splitlines()] == [
        ["kubectl", "delete", "jobset", name, "--ignore-not-found"] for name in ("gpt2-0", "gpt2-1")
    ]


@pytest.mark.parametrize(
    ("verb", "arguments"), [("apply", [*GKE, "--", "lmjax"]), ("delete", ["--name", "gpt2", "--delete"])]
)
def test_kubectl_is_tried_again_and_its_failure_is_named(cloud, verb, arguments):
    refused = ([verb], 1, "the server is busy")
    code, _, calls = cloud("gke.sh", arguments, [refused])
    assert code == 0 and [words[1] for words, _ in calls] == [verb, verb] and calls[0] == calls[1]
    code, output, calls = cloud("gke.sh", ["--attempts", "2", *arguments], [refused] * 3)
    assert code == 1 and len(calls) == 2
    assert f"gke.sh: failed 2 times: kubectl {verb}" in output and "gpt2" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--topology", "4x4x4"], "two axes"),
        (["--type", "v5p"], "three axes"),
        (["--type", "v5p", "--topology", "1x1x6"], "not whole hosts"),
        (["--topology", "big"], "expected AxB"),
        (["--type", "v9"], "expected v4"),
        (["--image", "a b"], "expected an image"),
        (["--sweep", "/nowhere"], "no such file"),
        (["--sweep", "/"], "--sweep /: a folder"),
        (["--restarts", "-1"], "expected a whole number"),
    ],
)
def test_a_job_set_that_cannot_be_is_refused_before_anything_is_called(cloud, changes, message):
    code, output, calls = cloud("gke.sh", [*GKE, *changes, *([] if "--sweep" in changes else ["--", "lmjax"])])
    assert code == 2 and message in output and calls == []


def test_the_image_takes_nothing_that_git_does_not_keep():
    root = SCRIPTS.parent
    left_out = set((root / ".dockerignore").read_text().splitlines())
    ignored = [line.rstrip("/") for line in (root / ".gitignore").read_text().splitlines()]
    # Git means any folder where no / leads; Docker says so with **/.
    assert {line[1:] if line.startswith("/") else f"**/{line}" for line in ignored} <= left_out
    assert ".git" in left_out


def test_the_commands_of_the_readme_are_understood(cloud):
    """Every tpu_setup/ command, as it stands there, with --dry-run before its first option."""
    blocks = (SCRIPTS / "README.md").read_text().split("```")[1::2]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    wanted = [line for line in lines if line.startswith(("slice=", "tpu_setup/"))]
    script = "\n".join(line.replace(".sh ", ".sh --dry-run ", 1) for line in wanted)
    code, output, calls = cloud(None, ["-c", f"set -e; cd '{SCRIPTS.parent}'\n{script}"])
    assert (code, calls) == (0, []), output
    assert len(wanted) == 8 and output.count("gcloud compute tpus") >= 8
