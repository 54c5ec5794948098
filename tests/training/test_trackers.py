"""Services are told what the record holds, offline and for real where their packages are; absent ones are named."""

import importlib.machinery
import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
import types

import pytest

from lmjax.errors import UserError
from lmjax.runs.run import run
from lmjax.settings import LogSettings
from lmjax.training.record import read_metrics
from lmjax.training.trackers import ID_FILE, require_trackers
from tests.running import on_devices, without_charts
from tests.tiny import pretrain, text, write_recipe

TRACK = "pip install 'lmjax[track]' to test it"
wandb_is_there = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason=f"wandb is absent; {TRACK}")
trackio_is_there = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason=f"trackio is absent; {TRACK}")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    on_devices(monkeypatch)
    without_charts(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the mat\nand ran to the sea\n" * 40)

    def make(steps, *trackers):
        log = LogSettings(every=1, tensorboard=False, trackers=trackers)
        return pretrain(text("text.txt"), log=log, train__steps=steps, optimizer__schedule__kind="constant")

    return make


def losses(folder):
    return {line["step"]: line["loss"] for line in read_metrics(folder) if "loss" in line}


def trained(recipe, folder, tracker, **variables):
    """Two runs of one workdir, the second of which resumes, each a process: services read variables when imported."""
    for steps in (2, 4):
        spec = write_recipe(folder / "mine.py", recipe(steps, tracker))
        command = [sys.executable, "-m", "lmjax.cli", "run", str(spec), "--workdir", "w", "--force"]
        environment = os.environ | variables | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": ""}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(losses(folder / "w")) == [1, 2, 3, 4]
    return losses(folder / "w"), json.loads((folder / "w" / ID_FILE).read_text())["id"]


def chunks(data):
    """The records of a file of Weights & Biases: LevelDB's log, in blocks of 32 KiB, behind seven bytes of its own."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if 32_768 - place % 32_768 < 7:
            place += 32_768 - place % 32_768
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole one, or the last part of one
            yield record
            record = b""


@wandb_is_there
def test_weights_and_biases_has_the_record_offline_and_the_resumed_run_is_the_same_one(recipe, tmp_path):
    from wandb.proto import wandb_internal_pb2

    wanted, own = trained(recipe, tmp_path, "wandb", WANDB_MODE="offline")
    told, ids = {}, set()
    files = sorted((tmp_path / "w/wandb").glob("offline-run-*/run-*.wandb"))
    for data in (chunk for file in files for chunk in chunks(file.read_bytes())):
        record = wandb_internal_pb2.Record.FromString(data)
        ids |= {record.run.run_id} if record.HasField("run") else set()
        items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        told |= {items["_step"]: items["loss"]} if "loss" in items else {}
    assert told == wanted and ids == {own}


@trackio_is_there
def test_trackio_has_the_record_in_its_folder_and_the_resumed_run_is_the_same_one(recipe, tmp_path):
    wanted, own = trained(recipe, tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio/lmjax.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in rows} == {f"tiny-{own}"}
    assert {step: json.loads(values)["loss"] for _, step, values in rows if "loss" in json.loads(values)} == wanted


def test_a_package_that_is_not_there_is_named_before_anything_is_trained(recipe, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    with pytest.raises(UserError, match=r"log.trackers = 'wandb': expected the package wandb; install it: pip install"):
        run(recipe(2, "wandb"), "w", quiet=True)
    assert sorted(path.name for path in (tmp_path / "w").iterdir()) == [".lock"]
    require_trackers(())


def test_what_a_service_refuses_is_a_mistake_of_the_users(recipe, monkeypatch):
    def refuse(**_):
        raise RuntimeError("no login")

    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.Settings, fake.init = dict, refuse
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError, match=r"log.trackers: wandb cannot begin: no login; log in .*WANDB_MODE=offline"):
        run(recipe(2, "wandb"), "w", quiet=True)
