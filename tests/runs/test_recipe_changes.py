"""What may change between two runs of a workdir: the kind of every field, where the data go on, what is bound."""

import dataclasses
import itertools
import json
import shutil
import signal

import pytest

import lmjax
from lmjax.checkpoints.checkpoint import find_checkpoint
from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError
from lmjax.fields import field_types
from lmjax.report.page import write_report
from lmjax.runs.pipeline import Plan, run_stages
from lmjax.runs.recipe_changes import adopted, changes_of, kinds_of
from lmjax.runs.run import run
from lmjax.settings import (
    SFT,
    Compare,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.settings.recipe_files import from_json
from lmjax.settings.stage import KINDS
from lmjax.stages.changes import Kind
from lmjax.stages.registry import kind_of
from tests.running import assert_same_bits, interrupted, lines_of
from tests.tiny import text


def leaves(settings, prefix=""):
    """The dotted name of every field below a dataclass; a tuple of dataclasses stands as one name and a dot."""
    for name, kind in field_types(settings).items():
        parts = [kind, *getattr(kind, "__args__", ())]
        own = next((part for part in parts if dataclasses.is_dataclass(part)), None)
        if own is None or str(kind).startswith("tuple"):
            yield f"{prefix}{name}" + ("." if own else "")
        else:
            yield from leaves(own, f"{prefix}{name}.")


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_field_of_every_stage_is_of_exactly_one_kind_and_no_entry_is_idle(kind):
    names = list(leaves(kind))
    assert len(names) > 20
    assert {
        name: kinds_of(kind, name.rstrip(".")) for name in names if len(kinds_of(kind, name.rstrip("."))) != 1
    } == {}
    entries = [entry for table in kind_of(kind).changes for own in table.values() for entry in own]
    idle = [e for e in entries if not any(n == e or (e[-1] == "." and f"{n}.".startswith(e)) for n in names)]
    assert idle == []


COSINE, CONSTANT, WSD = (
    OptimizerSettings(schedule=ScheduleSettings(kind=kind)) for kind in ("cosine", "constant", "wsd")
)
ENDED = OptimizerSettings(schedule=ScheduleSettings(decay=20))


@pytest.mark.parametrize(
    ("optimizer", "steps", "reached", "kind"),
    [
        (CONSTANT, 30, 9, Kind.FREE),
        (ENDED, 30, 9, Kind.FREE),
        (COSINE, 30, 9, Kind.CONSEQUENTIAL),
        (WSD, 30, 8, Kind.FREE),  # the rate falls after step 8 of 10
        (WSD, 30, 9, Kind.CONSEQUENTIAL),
    ],
)
def test_more_steps_are_free_where_the_schedule_so_far_does_not_know_its_end(optimizer, steps, reached, kind):
    old = Pretrain(optimizer=optimizer, train=TrainSettings(steps=10))
    new = dataclasses.replace(old, train=TrainSettings(steps=steps))
    assert [(c.field, c.kind) for c in changes_of(old, new, reached)] == [("train.steps", kind)]


def test_what_is_free_is_taken_and_told_what_has_consequences_needs_force_and_what_breaks_is_refused():
    old = Pretrain()
    free = dataclasses.replace(old, log=LogSettings(every=3), evaluation=EvaluationSettings(batches=2))
    told = ["evaluation.batches: None -> 2", "log.every: 10 -> 3"]
    assert adopted(old, free, 5, False, "w") == (free, told)
    other = dataclasses.replace(free, optimizer=OptimizerSettings(learning_rate=1e-3))
    with pytest.raises(
        UserError, match=r"^w: its recipe differs .* in\n  optimizer\.learning_rate: 0\.0003 -> 0\.001\n"
    ):
        adopted(old, other, 5, False, "w")
    assert adopted(old, other, 5, True, "w") == (other, ["optimizer.learning_rate: 0.0003 -> 0.001", *told])
    broken = [
        dataclasses.replace(old, tokenizer=TokenizerSettings(kind="bpe")),
        dataclasses.replace(old, model=ModelSettings(width=64)),
    ]
    for new in broken:
        with pytest.raises(UserError, match=r"weights of step 5 cannot change to, also not by --force"):
            adopted(old, new, 5, True, "w")
    with pytest.raises(UserError, match=r"start: 'a' -> 'b'\nwhich its weights of step 5 cannot"):
        adopted(SFT(start="a"), SFT(start="b"), 5, True, "w")
    with pytest.raises(UserError, match=r"temperature: 1\.0 -> 0\.5\nwhich its answers cannot"):
        adopted(Compare(known_reward="a.py:f"), Compare(known_reward="a.py:f", temperature=0.5), 0, True, "w")
    with pytest.raises(UserError, match=r"holds a Pretrain, not a SFT"):
        adopted(old, SFT(start="a"), 5, True, "w")
    with pytest.raises(UserError, match=r"train\.steps = 4: expected 5, the step reached, or more"):
        adopted(old, dataclasses.replace(old, train=TrainSettings(steps=4)), 5, True, "w")


def test_a_long_value_is_shortened():
    long = SourceSettings(kind="text", path="x" * 10_000)
    (change,) = changes_of(SFT(), SFT(start="y" * 10_000), 0)
    assert len(change.told) < 400
    told = [c.told for c in changes_of(Pretrain(), Pretrain(data=DataSettings(train=(long,))), 0)]
    assert max(map(len, told)) < 400


def rows(ramp, steps):
    """The rows of each step as ranges."""
    return [(ramp.rows_at(step), ramp.rows_at(step) + ramp.batch_size_at(step)) for step in range(steps)]


def test_another_batch_size_reads_on_where_the_last_one_ended():
    old = Pretrain(data=DataSettings(batch_size=8, sequence_length=16))
    new = dataclasses.replace(old, data=DataSettings(batch_size=4, sequence_length=16))
    first, told = adopted(old, new, 3, True, "w")
    assert told == ["data.batch_size: 8 -> 4"]
    assert first.data.earlier_batches == ((3, 8, 16, 0, 0, 4),)
    assert rows(BatchRamp(first.data), 6) == [(0, 8), (8, 16), (16, 24), (24, 28), (28, 32), (32, 36)]
    assert BatchRamp(first.data).tokens_at(5) == 32 * 16
    assert adopted(first, new, 5, False, "w") == (first, []), "the same recipe resumes the same batches"
    assert adopted(first, old, 3, True, "w")[0].data.earlier_batches == ((3, 8, 16, 0, 0, 4),), "no step of 4 rows"
    back, _ = adopted(first, old, 5, True, "w")
    assert rows(BatchRamp(back.data), 7)[4:] == [(28, 32), (32, 40), (40, 48)]
    early, _ = adopted(back, new, 2, True, "w")  # the newer checkpoints are damaged
    assert early.data.earlier_batches == ((2, 8, 16, 0, 0, 4),)


@pytest.mark.parametrize("step", range(1, 12))
def test_a_ramp_that_changes_goes_on_by_the_tokens_that_were_read(step):
    def ramped(size, tokens):
        return Pretrain(
            data=DataSettings(sequence_length=16, batch_size=size, ramp_from=4, ramp_tokens=tokens, ramp_sizes=3)
        )

    old, new = ramped(8, 600), ramped(16, 2000)
    changed, _ = adopted(old, new, step, True, "w")
    ramp, before, alone = (BatchRamp(recipe.data) for recipe in (changed, old, new))
    assert rows(ramp, step) == rows(before, step)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(rows(ramp, 60)))
    assert ramp.batch_size_at(59) == 16
    now = ramp.tokens_at(step)
    sizes = [alone.batch_size_at(s) for s in range(60) if alone.tokens_at(s) <= now]
    assert ramp.batch_size_at(step) in (sizes[-1], 16 if now >= 2000 else sizes[-1], alone.batch_size_at(len(sizes)))
    assert from_json(lmjax.settings.recipe_files.to_json(changed)) == changed


def stopped_after(step, recipe, folder, **options):
    """Runs until the line of a step has been written."""
    with interrupted(step, signal.SIGTERM):
        assert run(recipe, folder, quiet=True, **options).exit_code == 143
    return find_checkpoint(folder).step


def test_a_mistake_before_the_first_step_binds_nothing(two_devices, tmp_path, tiny):
    right = tiny()
    wrong = tiny(data__train=text(tmp_path / "none.txt"), train__steps=9)
    with pytest.raises(UserError, match=r"none\.txt"):
        run(wrong, tmp_path / "w", quiet=True)
    assert run(right, tmp_path / "w", quiet=True).summary["steps"] == 10
    assert [line["step"] for line in lines_of(tmp_path / "w")] == list(range(1, 11))
    assert not lines_of(tmp_path / "w", "changed")


def test_a_forced_mistake_binds_nothing_either(two_devices, tmp_path, tiny):
    right, folder = tiny(), tmp_path / "w"
    step = stopped_after(4, right, folder)
    with pytest.raises(UserError, match=r"none\.txt"):
        run(tiny(data__train=text(tmp_path / "none.txt")), folder, force=True)
    assert run(right, folder, quiet=True).summary["steps"] == 10
    assert step >= 4 and not lines_of(folder, "changed")


def test_changes_are_lines_of_the_log_and_of_the_report_and_batches_go_on_bitwise(two_devices, tmp_path, tiny):
    recipe, folder = tiny(), tmp_path / "w"
    step = stopped_after(4, recipe, folder)
    smaller = tiny(data__batch_size=4)
    with pytest.raises(UserError, match=r"data\.batch_size: 8 -> 4\n.*--force"):
        run(smaller, folder, quiet=True)
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    assert run(smaller, folder, quiet=True, force=True).exit_code == 0
    (line,) = lines_of(folder, "changed")
    assert line == {"step": step, "changed": ["data.batch_size: 8 -> 4"]}
    assert "data.batch_size: 8 -&gt; 4" in write_report(folder).read_text()
    kept = json.loads((folder / "recipe.json").read_text())["data"]["earlier_batches"]
    assert kept == [[step, 8, 16, 0, 0, 4]]
    # stopped once more on the way, and resumed without --force: the same bits
    assert step < stopped_after(7, smaller, again, force=True) < 10
    assert run(smaller, again, quiet=True).exit_code == 0
    assert_same_bits(lmjax.load(again).params, lmjax.load(folder).params)
    told = [lines_of(where, "epochs")[-1]["epochs"] for where in (folder, again)]
    assert told[0] == told[1]


WORDPIECE = TokenizerSettings(kind="wordpiece", vocab_size=37)


def test_a_run_ends_bitwise_by_the_schedule_that_it_began_with_whatever_the_default_is_now(two_devices, tmp_path, tiny):
    began = tiny(optimizer__schedule=ScheduleSettings(warmup=6, warmup_from=0.0), checkpoint__every=2)
    lmjax.run(began, tmp_path / "uninterrupted", quiet=True)
    with interrupted(4, signal.SIGTERM):
        lmjax.run(began, tmp_path / "run", quiet=True)
    now = tiny(optimizer__schedule=ScheduleSettings(warmup=6), checkpoint__every=2)
    assert lmjax.run(now, tmp_path / "run", quiet=True).exit_code == 0
    ends = [lmjax.load(tmp_path / name) for name in ("uninterrupted", "run")]
    assert_same_bits(ends[0].params, ends[1].params)
    rates = [[line["learning_rate"] for line in lines_of(tmp_path / name)] for name in ("uninterrupted", "run")]
    assert rates[0] == rates[1] and rates[0][0] == 0.0 and ends[1].recipe.optimizer.schedule.warmup_from == 0.0


def test_other_data_keep_the_tokenizer_of_the_weights(two_devices, tmp_path, tiny):
    """Another tokenizer gives the same ids other meanings: the loss would jump, without an error."""
    recipe, folder = tiny(tokenizer=WORDPIECE), tmp_path / "w"
    stopped_after(4, recipe, folder)
    (before,) = {path.read_bytes() for path in folder.glob("tokenizer-*/tokenizer.json")}
    other = tmp_path / "other.txt"
    other.write_text("".join(f"zebras quickly jumped over {n} lazy dogs\n" for n in range(100)) * 2)
    assert run(tiny(tokenizer=WORDPIECE, data__train=text(other)), folder, quiet=True, force=True).exit_code == 0
    assert {path.read_bytes() for path in folder.glob("tokenizer-*/tokenizer.json")} == {before}
    find_checkpoint(folder).unpack_tokenizer(tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "tokenizer.json").read_bytes() == before


def test_a_stage_is_set_aside_beside_a_stage_whose_name_ends_in_old(tmp_path):
    for name in ("pretrain", "pretrain.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mark").write_text(name)
    plans = [Plan(Pretrain(), "anew", "as --from says"), Plan(Pretrain(name="pretrain.old"), "skip", "is done")]
    assert run_stages(plans, tmp_path, lambda *_: True, lambda _: None)
    assert (tmp_path / "pretrain.old" / "mark").read_text() == "pretrain.old"
    assert (tmp_path / "pretrain.old.old" / "mark").read_text() == "pretrain"
