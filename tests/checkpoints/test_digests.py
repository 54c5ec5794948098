"""Every file of a checkpoint has a digest: damage that the storage does not notice is never restored in silence."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from lmjax.checkpoints.checkpoint import Checkpoint, Checkpointer, find_checkpoint
from lmjax.checkpoints.digests import DamagedCheckpointError, verify
from lmjax.errors import UserError
from lmjax.optim.train_state import TrainState
from lmjax.settings import CheckpointSettings

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "benchmarks" / "checkpoint_damage.py"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    BENCHMARK["save"](folder, {step: BENCHMARK["small_state"](step) for step in (1, 2)})
    return folder


@pytest.fixture
def saved(made, tmp_path):
    """A stage's folder with the steps 1 and 2."""
    return Path(shutil.copytree(made, tmp_path / "stage"))


def abstract(step=2):
    return BENCHMARK["_abstract"](BENCHMARK["small_state"](step))


def resumed(folder, reports):
    settings = CheckpointSettings(keep_last=2, keep_best=1)
    with Checkpointer(folder, settings, recipe_json="{}", tokenizer_folder=None, report=reports.append) as opened:
        return opened.restore(TrainState(**abstract()))


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 8
    path.write_bytes(bytes(content))


def without_digests(folder):
    """The checkpoint as an older version wrote it."""
    (folder / "digests.json").unlink()
    extras = folder / "extras" / "metadata"
    extras.write_text(json.dumps({k: v for k, v in json.loads(extras.read_text()).items() if k != "digests"}))


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_every_file_but_those_that_note_times_has_a_digest(saved):
    kept = json.loads((saved / "2" / "digests.json").read_text())
    apart = {"digests.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert kept["step"] == 2 and kept["files"].keys() == {str(p) for p in files_of(saved / "2")} - apart
    assert sum(file["bytes"] for file in kept["files"].values()) > 3 * 48 * 32 * 4


def test_a_flipped_bit_in_any_file_is_noticed_and_named(saved):
    for name in json.loads((saved / "2" / "digests.json").read_text())["files"]:
        flip(saved / "2" / name)
        with pytest.raises(DamagedCheckpointError, match=r"the bytes of .* are not those that were saved") as error:
            Checkpoint(saved / "2").restore(abstract())
        assert name in str(error.value)
        flip(saved / "2" / name)
    Checkpoint(saved / "2").restore(abstract())


def test_a_flipped_bit_makes_a_run_resume_from_the_step_before_and_load_refuse(saved):
    largest = max((saved / "2" / "state").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    flip(largest, 9_000)
    with pytest.raises(DamagedCheckpointError, match=largest.name):
        find_checkpoint(saved).restore(abstract())
    reports = []
    assert int(resumed(saved, reports).step) == 1
    assert len(reports) == 1 and largest.name in reports[0] and reports[0].endswith("trying the one before it")
    assert (saved / "2.damaged").is_dir()


@pytest.mark.parametrize(("cases", "seed"), [(100, 5), pytest.param(4_000, 6, marks=pytest.mark.slow)])
def test_no_damage_is_silent(tmp_path, cases, seed):
    outcomes = BENCHMARK["outcomes_of"](cases, tmp_path / "stage", seed)
    assert sum(outcomes.values()) == cases
    assert [kind for kind, seen in outcomes if seen == "silent"] == []
    noticed = sum(count for (_, seen), count in outcomes.items() if seen == "noticed")
    assert noticed > 0.85 * cases  # the others are in the two files that note times


def test_a_step_under_the_name_of_another_is_noticed(saved):
    (saved / "1").rename(saved / "3")
    with pytest.raises(UserError, match="3 is damaged: it was saved as step 1"):
        find_checkpoint(saved).extras()


def test_a_copy_under_another_name_is_read_and_knows_its_step(saved):
    copy = shutil.copytree(saved / "2", saved.parent / "best")
    assert find_checkpoint(copy).step == 2
    restored = find_checkpoint(copy).restore(abstract())
    assert np.array_equal(restored["params"]["a"], BENCHMARK["small_state"](2).params["a"])


def test_digests_that_are_gone_are_damage_and_those_that_never_were_a_line(saved, capsys):
    kept = (saved / "2" / "digests.json").read_bytes()
    (saved / "2" / "digests.json").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"written with digests\.json, which is missing"):
        Checkpoint(saved / "2").restore(abstract())
    (saved / "2" / "digests.json").write_bytes(kept)
    without_digests(saved / "2")
    for _ in range(2):  # said once
        old = Checkpoint(saved / "2").restore(abstract())
    assert np.array_equal(old["params"]["b"], BENCHMARK["small_state"](2).params["b"])
    said = capsys.readouterr().err
    assert said == f"{saved / '2'}: written by an older lmjax without digests; it is read, but cannot be verified\n"
    reports = []
    assert int(resumed(saved, reports).step) == 2 and "cannot be verified" in reports[0]


@pytest.mark.parametrize("lost", ["state", "extras"])
def test_a_part_that_is_missing_is_damage_and_not_an_older_checkpoint(saved, lost):
    shutil.rmtree(saved / "2" / lost)
    assert find_checkpoint(saved).step == 2
    with pytest.raises(DamagedCheckpointError, match=f"'{lost}/.*' is missing"):
        find_checkpoint(saved).restore(abstract())
    with pytest.raises(UserError, match=f"'{lost}/.*' is missing; name an older step's folder"):
        find_checkpoint(saved).extras()


def test_metrics_of_an_older_version_that_a_crash_left_empty_set_their_step_aside(saved):
    without_digests(saved / "2")
    (saved / "evaluations.json").unlink()
    (saved / "2" / "metrics").mkdir()
    (saved / "2" / "metrics" / "metrics").write_bytes(b"")
    reports = []
    assert int(resumed(saved, reports).step) == 1
    assert len(reports) == 1 and "metrics/metrics" in reports[0] and "it is set aside" in reports[0]
    assert (saved / "2.damaged").is_dir()


def test_a_share_of_the_files_is_read_by_each_process(saved):
    names = json.loads((saved / "2" / "digests.json").read_text())["files"]
    for name in names:
        flip(saved / "2" / name)
        found = 0
        for process in range(3):
            try:
                verify(saved / "2", share=(process, 3))
            except DamagedCheckpointError as error:
                found += name in str(error)
        assert found == 1, name
        flip(saved / "2" / name)


def test_an_unreadable_digest_cannot_be_committed(tmp_path, monkeypatch):
    """The digests are written before the checkpoint is visible: where they cannot be, there is no checkpoint."""

    def fail(folder, step):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lmjax.checkpoints.checkpoint.write_digests", fail)
    with pytest.raises(UserError, match="the disk is full"):
        BENCHMARK["save"](tmp_path, {1: BENCHMARK["small_state"](1)})
    assert [path for path in tmp_path.iterdir() if path.name.isdigit()] == []


def test_a_damaged_tokenizer_of_an_old_checkpoint_is_an_error(tmp_path, saved):
    without_digests(saved / "2")
    extras = saved / "2" / "extras" / "metadata"
    for tokenizer, message in (({"a.json": "%%%"}, "'a.json' is damaged"), ({"../a": "YQ=="}, "nothing outside")):
        extras.write_text(json.dumps(json.loads(extras.read_text()) | {"tokenizer": tokenizer}))
        with pytest.raises(UserError, match=message):
            Checkpoint(saved / "2").unpack_tokenizer(tmp_path / "out")
