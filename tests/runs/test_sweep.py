"""A sweep: every run once, whatever ends its process, and a table that says how each one ended."""

import dataclasses
import itertools
import json
import random
import shutil

import jax
import numpy as np
import pytest

import lmjax
from lmjax.errors import UserError
from lmjax.parallel.mesh import make_mesh
from lmjax.runs import run as run_module
from lmjax.runs import sweep as module
from lmjax.runs.run import Result
from lmjax.runs.sweep import run_sweep
from lmjax.runs.sweep_rows import ended_row
from lmjax.runs.sweep_size import seconds_of, size_of
from lmjax.runs.sweep_units import digest, share_of
from lmjax.runs.workdir import held
from lmjax.scaling.ladder import cooldowns, grid, search
from lmjax.scaling.rules import fixed
from lmjax.scaling.sweep_table import SweepTable
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    SourceSettings,
    Sweep,
    TrainSettings,
)
from lmjax.training.loop import DivergedError
from lmjax.training.record import read_metrics

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module", autouse=True)
def _one_device_and_no_report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmjax.tasks.resolved.make_mesh", lambda settings: make_mesh(settings, jax.devices()[:1]))
        patch.setattr(run_module, "write_report", lambda folder, stages=True: folder / "report.html")
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "sea"]
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(" ".join(rng.choices(words, k=8)) + "\n" for _ in range(100)))
    return path


@pytest.fixture(scope="module")
def base(text):
    source = (SourceSettings(kind="text", path=str(text), documents="line"),)
    return Pretrain(
        data=DataSettings(train=source, validation=source, sequence_length=16),
        model=ModelSettings(layers=1, width=16, context=16, attention=AttentionSettings(heads=2)),
        evaluation=EvaluationSettings(every=1000),
        log=LogSettings(every=2, tensorboard=False),
    )


@pytest.fixture(scope="module")
def pair(base):
    """Two seeds of one run of 10 steps."""
    return Sweep("pair", search(grid(base, [base.model], [320], fixed(1e-2, 2)), seeds=(0, 1)))


@pytest.fixture(scope="module")
def _finished(tmp_path_factory, pair):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_sweep(pair, folder, say=quiet)


@pytest.fixture
def finished(_finished, tmp_path):
    """The result of `pair`, and a copy of its workdir."""
    folder, result = _finished
    shutil.copytree(folder, tmp_path / "pair")
    return tmp_path / "pair", result


@pytest.fixture
def trained(monkeypatch):
    """The names of the runs that are trained, in order; with a fault for a name, it is raised instead."""
    names, faults, train = [], {}, run_module.run

    def counting(stage, workdir, **options):
        names.append(stage.name)
        if faults.get(stage.name):
            raise faults[stage.name].pop(0)
        return train(stage, workdir, **options)

    monkeypatch.setattr(module, "run", counting)
    counting.names, counting.faults = names, faults
    return counting


def quiet(*_):
    pass


def test_a_row_holds_what_the_run_and_its_summary_say(pair, finished):
    folder, result = finished
    assert result.exit_code == 0
    for run in pair.runs:
        row = result.rows[run.name]
        summary = json.loads((folder / "runs" / run.name / "summary.json").read_text())
        assert row["status"] == "done"
        assert (row["loss"], row["training_loss"]) == (summary["validation_loss"], summary["loss"])
        for name in ("bits_per_byte", "epochs", "wall_seconds", "tokens_per_second", "device_kind", "devices"):
            assert row[name] == summary[name]
        assert row["parameters"] == summary["parameters"]
        assert row["parameters_without_embeddings"] == summary["non_embedding_parameters"]
        assert row["tokens"] == summary["tokens"] == 320
        assert (row["flops"], row["flops_6nd"]) == (summary["training_flops"], summary["training_flops_6n"])
        assert row["flops_6nd_without_embeddings"] == summary["training_flops_6n_non_embedding"]
        assert row["flops_spent"] == row["flops"]
        assert row["train.seed"] == run.stage.train.seed
        assert row["model.width"] == 16
        assert row["optimizer.learning_rate"] == 1e-2
    assert len({row["loss"] for row in result.rows.values()}) == 2
    assert 0 < result.rows[pair.runs[0].name]["epochs"] < 1


def test_the_row_of_a_mixture_has_the_epochs_of_the_source_that_was_read_most():
    summary = {"loss": 1.0, "validation_loss": 1.0, "epochs/0": 0.5, "epochs/1": 3.25}
    assert ended_row(summary, ModelSettings(vocab_size=257))["epochs"] == 3.25


def test_a_sweep_trains_what_its_table_lacks(pair, finished, trained):
    folder, result = finished
    rows, (first, second) = result.rows, [run.name for run in pair.runs]
    assert run_sweep(pair, folder, say=quiet).rows == rows
    assert trained.names == []
    table = folder / "table.jsonl"
    table.write_text(json.dumps(rows[second]) + "\n" + json.dumps(rows[first])[:-9])
    again = run_sweep(pair, folder, say=quiet).rows
    assert trained.names == [first]
    assert again[second] == rows[second]
    assert again[first] | {"finished": None} == rows[first] | {"finished": None}


@pytest.mark.parametrize("ends", [False, True])
def test_a_run_that_another_process_holds_is_named_unless_it_has_its_row_by_then(
    tmp_path, pair, finished, trained, ends
):
    (_, done), (first, second) = finished, [run.name for run in pair.runs]

    def say(line):
        if ends and second in line:
            SweepTable(tmp_path / "table.jsonl", quiet).append(done.rows[first])

    with held(tmp_path / "claims" / f"{first}.lock"):
        result = run_sweep(pair, tmp_path, say=say)
    assert trained.names == [second]
    assert result.elsewhere == (() if ends else (first,))
    assert set(result.rows) == ({first, second} if ends else {second})


def test_a_cooldown_equals_a_run_of_its_own_bit_for_bit(tmp_path, base):
    runs = cooldowns(base, [base.model], [320, 640], fixed(1e-2, 2, warmup=0.2))
    trunk, branch = runs
    result = run_sweep(Sweep("ladder", runs), tmp_path / "sweep", say=quiet)
    alone = lmjax.run(branch.stage, tmp_path / "alone", quiet=True)
    row = result.rows[branch.name]
    assert row["loss"] == alone.summary["validation_loss"]
    assert (row["trunk"], row["tokens"]) == (trunk.name, 320)
    assert row["flops_spent"] == pytest.approx(row["flops"] * 2 / 10)
    ours, other = (lmjax.load(folder) for folder in (tmp_path / "sweep/runs" / branch.name, tmp_path / "alone"))
    jax.tree.map(np.testing.assert_array_equal, ours.params, other.params)
    record = read_metrics(tmp_path / "sweep/runs" / branch.name)
    assert min(line["step"] for line in record if "loss" in line) > branch.cooldown_step


def test_a_run_that_fails_once_is_tried_once_more(tmp_path, pair, trained):
    name = pair.runs[0].name
    trained.faults[name] = [MemoryError("out of memory")]
    said = []
    result = run_sweep(pair, tmp_path, say=said.append)
    assert result.exit_code == 0
    assert trained.names.count(name) == 2
    assert "  failed: MemoryError: out of memory; it is tried once more" in said


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        (MemoryError("out of memory"), "failed", "MemoryError: out of memory"),
        (DivergedError("step 7: no"), "diverged", "step 7: no"),
    ],
)
def test_a_run_that_fails_twice_is_a_row_that_says_so(tmp_path, pair, trained, fault, status, error):
    name, other = (run.name for run in pair.runs)
    trained.faults[name] = [fault, fault]
    result = run_sweep(pair, tmp_path, say=quiet)
    assert result.exit_code == 1
    row = result.rows[name]
    assert (row["status"], row["error"], row.get("loss")) == (status, error, None)
    assert (row["tokens"], row["parameters"]) == (320, result.rows[other]["parameters"])
    assert result.rows[other]["status"] == "done"
    told = (tmp_path / "runs" / name / "error.txt").exists()
    assert told == (status == "failed")
    run_sweep(pair, tmp_path, say=quiet)
    assert trained.names == [name, name, other]


def test_runs_that_failed_are_trained_anew_where_asked(tmp_path, pair, trained):
    name, other = (run.name for run in pair.runs)
    trained.faults[name] = [MemoryError("out"), MemoryError("out")]
    before = run_sweep(pair, tmp_path, say=quiet).rows
    rows = run_sweep(pair, tmp_path, again=True, say=quiet).rows
    assert trained.names == [name, name, other, name]
    assert (rows[name]["status"], rows[other]) == ("done", before[other])
    run_sweep(pair, tmp_path, again=True, say=quiet)
    assert len(trained.names) == 4


def test_a_loss_above_a_uniform_guess_has_diverged(tmp_path, pair, monkeypatch):
    summary = {"validation_loss": 5.6, "loss": 5.6}
    monkeypatch.setattr(module, "run", lambda stage, folder, **_: Result(folder, None, summary))
    row = run_sweep(pair, tmp_path, say=quiet).rows[pair.runs[0].name]
    assert (row["status"], row["loss"]) == ("diverged", 5.6)
    assert row["error"] == "its validation loss is 5.6, above the 5.549 of a uniform guess"


def test_the_cooldowns_of_a_failed_trunk_fail(tmp_path, base, trained):
    runs = cooldowns(base, [base.model], [320, 640], fixed(1e-2, 2))
    trunk, branch = runs
    trained.faults[trunk.name] = [MemoryError(), MemoryError()]
    rows = run_sweep(Sweep("ladder", runs), tmp_path, say=quiet).rows
    assert rows[branch.name]["error"] == f"its trunk {trunk.name} failed"
    assert branch.name not in trained.names


def test_a_mistake_of_the_user_ends_the_sweep_and_keeps_its_rows(tmp_path, pair, trained):
    first, second = (run.name for run in pair.runs)
    trained.faults[second] = [UserError("text.txt: absent")]
    with pytest.raises(UserError, match=f"{second}: text.txt: absent"):
        run_sweep(pair, tmp_path, say=quiet)
    assert set(SweepTable(tmp_path / "table.jsonl", quiet).rows()) == {first}


def test_rows_that_do_not_fit_their_model_are_told_of_before_anything_runs(tmp_path, pair, trained):
    long = dataclasses.replace(pair.runs[1].stage.data, sequence_length=16)
    short = dataclasses.replace(pair.runs[1].stage.model, context=8)
    stage = dataclasses.replace(pair.runs[1].stage, data=long)
    object.__setattr__(stage, "model", short)
    sweep = dataclasses.replace(pair, runs=(pair.runs[0], dataclasses.replace(pair.runs[1], stage=stage)))
    with pytest.raises(UserError, match=rf"{stage.name}.data.sequence_length = 16: expected at most .* 8"):
        run_sweep(sweep, tmp_path, say=quiet)
    assert trained.names == []


def test_a_table_of_another_sweep_is_refused(pair, finished):
    folder, _ = finished
    before = (folder / "table.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"is of the sweep 'pair'; expected those of 'other'; choose another --workdir"):
        run_sweep(dataclasses.replace(pair, name="other"), folder, say=quiet)
    faster = dataclasses.replace(pair.runs[0].stage, optimizer=OptimizerSettings(learning_rate=2e-2))
    changed = dataclasses.replace(pair, runs=(dataclasses.replace(pair.runs[0], stage=faster), pair.runs[1]))
    message = r"is of another recipe than the sweep's run of that name\n(.*\n)*.*optimizer.learning_rate: 0.01 -> 0.02"
    with pytest.raises(UserError, match=message):
        run_sweep(changed, folder, say=quiet)
    assert (folder / "table.jsonl").read_bytes() == before


def test_shares_are_disjoint_whole_and_even(base):
    tokens = [320 * size for size in range(1, 30)]
    sweep = Sweep("many", grid(base, [base.model], tokens, fixed(1e-2, 2)))
    shares = [share_of(sweep, (number, 4)) for number in range(1, 5)]
    names = [[run.name for unit in share for run in unit] for share in shares]
    assert sorted(itertools.chain(*names)) == sorted(run.name for run in sweep.runs)
    costs = [sum(size_of(run).flops for unit in share for run in unit) for share in shares]
    assert max(costs) < 1.05 * min(costs)
    own = [size_of(unit[0]).flops for unit in shares[0]]
    assert own == sorted(own)


def test_a_trunk_and_its_cooldowns_are_of_one_share(base):
    runs = cooldowns(base, [base.model, dataclasses.replace(base.model, layers=2)], [320, 640], fixed(1e-2, 2))
    first, second = (share_of(Sweep("ladders", runs), (number, 2)) for number in (1, 2))
    assert [[run.trunk for run in unit] for unit in first + second] == [["", runs[2].name], ["", runs[0].name]]


def test_the_speed_of_finished_runs_tells_how_long_others_take(pair):
    size = size_of(pair.runs[0])
    assert seconds_of(size, {}) is None
    row = {"status": "done", "parameters": size.parameters, "flops": size.flops, "tokens": size.tokens}
    assert seconds_of(size, {"a": row | {"tokens_per_second": 32.0}}) == pytest.approx(10.0)
    both = {"a": row | {"tokens_per_second": 32.0}, "b": row | {"tokens_per_second": 128.0}}
    assert seconds_of(size, both) == pytest.approx(320 / 64)
    assert seconds_of(size, {"a": row | {"status": "failed", "tokens_per_second": None}}) is None


def test_a_digest_is_of_the_recipe_and_the_trunk(pair):
    first = pair.runs[0]
    longer = dataclasses.replace(first, stage=dataclasses.replace(first.stage, train=TrainSettings(steps=11)))
    digests = {digest(run) for run in (first, longer, dataclasses.replace(first, trunk="other"))}
    assert len(digests) == 3
    assert digest(dataclasses.replace(first, reason="another")) == digest(first)


def test_a_sweep_of_several_processes_of_one_run_is_refused(tmp_path, pair, monkeypatch):
    for name, value in (("COORDINATOR_ADDRESS", "localhost:1"), ("NUM_PROCESSES", "2"), ("PROCESS_ID", "0")):
        monkeypatch.setenv(f"JAX_{name}", value)
    with pytest.raises(UserError, match=r"the processes of a sweep = 2: expected 1"):
        run_sweep(pair, tmp_path, say=quiet)
