"""Text to text: an encoder-decoder learns to write labels and answers, and what it writes is what is marked."""

import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest

import lmjax
from lmjax.errors import UserError
from lmjax.model.families import model_of
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    Finetune,
    HeadSettings,
    LabelledSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
    PretrainSpans,
    RowSettings,
    TextToTextSettings,
    TokenizerSettings,
)
from lmjax.settings.masking import sentinel_symbols
from lmjax.settings.recipe_files import to_json
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.text_to_text import TextToText, _batches, marked
from tests.running import values_of
from tests.tiny import LOG, NO_DECAY, changed, text

MODEL = ModelSettings(
    layers=1,
    encoder_layers=1,
    width=32,
    context=32,
    vocab_size=264,
    attention=AttentionSettings(heads=2, scaled=False, bias=False),
    norm=NormSettings(kind="rmsnorm"),
    positions=PositionSettings(kind="relative"),
    head=HeadSettings(scaled=True),
)


def records(folder, name, count, seed):
    rng = random.Random(seed)
    rows = [
        {"input": "".join(rng.choices(letters, k=6)), "target": label}
        for letters, label in (rng.choice([("abc", "low"), ("xyz", "high")]) for _ in range(count))
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TextToTextSettings(LabelledSettings(str(path), fields=("input",), label="target"), prefix="letters: ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compiled_once):
    """A tiny T5 that is pretrained for two steps, and examples of two labels."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("letters: abc xyz low high\n" * 60)
    base = PretrainSpans(
        name="base",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=264, user_symbols=sentinel_symbols(4)),
        data=DataSettings(train=text(folder / "text.txt"), validation=text(folder / "text.txt"), sequence_length=32),
        model=MODEL,
        log=LOG,
    )
    lmjax.run(changed(base, train__steps=2), folder / "base", quiet=True)
    return folder


@pytest.fixture
def stage(folder):
    task = TextToText(
        train=(records(folder, "train", 200, 0),), validation=(records(folder, "held", 24, 1),), target_length=16
    )
    return Finetune(
        start=str(folder / "base"),
        task=task,
        rows=RowSettings(sequence_length=32, batch_size=8),
        optimizer=changed(NO_DECAY, schedule__kind="constant"),
        log=LOG,
    )


def test_it_learns_to_write_labels_and_its_record_has_the_share_of_exact_ones(stage, no_charts, tmp_path, monkeypatch):
    monkeypatch.setattr("lmjax.tasks.text_to_text.INPUTS_AT_ONCE", 7)  # of 24
    stage = changed(stage, train__steps=150, evaluation__every=75, task__beams=3)
    result = lmjax.run(stage, tmp_path / "run", quiet=True)
    exact = values_of(tmp_path / "run", "validation_exact_match")
    assert sorted(exact) == [75, 150]
    assert exact[150] == 1.0 == values_of(tmp_path / "run", "validation_f1")[150], "two sets of letters tell the labels"
    assert result.summary["validation_loss"] < 0.1
    assert json.loads(to_json(stage))["task"]["fields"]["target_length"] == 16
    trained = lmjax.load(tmp_path / "run")
    for prompt, label in (("letters: cababc", "low"), ("letters: zyxxyz", "high")):
        assert trained.generate(prompt, max_tokens=16, temperature=0.0)[0].text == label


def test_a_cut_text_an_example_without_a_label_and_buckets_are_said(stage, folder, tmp_path, capsys):
    (folder / "long.jsonl").write_text(
        json.dumps({"input": "a" * 99, "target": "b"}) + "\n" + json.dumps({"input": "c"})
    )
    source = TextToTextSettings(
        LabelledSettings(str(folder / "long.jsonl"), fields=("input",), label="target", on_bad_record="skip")
    )
    lmjax.run(changed(stage, task__train=(source,), train__steps=1), tmp_path / "run")
    said = capsys.readouterr().out
    assert sorted(values_of(tmp_path / "run", "validation_exact_match")) == [1], "written greedily"
    assert "task.train[0]: 1 texts were cut" in said and "task.train[0]: 1 records skipped: no label" in said
    strict = changed(source, source__on_bad_record="error")
    with pytest.raises(UserError, match=r"long.jsonl:2: no label"):
        lmjax.run(changed(stage, task__train=(strict,), train__steps=1), tmp_path / "strict", quiet=True)
    with pytest.raises(UserError, match=r"rows.buckets = \(16,\): expected none for text to text"):
        lmjax.run(changed(stage, rows__buckets=(16,)), tmp_path / "buckets", quiet=True)


def test_a_model_of_one_stack_is_refused(stage):
    with pytest.raises(UserError, match=r"a model of one stack.*expected an encoder-decoder"):
        stage.task.adapted(ModelSettings(), 32)
    assert stage.task.adapted(MODEL, 32) == MODEL


def test_inputs_are_read_in_batches_of_one_size_each_once():
    ids = [[0] * length for length in np.random.default_rng(0).integers(1, 30, 150)]
    batches = list(_batches(ids))
    assert {len(numbers) for numbers in batches} == {64}
    assert sorted({number for numbers in batches for number in numbers}) == list(range(150))
    assert [number for numbers in batches for number in numbers][:150] == sorted(range(150), key=lambda n: -len(ids[n]))
    assert list(_batches(ids[:5])) == [sorted(range(5), key=lambda n: -len(ids[n]))]


def test_marks_ignore_blanks_around_a_text_and_take_the_best_target():
    assert marked(" low ", ("high", "low")) == {"validation_exact_match": 1.0, "validation_f1": 1.0}
    assert marked("the red cat", ("a red dog",)) == {"validation_exact_match": 0.0, "validation_f1": 0.5}
    assert marked("unanswerable", ("unanswerable",)) == {"validation_exact_match": 1.0, "validation_f1": 1.0}
    assert marked("the cat", ("unanswerable",)) == {"validation_exact_match": 0.0, "validation_f1": 0.0}


def test_the_loss_covers_the_entries_of_the_tokenizer_alone(stage):
    """T5's table has 28 rows more than its tokenizer has entries: they have no probability."""
    entries, model = 260, model_of(MODEL)
    params = model.init(jax.random.key(0))
    loss_fn = jax.jit(stage.task.loss(model, ResolvedStage(stage, stage, Path(), entries=entries)), static_argnums=2)
    names = ("tokens", "targets", "inputs", "positions", "input_positions", "segments", "input_segments")
    batch = {name: np.ones((2, 5), np.int32) for name in names} | {"weights": np.ones((2, 5), np.float32)}

    def loss(row, value):
        return float(loss_fn(params | {"tokens": params["tokens"].at[row, 0].set(value)}, batch, None)[0].mean())

    assert loss(262, 100.0) == loss(262, -100.0) > 1.0
    assert loss(entries - 1, 100.0) != loss(entries - 1, -100.0)
