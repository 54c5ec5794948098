"""Fakes of what the cloud scripts call, such as `gcloud`: they note each call and answer as they are told to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "tpu_setup"
PLACE = ["--name", "gpt2", "--project", "my-project", "--zone", "us-west4-a"]

# Notes each call with its standard input, or the YAML file that it names; answers from `answers`, a JSON list of
# [words of the call, exit code, output] whose first match is used up, or with nothing and exit code 0.
FAKE = f"""#!{sys.executable}
import json, os, sys
folder = os.environ["FAKE_CLOUD"]
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
stdin = "" if sys.stdin.isatty() or call[0] == "gcloud" else sys.stdin.read()
for word in sys.argv[1:]:
    if word.endswith(".yaml"):
        stdin = open(word).read()
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
    for name in ("gcloud", "kubectl", "sbatch", "scontrol", "sky"):
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
