"""A workdir on a bucket: what is killed goes on anywhere to the same bits, nothing is lost, and one run has it."""

import os
import subprocess
import sys
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

import lmjax
from lmjax import bucket as buckets
from lmjax.bucket import folder_here, located, remote_of
from lmjax.checkpoints.checkpoint import Checkpoint
from lmjax.checkpoints.remote_workdir import mirror, staged
from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.settings import CheckpointSettings, DialogueSourceSettings, MeasureSettings, Pipeline
from lmjax.settings.recipe_files import to_json
from lmjax.training.record import read_metrics
from tests.running import assert_same_bits
from tests.tiny import sft, write_rows

URL = "gs://bucket/runs/one"
KEPT = ("step", "loss", "grad_norm", "learning_rate", "epochs", "validation_loss")  # of a line: no times
CHECKPOINTS = "runs/one/checkpoints/pretrain"

pytestmark = pytest.mark.xdist_group("bucket")  # one process has the server


def copied(bucket, prefix, folder):
    """The objects below the prefix as files of this machine."""
    for name, stored in bucket.items():
        if name.startswith(f"{prefix}/"):
            path = folder / name[len(prefix) + 1 :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stored.data)
    return folder


def state(folder):
    """All arrays of a checkpoint."""
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder / "state")


def ran(recipe, workdir=URL, **options):
    result = lmjax.run(recipe, workdir, quiet=True, **options)
    assert result.exit_code == 0
    return result


# A checkpoint is being written as one after it is; or it is not yet; or it is the last.
@pytest.mark.parametrize("line", [5, pytest.param(4, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_from_an_empty_machine_to_the_same_bits(
    bucket, another_machine, tiny, here, tmp_path, line
):
    (tmp_path / "recipe.json").write_text(to_json(tiny()))
    script = [sys.executable, str(Path(__file__).with_name("kill.py")), str(tmp_path / "recipe.json"), URL, str(line)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[2]), *sys.path))}
    killed = subprocess.run(script, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert killed.returncode == -9, killed.stderr[-3000:]
    assert "runs/one/recipe.json" in bucket and "runs/one/summary.json" not in bucket
    assert list(tmp_path.iterdir()) == [tmp_path / "recipe.json"]  # above all no folder `gs:`

    another_machine()
    result = ran(tiny())
    assert str(result.workdir) == URL
    for step in (4, 6):
        copy = copied(bucket, f"{CHECKPOINTS}/{step}", tmp_path / "copy" / str(step))
        assert_same_bits(state(copy), state(here / f"checkpoints/pretrain/{step}"))
    own, expected = (
        [{name: line[name] for name in line if name in KEPT} for line in read_metrics(folder)]
        for folder in (copied(bucket, "runs/one", tmp_path / "mirrored"), here)
    )
    assert own == expected and [line["step"] for line in own if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {"report.html", "loss.png", "summary.json"} <= {path.name for path in (tmp_path / "mirrored").iterdir()}

    another_machine()
    loaded, local = lmjax.load(URL), lmjax.load(here)
    assert_same_bits(loaded.params, local.params)
    assert_same_bits(lmjax.load(tmp_path / "copy" / "6").params, local.params)
    before = {name: stored.generation for name, stored in bucket.items() if "/checkpoints/" in name}
    assert ran(tiny()).summary["steps"] == 6  # it is done
    assert before == {name: stored.generation for name, stored in bucket.items() if "/checkpoints/" in name}


def test_commands_read_it(finished, capsys):
    assert main(["generate", URL, "--prompt", "the", "--max-tokens", "4", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("the")
    with pytest.raises(UserError, match="expected a path of this machine"):
        lmjax.load("s3://bucket/runs/one")


def test_damage_on_the_bucket_is_noticed(finished, storage):
    largest = max(
        (name for name in finished if f"{CHECKPOINTS}/6/state" in name), key=lambda name: len(finished[name].data)
    )
    data = bytearray(finished[largest].data)
    data[len(data) // 2] ^= 1
    storage.put("bucket", largest, bytes(data))
    with pytest.raises(UserError, match=rf"{URL}/.*/6 is damaged: the bytes of state/.* are not those that were saved"):
        lmjax.load(f"{URL}/checkpoints/pretrain/6")
    assert Checkpoint(located(f"{URL}/checkpoints/pretrain/4")).extras()["recipe"]
    del finished[next(name for name in finished if f"{CHECKPOINTS}/4/state" in name)]
    with pytest.raises(UserError, match=r"/4 is damaged: 'state/.*' is missing"):
        lmjax.load(f"{URL}/checkpoints/pretrain/4")


def test_a_damaged_checkpoint_is_set_aside_and_its_steps_are_run_again(finished, storage, tiny, another_machine):
    bucket = finished
    whole = lmjax.load(URL).params
    name = next(name for name in bucket if f"{CHECKPOINTS}/6/state/d/" in name)
    storage.put("bucket", name, bytes(len(bucket[name].data)))
    del bucket["runs/one/summary.json"]
    another_machine()
    ran(tiny())
    assert_same_bits(lmjax.load(URL).params, whole)
    assert any(name.startswith(f"{CHECKPOINTS}/6.damaged/state") for name in bucket)


def test_what_was_not_written_whole_is_no_checkpoint(finished):
    for name in [name for name in finished if name.startswith(f"{CHECKPOINTS}/6/") and "state" not in name]:
        del finished[name]
    assert lmjax.load(URL).step == 4


def test_a_run_that_was_copied_to_a_bucket_goes_on_there(bucket, storage, tiny, here):
    for path in here.rglob("*"):
        if path.is_file() and path.name not in ("summary.json", ".lock"):
            storage.put("bucket", f"runs/one/{path.relative_to(here).as_posix()}", path.read_bytes())
    assert_same_bits(lmjax.load(URL).params, lmjax.load(here).params)
    assert ran(tiny()).summary["steps"] == 6
    assert f"{CHECKPOINTS}/4/commit_success.txt" in bucket


@pytest.mark.slow
def test_stages_of_a_pipeline_go_on_from_each_other_on_the_bucket(bucket, another_machine, tiny, tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": c, "answer": c * 2} for c in "abcdefgh"])
    (tmp_path / "lambada").mkdir()
    write_rows(tmp_path / "lambada" / "lambada_dev.jsonl", [{"text": "the cat"}])
    measures = MeasureSettings(str(tmp_path), suite="", tasks=("lambada",))
    pipeline = Pipeline("two", (tiny(name="base", train__steps=2), sft(source, epochs=1.0)), measures)
    ran(pipeline)
    assert {"runs/one/base/measures.json", "runs/one/sft/measures.json"} <= bucket.keys()
    measured = bucket["runs/one/sft/measures.json"].data
    assert lmjax.load(URL).recipe.name == "sft"
    assert {"runs/one/report.html", "runs/one/sft/report.html", "runs/one/base/summary.json"} <= bucket.keys()
    another_machine()
    assert ran(pipeline).summary == {}  # all is done
    assert bucket["runs/one/sft/measures.json"].data == measured
    ran(pipeline, start_from="sft")
    assert bucket["runs/one/sft.old/measures.json"].data == measured
    assert "runs/one/sft.old/recipe.json" in bucket
    assert {name.split("/")[5] for name in bucket if name.startswith("runs/one/sft.old/checkpoints/sft/")} == {"1"}
    # A stage on this machine starts from one on the bucket.
    ran(sft(source, epochs=1.0, start=f"{URL}/base"), tmp_path / "sft")
    assert_same_bits(lmjax.load(tmp_path / "sft").params, lmjax.load(URL).params)


def test_the_run_that_began_last_has_the_workdir(bucket, tiny, another_machine):
    url, said = located(URL), []
    first = folder_here(url)
    with staged(url, first, said.append):
        (first / "a.txt").write_text("first")
        mirror(first)
        another_machine()
        second = folder_here(url)
        with staged(url, second, said.append):
            assert (second / "a.txt").read_text() == "first"
            (second / "a.txt").write_text("second")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(buckets, "cache_folder", lambda: first.parents[1])
            (first / "a.txt").write_text("first again")
            with pytest.raises(UserError, match=r"another run has begun with it \(process \d+ of .*\); this one ends"):
                mirror(first)
    assert bucket["runs/one/a.txt"].data == b"second"


def test_the_folder_here_is_what_the_bucket_holds(bucket, another_machine):
    another_machine()
    url = located(URL)
    folder = folder_here(url)
    with staged(url, folder, print):
        (folder / "tokens").mkdir()
        (folder / "tokens" / "a.bin").write_bytes(b"a")
        (folder / "b.txt").write_text("b")
        (folder / "c.partial").write_text("not whole")
        mirror(folder)
        (folder / "b.txt").unlink()
    assert sorted(bucket) == ["runs/one/.run.json", "runs/one/tokens/a.bin"]
    bucket.clear()
    with staged(url, folder, print):
        assert not (folder / "tokens" / "a.bin").exists()
    assert remote_of(folder / "stage") == url / "stage" and remote_of(Path("runs/x")) is None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("gs://absent/run", r"not there: b/absent"),
        ("gs://forbidden/run", r"Forbidden: b/forbidden.* the caller does not have storage\.buckets\.get access"),
        ("gs://anonymous/run", r"the caller does not have storage\.buckets\.get access, 401"),
    ],
)
def test_a_bucket_that_is_absent_or_refuses_is_told_and_nothing_is_made(bucket, tiny, url, reason):
    message = rf"{url}: cannot be read or written \({reason}.*\); check the bucket's name, the login \(gcloud auth"
    with pytest.raises(UserError, match=message):
        lmjax.run(tiny(), url, quiet=True)
    with pytest.raises(UserError, match=rf"{url}: cannot be read or written"):
        lmjax.load(url)
    with pytest.raises(UserError, match=rf"{url}: cannot be read or written"):
        lmjax.run(sft((DialogueSourceSettings("a.jsonl"),), start=url), "gs://bucket/runs/sft", quiet=True)


@pytest.mark.parametrize("url", ["gs://bucket", "gs://bucket/a b", "gs://bucket/../x", "gs://bucket/a//b", "gs:///x"])
def test_a_url_is_a_bucket_and_a_folder(url):
    with pytest.raises(UserError, match=r"expected gs://BUCKET/FOLDER, its names of letters, digits"):
        located(url)


def test_without_gcsfs_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket/run: gcsfs, .*, is not installed; install it: pip install gcsfs"):
        located("gs://bucket/run")


@pytest.mark.slow
def test_a_checkpoint_is_kept_by_the_settings_of_old_and_best(bucket, tiny):
    ran(tiny(checkpoint=CheckpointSettings(every=1, keep_last=1, keep_every=4)))
    steps = {name.split("/")[4] for name in bucket if name.startswith(f"{CHECKPOINTS}/") and name.count("/") > 4}
    assert steps == {"4", "6"}


@pytest.mark.parametrize("name", ["a/../../evil", "..", "a\\b"])
def test_an_objects_name_cannot_leave_the_folder_of_this_machine(bucket, storage, tiny, name):
    storage.put("bucket", f"runs/one/{name}", b"evil")
    with pytest.raises(UserError, match=r"names a file: expected one plain name"):
        lmjax.run(tiny(), URL, quiet=True)
