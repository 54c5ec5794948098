"""What bootstrap.sh, launch.sh and resume.sh send to the hosts of a slice, carried out in a home folder here."""

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

from .conftest import NODE, PLACE


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
