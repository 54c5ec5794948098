"""Whatever moment a run is killed at, it ends bit for bit where it would have ended."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("kills", "while_saving"), [(2, 1), pytest.param(10, 2, marks=pytest.mark.slow)])
def test_a_run_killed_several_times_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path, kills, while_saving):
    script = Path(__file__).with_name("kill_and_resume.py")
    environment = os.environ | {
        "XLA_FLAGS": "",  # one device
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(script), "--kills", str(kills), "--seed", "1", "--folder", str(tmp_path / "runs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("the same end, bit for bit\n")
    moments = [(int(count), moment) for count, moment in re.findall(r"^ *(\d+) killed (.+)$", done.stdout, re.M)]
    assert sum(count for count, _ in moments) == kills
    saving = sum(count for count, moment in moments if "while saving" in moment)
    assert saving >= while_saving, "some of them while saving"
    noise = [line for line in done.stderr.splitlines() if "Waiting for previous save" not in line]  # of a slow disk
    assert noise == []
