"""A workdir belongs to one run at a time and to one recipe for all its runs."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

import lmjax
from lmjax.errors import UserError
from lmjax.files import read_json_if_there as read_json
from lmjax.files import write_whole
from lmjax.run_files import ANSWERED_FILE, PROVENANCE_FILE, RECIPE_FILE, SUMMARY_FILE
from lmjax.runs.provenance import claim_provenance
from lmjax.runs.workdir import claim, environment, locked
from lmjax.settings import SFT, Pretrain, TrainSettings
from lmjax.settings.recipe_files import from_json
from lmjax.stages.compare import _Answered


def test_a_workdir_is_made_with_its_parents_and_holds_the_recipe(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder):
        claim(folder, Pretrain(), force=False)
    assert from_json((folder / RECIPE_FILE).read_text()) == Pretrain()


def test_two_runs_cannot_share_a_workdir(tmp_path):
    with locked(tmp_path):
        message = r"another run is using it; wait for it, or choose another --workdir"
        with pytest.raises(UserError, match=message), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path):
    body = (
        "import sys, time; from pathlib import Path; from lmjax.runs.workdir import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('locked', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match="another run"), locked(tmp_path):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    with locked(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"file/run: cannot be written: .*; choose another --workdir"
    with pytest.raises(UserError, match=message), locked(tmp_path / "file" / "run"):
        pass


def test_a_changed_recipe_is_refused_field_by_field_unless_forced(tmp_path):
    old = Pretrain(name="one")
    new = dataclasses.replace(old, train=TrainSettings(steps=7, seed=3))
    claim(tmp_path, old, force=False)
    claim(tmp_path, old, force=False)
    (tmp_path / "checkpoints" / "pretrain" / "5").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        claim(tmp_path, new, force=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path}: its recipe differs from this one in"
    assert sorted(lines[1:3]) == ["  train.seed: 0 -> 3", "  train.steps: 1000 -> 7"]
    assert lines[3].endswith("choose another --workdir, or resume with the new recipe by --force")
    assert from_json((tmp_path / RECIPE_FILE).read_text()) == old
    claim(tmp_path, new, force=True)
    assert from_json((tmp_path / RECIPE_FILE).read_text()) == new


def test_a_recipe_that_cannot_be_read_is_an_error_unless_forced(tmp_path):
    path = tmp_path / RECIPE_FILE
    (tmp_path / "checkpoints" / "pretrain" / "5").mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(UserError, match=rf"{path}:1: expected JSON"):
        claim(tmp_path, Pretrain(), force=False)
    path.write_text(json.dumps({"stage": "pretrain", "tarin": {}}))
    with pytest.raises(UserError, match=rf"{path}: unknown field 'tarin'; did you mean 'train'"):
        claim(tmp_path, Pretrain(), force=False)
    claim(tmp_path, Pretrain(), force=True)
    assert from_json(path.read_text()) == Pretrain()


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_whole(path, '{"steps": 1}')

    def die(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, '{"steps": 2}')
    monkeypatch.undo()
    assert read_json(path) == {"steps": 1}
    write_whole(path, '{"steps": 3}')
    assert read_json(path) == {"steps": 3}
    assert read_json(tmp_path / "none.json") is None


def test_the_environment_names_versions_and_devices():
    known = environment()
    assert known["lmjax"] == lmjax.__version__
    assert known["devices"] == "8 x cpu"
    assert known["cores"] == str(os.cpu_count())
    assert known["jax"].count(".") >= 2 and known["python"].startswith("3.")


def test_the_files_that_a_run_reads_again_are_named_when_a_crash_left_them_empty(tmp_path):
    (tmp_path / SUMMARY_FILE).write_text("{}")  # something has been done: the recipe binds
    for name, read in (
        (RECIPE_FILE, lambda: claim(tmp_path, Pretrain(), force=False)),
        (PROVENANCE_FILE, lambda: claim_provenance(SFT(start="base"), tmp_path, force=False)),
        (ANSWERED_FILE, lambda: _Answered(tmp_path / ANSWERED_FILE)),
    ):
        (tmp_path / name).write_text("\n")
        with pytest.raises(UserError, match=rf"{tmp_path / name}:\d: .*(JSON|restore|delete)"):
            read()
        (tmp_path / name).unlink()


def test_a_written_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append("flushed"), fsync(file)))
    monkeypatch.setattr(type(tmp_path), "replace", lambda self, to: (order.append("named"), replace(self, to))[1])
    claim(tmp_path, Pretrain(), force=False)
    assert order == ["flushed", "named"]
