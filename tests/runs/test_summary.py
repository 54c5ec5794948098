"""A run's summary holds what a scaling fit needs, however often the run was interrupted; runs share their tokens."""

import dataclasses
import json
import signal
import time
from pathlib import Path

import pytest

import lmjax
from lmjax.cli import main
from lmjax.data import write_shards
from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError
from lmjax.model.flops import count
from lmjax.runs import run as module
from lmjax.runs.run import run
from lmjax.settings import Pipeline
from lmjax.training.record import read_metrics
from tests.running import interrupted
from tests.tiny import sft, write_recipe, write_rows

RAMP = {"data__ramp_from": 2, "data__ramp_tokens": 16 * 24, "data__ramp_sizes": 4}  # of 16 tokens a row
TIMES = ("wall_seconds", "tokens_per_second")


pytestmark = pytest.mark.usefixtures("two_devices")


def stopped(step, recipe, workdir, number=signal.SIGTERM):
    """Runs until it is told to stop at the line of a step."""
    with interrupted(step, number):
        return run(recipe, workdir, quiet=True)


def test_a_summary_holds_what_a_scaling_fit_needs(tmp_path, tiny):
    recipe = tiny(**RAMP)
    before = time.monotonic()
    summary = run(recipe, tmp_path / "run", quiet=True).summary
    ramp = BatchRamp(recipe.data)
    assert len({ramp.batch_size_at(step) for step in range(10)}) > 2, "the batches grow"
    tokens = sum(16 * ramp.batch_size_at(step) for step in range(10))
    counted = count(recipe.model, 16)
    assert summary | dataclasses.asdict(counted) == summary
    assert summary["tokens"] == tokens < 10 * 8 * 16
    assert summary["training_flops"] == counted.flops_per_token * tokens
    assert summary["training_flops_6n"] == 6 * counted.parameters * tokens
    assert summary["training_flops_6n_non_embedding"] == 6 * counted.non_embedding_parameters * tokens
    assert (summary["device_kind"], summary["devices"]) == ("cpu", 2)
    assert 0 < summary["wall_seconds"] < time.monotonic() - before
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert run(recipe, tmp_path / "run", quiet=True).summary == summary, "a finished run reads it again"


def test_an_interrupted_run_has_the_summary_of_an_uninterrupted_one_and_its_seconds_add_up(tmp_path, tiny):
    recipe = tiny(**RAMP, log__every=3)
    whole = run(recipe, tmp_path / "whole", quiet=True).summary
    seconds = []
    for step in (3, 6):
        began = time.monotonic()
        assert stopped(step, recipe, tmp_path / "cut").exit_code == 143
        lines = read_metrics(tmp_path / "cut")
        seconds.append(lines[-1]["wall_seconds"])
        assert lines[-1]["step"] == step + 1, "also where the log has no line of the step"
        assert seconds[-1] - sum(seconds[:-1][-1:]) < time.monotonic() - began
    cut = run(recipe, tmp_path / "cut", quiet=True).summary
    assert 0 < seconds[0] < seconds[1] < cut["wall_seconds"]
    for name in TIMES:
        del whole[name], cut[name]
    assert cut == whole


def test_the_seconds_of_steps_that_are_run_again_count_too(tmp_path, tiny):
    stopped(6, tiny(), tmp_path / "run", signal.SIGINT)
    lines = read_metrics(tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, "wall_seconds": 1000.0}) + "\n")  # a step that a killed run did not save
    summary = run(tiny(), tmp_path / "run", quiet=True).summary
    assert summary["wall_seconds"] > 1000.0 > lines[-1]["wall_seconds"]


def test_a_record_without_times_is_said(tmp_path, tiny, capsys):
    stopped(6, tiny(), tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k not in TIMES}) + "\n" for line in lines))
    assert run(tiny(), tmp_path / "run").summary["steps"] == 10
    assert f"{path}: does not tell how long earlier runs took; wall_seconds leaves them out" in capsys.readouterr().out


def _pipeline(tiny, folder) -> Pipeline:
    chats = write_rows(folder / "chats.jsonl", [{"prompt": "Hi", "response": "Hello"}] * 16)
    mixed = {"mix": tiny().data.train, "mix_share": 0.5}
    tuned = sft(chats, dialogue__too_long="skip", train__steps=3, epochs=None, **mixed)
    return Pipeline("both", (tiny(name="base", model__context=48), tuned))


def test_the_stages_of_a_pipeline_and_other_runs_encode_a_text_once(tmp_path, tiny, monkeypatch, capsys):
    encoded = []
    encode = write_shards._encode
    monkeypatch.setattr(
        write_shards, "_encode", lambda source, *rest: encoded.append(source.name) or encode(source, *rest)
    )
    summary = run(_pipeline(tiny, tmp_path), tmp_path / "runs" / "both").summary
    assert len(encoded) == len(set(encoded)) == 2, "train.txt and validation.txt"
    assert summary["sft"]["tokens"] == 3 * 8 * 32
    said = capsys.readouterr().out
    assert said.count(f"documents, from the cache {tmp_path / 'runs' / 'cache'}") == 1, "of the stage that mixes it in"
    run(tiny(name="other"), tmp_path / "runs" / "other")
    assert len(encoded) == 2
    assert not list((tmp_path / "runs" / "other").rglob("*.bin"))
    run(tiny(), tmp_path / "runs" / "third", cache=tmp_path / "elsewhere")
    assert len(encoded) == 4 and len(list((tmp_path / "elsewhere" / "tokens").iterdir())) == 2


def test_the_cache_can_be_named_and_must_then_be_a_folder_of_this_machine_that_can_be_written(
    tmp_path, tiny, texts, capsys
):
    recipe = write_recipe(tmp_path / "mine.py", tiny(train__steps=1))
    command = ["run", str(recipe), "--workdir", str(tmp_path / "run")]
    assert main([*command, "--cache", "gs://bucket/cache"]) == 2
    assert "--cache = 'gs://bucket/cache': expected a path of this machine" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"cache = 'gs://bucket/cache': expected a path of this machine"):
        lmjax.run(tiny(), tmp_path / "run", cache="gs://bucket/cache")
    (tmp_path / "file").write_text("")
    assert main([*command, "--cache", str(tmp_path / "file")]) == 2
    assert f"--cache {tmp_path / 'file'}: cannot be written" in capsys.readouterr().err
    assert main([*command, "--cache", str(tmp_path / "mine")]) == 0
    assert f"kept in the cache {tmp_path / 'mine'}" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("workdir", "cache"), [("runs/one", "runs/cache"), (".", "../cache"), ("runs/..", "../cache")])
def test_the_cache_is_beside_the_workdir(tmp_path, monkeypatch, workdir, cache):
    (tmp_path / "here" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert module._cache_beside(Path(workdir), Path(workdir)).resolve() == Path(cache).resolve()


def test_a_workdir_on_a_bucket_has_its_cache_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module._cache_beside(Path("gs://bucket/run"), tmp_path / "lmjax" / "workdirs" / "x").is_relative_to(tmp_path)
