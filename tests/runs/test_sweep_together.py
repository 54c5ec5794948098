"""Runs of a sweep that train in one program: rows like those of runs alone, whatever fails in one of them."""

import dataclasses
import json

import jax
import pytest

from lmjax.errors import FieldError
from lmjax.parallel.mesh import make_mesh
from lmjax.runs import run as run_module
from lmjax.runs import sweep as module
from lmjax.runs.run import run
from lmjax.runs.sweep import run_sweep
from lmjax.runs.sweep_units import share_of
from lmjax.scaling.ladder import cooldowns, grid, search
from lmjax.scaling.rules import fixed
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    Member,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    PretrainTogether,
    SourceSettings,
    Sweep,
    TrainSettings,
)
from lmjax.stages.registry import kind_of
from lmjax.tasks.resolved import resolve
from lmjax.training.loop import DivergedError
from lmjax.training.record import Recorder, read_metrics
from lmjax.training.stop import StopRequest

STEPS = 8
MEMBERS = (Member("a", 0, 1e-2), Member("b", 1, 1e-2), Member("c", 0, 3e-2))

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module", autouse=True)
def _no_report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_report", lambda folder, stages=True: folder / "report.html")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on a mat and ran to the sea\n" * 60)
    source = (SourceSettings(kind="text", path=str(path), documents="line"),)
    return Pretrain(
        data=DataSettings(train=source, validation=source, sequence_length=16, batch_size=4),
        model=ModelSettings(layers=1, width=16, context=16, dropout=0.1, attention=AttentionSettings(heads=2)),
        # A large eps: where a gradient is next to nothing, Adam's quotient would make rounding as large as the rate.
        optimizer=OptimizerSettings(eps=1e-3),
        train=TrainSettings(steps=STEPS),
        mesh=MeshSettings(data=1, fsdp=2),
        evaluation=EvaluationSettings(every=1000),
        checkpoint=CheckpointSettings(every=3),
        log=LogSettings(every=1, tensorboard=False),
    )


@pytest.fixture(scope="module", autouse=True)
def _two_devices():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmjax.tasks.resolved.make_mesh", lambda settings: make_mesh(settings, jax.devices()[:2]))
        yield


def together(base, members=MEMBERS, **changes):
    fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(Pretrain)}
    return PretrainTogether(**fields | {"name": "together", "members": members} | changes)


def alone(base, member):
    optimizer = dataclasses.replace(base.optimizer, learning_rate=member.learning_rate)
    train = dataclasses.replace(base.train, seed=member.seed)
    return dataclasses.replace(base, name=member.name, optimizer=optimizer, train=train)


def losses(folder, name="loss"):
    return [line[name] for line in read_metrics(folder) if name in line]


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    return folder, run(together(base), folder, quiet=True)


OTHERS = [pytest.param(member, marks=pytest.mark.slow) for member in MEMBERS[:-1]]


@pytest.mark.parametrize("member", [*OTHERS, MEMBERS[-1]], ids=lambda member: member.name)
def test_each_run_is_what_it_is_alone(tmp_path, base, trained, member):
    folder, result = trained
    single = run(alone(base, member), tmp_path, quiet=True)
    assert losses(folder, f"loss/{member.name}") == pytest.approx(losses(tmp_path), rel=1e-5)
    for name in ("validation_loss", "bits_per_byte", "validation_perplexity"):
        assert result.summary[f"{name}/{member.name}"] == pytest.approx(single.summary[name], rel=1e-5)
    assert losses(folder, f"learning_rate/{member.name}") == pytest.approx(losses(tmp_path, "learning_rate"), rel=1e-6)
    assert result.summary[f"longest_skip/{member.name}"] == 0


def test_the_loss_of_all_is_their_mean(trained):
    folder, _ = trained
    each = zip(*(losses(folder, f"loss/{member.name}") for member in MEMBERS), strict=True)
    assert losses(folder) == pytest.approx([sum(values) / 3 for values in each], rel=1e-6)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, base, trained, monkeypatch):
    folder, _ = trained
    with monkeypatch.context() as patch:
        write = Recorder.write

        def stopping(recorder, at, values):
            write(recorder, at, values)
            if at == 5:
                patch.setattr(StopRequest, "asked", lambda self: True)

        patch.setattr(Recorder, "write", stopping)
        run(together(base), tmp_path, quiet=True)
    assert len(losses(tmp_path)) < STEPS
    run(together(base), tmp_path, quiet=True)
    for name in ("loss/a", "loss/b", "loss/c", "validation_loss/c"):
        assert losses(tmp_path, name) == losses(folder, name)


def test_a_run_that_diverges_touches_no_other(tmp_path, base, trained):
    folder, _ = trained
    members = (MEMBERS[0], Member("wild", 0, 1e38), MEMBERS[2])
    result = run(together(base, members), tmp_path, quiet=True)
    assert result.summary["longest_skip/wild"] >= STEPS - 3
    for name in ("a", "c"):
        assert losses(tmp_path, f"loss/{name}") == pytest.approx(losses(folder, f"loss/{name}"), rel=1e-6)
        assert result.summary[f"longest_skip/{name}"] == 0


@pytest.mark.slow
def test_where_all_diverge_the_run_ends(tmp_path, base):
    wild = tuple(Member(f"wild{n}", n, 1e38) for n in range(2))
    with pytest.raises(DivergedError, match="3 steps in a row had a loss or gradient that is not finite"):
        run(together(base, wild, train=TrainSettings(steps=STEPS, abort_after_skipped=3)), tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": ()}, r"members = \[\]: expected at least one run"),
        ({"members": (Member("a"), Member("a"))}, r"members = \['a', 'a'\]: expected at least one run, of different"),
        ({"start": "runs/other"}, r"start = 'runs/other': expected none for runs that train together"),
        ({"evaluation": EvaluationSettings(prompts=("The",))}, r"evaluation.prompts = .*: expected none"),
        ({"checkpoint": CheckpointSettings(keep_best=1)}, r"checkpoint.keep_best = 1: expected 0"),
    ],
)
def test_what_runs_together_cannot_have_is_refused(base, changes, message):
    with pytest.raises(FieldError, match=message):
        together(base, **changes)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_has_31_bits(seed):
    with pytest.raises(FieldError, match=rf"Member.seed = {seed}: expected a whole number from 0 to 2\^31 - 1"):
        Member(seed=seed)


def test_the_planned_step_works_for_every_run(base):
    planned = kind_of(together(base)).programs["train"]
    resolved = resolve(together(base))
    program = planned.build(resolved, resolved.mesh())
    assert {leaf.shape[0] for leaf in jax.tree.leaves(program.abstract.params)} == {3}
    single = kind_of(base).programs["train"].cost(resolve(base))
    assert planned.cost(resolved).flops == 3 * single.flops


@pytest.fixture(scope="module")
def sweep(base):
    runs = grid(base, [base.model], [4 * 16 * STEPS], fixed(1e-2, 4))
    return Sweep("search", search(runs, learning_rates=(1e-2, 3e-2), seeds=(0, 1)))


def quiet(*_):
    pass


def test_units_are_of_runs_that_differ_in_seed_and_rate_alone(base, sweep):
    longer = grid(base, [base.model], [4 * 16 * STEPS * 2], fixed(1e-2, 4))
    ladder = cooldowns(base, [dataclasses.replace(base.model, layers=2)], [1024, 2048], fixed(1e-2, 4))
    every = dataclasses.replace(sweep, runs=(*sweep.runs, *longer, *ladder))
    sizes = [len(unit) for unit in share_of(every, together=3)]
    assert sorted(sizes) == [1, 1, 2, 3]
    assert [len(unit) for unit in share_of(sweep, together=8)] == [4]


@pytest.mark.slow
def test_a_sweep_together_has_the_rows_of_one_alone(tmp_path, sweep):
    said = []
    rows = run_sweep(sweep, tmp_path / "together", together=4, say=said.append).rows
    single = run_sweep(sweep, tmp_path / "alone", say=quiet).rows
    assert list(rows) == list(single)
    free = ("loss", "training_loss", "bits_per_byte", "wall_seconds", "tokens_per_second", "finished", "together")
    for name, row in rows.items():
        assert row["together"] == 4
        assert [row[key] for key in free[:3]] == pytest.approx([single[name][key] for key in free[:3]], rel=1e-5)
        assert {key: row[key] for key in row if key not in free} == {
            key: value for key, value in single[name].items() if key not in free
        }
    assert said[0].startswith("4 runs together, each N ")
    before = (tmp_path / "together" / "table.jsonl").read_bytes()
    run_sweep(sweep, tmp_path / "together", together=4, say=quiet)
    assert (tmp_path / "together" / "table.jsonl").read_bytes() == before


@pytest.mark.slow
def test_rows_that_a_kill_left_out_come_from_the_finished_program(tmp_path, sweep, monkeypatch):
    rows = run_sweep(sweep, tmp_path, together=4, say=quiet).rows
    table = tmp_path / "table.jsonl"
    table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:1]))
    monkeypatch.setattr("lmjax.stages.train_stage.fit", lambda *_: pytest.fail("nothing is left to train"))
    again = run_sweep(sweep, tmp_path, together=4, say=quiet).rows
    assert {name: row["loss"] for name, row in again.items()} == {name: row["loss"] for name, row in rows.items()}


@pytest.mark.parametrize("fault", [MemoryError("too large"), DivergedError("step 3: all")])
def test_runs_that_fail_together_are_tried_alone(tmp_path, sweep, monkeypatch, fault):
    names = []

    def failing(stage, folder, **options):
        names.append(stage.name)
        if isinstance(stage, PretrainTogether):
            raise fault
        return run_module.Result(folder, None, json.loads(json.dumps(SUMMARY)))

    monkeypatch.setattr(module, "run", failing)
    result = run_sweep(sweep, tmp_path, together=4, say=quiet)
    assert names[1:] == [one.name for one in sweep.runs]
    assert result.exit_code == 0
    assert all("together" not in row for row in result.rows.values())


SUMMARY = {"validation_loss": 2.5, "loss": 2.5, "wall_seconds": 1.0, "bits_per_byte": None}
