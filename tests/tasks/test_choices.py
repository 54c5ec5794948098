"""Choices and embeddings are learned from their rows of several texts, and their answers are JSON."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.checkpoints.initial import found_checkpoint, recipe_of
from lmjax.data import labelled
from lmjax.errors import UserError
from lmjax.settings import Finetune, LabelledSettings, LogSettings, OptimizerSettings, RowSettings, TrainSettings
from lmjax.tasks.choices import Choices
from lmjax.tasks.embeddings import Embeddings
from lmjax.tasks.resolved import resolve
from tests.fresh import decoder, encoder
from tests.running import lines_of, on_devices
from tests.tiny import changed

pytestmark = pytest.mark.usefixtures("compiled_once")
LETTERS = list("cdefghijklmnop")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints, and files of letters: the option with an a is right; two texts are alike if their letters are."""
    folder = tmp_path_factory.mktemp("choices")
    encoder(folder / "encoder")
    decoder(folder / "decoder")
    rng = np.random.default_rng(0)
    for name, count in (("train", 64), ("held", 32)):
        choices, pairs = [], []
        for number in range(count):
            options = [" ".join(rng.choice(LETTERS, 2)) for _ in range(2 + number % 2)]
            right = int(rng.integers(len(options)))
            options[right] += " a"
            choices.append({"startphrase": " ".join(rng.choice(LETTERS, 3)), "choices": options, "answer": right})
            one = rng.choice(LETTERS, 3)
            two = one if number % 2 else rng.choice(list("qrstuvwxyz"), 3)
            score = 5.0 if number % 2 else 0.0
            pairs.append({"sentence1": " ".join(one), "sentence2": " ".join(reversed(two)), "score": score})
        for kind, rows in (("swag", choices), ("pairs", pairs)):
            (folder / f"{kind}_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sources(folder, kind, form=""):
    return {
        field: (LabelledSettings(str(folder / f"{kind}_{name}.jsonl"), form=form),)
        for field, name in (("train", "train"), ("validation", "held"))
    }


def stage(folder, start, task, **rows):
    return Finetune(
        start=str(folder / start),
        task=task,
        rows=RowSettings(**({"sequence_length": 12, "batch_size": 8} | rows)),
        optimizer=OptimizerSettings(learning_rate=0.02, weight_decay=0.0),
        train=TrainSettings(steps=40),
        log=LogSettings(every=20, tensorboard=False),
    )


def last_line(recipe, workdir):
    assert lmjax.run(recipe, workdir, quiet=True).exit_code == 0
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][-1]


@pytest.mark.parametrize(("start", "language"), [("encoder", 0.0), ("decoder", 0.5)])
def test_the_right_option_is_learned_among_two_or_three(folder, no_charts, tmp_path, start, language):
    task = Choices(**sources(folder, "swag", "swag"), language=language)
    recipe = stage(folder, start, task, buckets=(9,))
    last = last_line(recipe, tmp_path / "run")
    assert last["validation_accuracy"] == 1.0
    saved = recipe_of(found_checkpoint(tmp_path / "run")).task.plain()["fields"]
    assert saved["options"] == 3 and saved["language"] == language, "what the data told of the task is kept"


def test_vectors_of_alike_texts_come_close(folder, no_charts, tmp_path):
    last = last_line(stage(folder, "encoder", Embeddings(**sources(folder, "pairs"))), tmp_path / "run")
    assert last["validation_spearman"] > 0.85
    assert last["validation_squared_error"] < 0.1


def resolved(folder, start, task):
    return resolve(stage(folder, start, task), folder=folder / f"resolved_{start}").opened()


def test_answers_have_a_probability_for_each_option_that_is_there(folder):
    task = Choices(**sources(folder, "swag", "swag")).prepared()
    examples = [labelled.Choices("c", ("a", "b"), 1, "f:1"), labelled.Choices("c", ("a", "b", "d"), None, "f:2")]
    rows = task.rows_of(examples, resolved(folder, "encoder", task))
    batch = rows.batch(np.arange(2))
    assert task.options == 3 and batch["tokens"].shape == (2, 3, 12)
    assert batch["labels"].tolist() == [1, 0] and batch["label_weights"].tolist() == [1, 0]
    answers = task.answers({"probabilities": np.array([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])}, rows, examples)
    assert answers == [
        {"choice": 1, "probabilities": [0.25, 0.75]},
        {"choice": 0, "probabilities": [0.5, 0.25, 0.25]},
    ]
    assert task.measured(answers[:1], examples[:1]) == {"accuracy": 1.0}
    four = labelled.Choices("c", ("a", "b", "d", "e"), 0, "f:3")
    with pytest.raises(UserError, match=r"^f:3: 4 options, expected at most 3.*set task\.options to 4"):
        task.rows_of([four], resolved(folder, "encoder", task))


def test_answers_are_the_cosine_of_two_texts_or_the_vector_of_one(folder):
    task = Embeddings(**sources(folder, "pairs"))
    examples = [labelled.Labelled(("c d", "e"), 2.5, "f:1"), labelled.Labelled(("c",), None, "f:2")]
    rows = task.rows_of(examples, resolved(folder, "decoder", task))
    batch = rows.batch(np.arange(2))
    assert batch["segments"].sum(axis=2).tolist() == [[2, 1], [1, 0]], "a decoder reads the tokens of a text alone"
    vectors = np.array([[[0.6, 0.8], [1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]], np.float32)
    answers = task.answers({"vectors": vectors}, rows, examples)
    assert answers[0]["cosine"] == pytest.approx(0.6) and answers[1] == {"vector": [0.0, 1.0]}
    with pytest.raises(UserError, match=r"^f:2: one text, expected two"):
        task.check_examples(examples)


def test_a_task_without_classes_takes_no_labels(folder):
    for kind in (Choices, Embeddings):
        with pytest.raises(UserError, match=r"labels = \('a',\): expected none"):
            kind(**sources(folder, "swag"), labels=("a",))


def test_a_source_of_another_kind_of_examples_is_refused(folder, tmp_path):
    task = Embeddings(**sources(folder, "swag", "swag"))
    with pytest.raises(
        UserError, match=r"task\.train\[0\]\.form = 'swag': expected a form of Labelled, it gives Choices"
    ):
        lmjax.run(stage(folder, "encoder", task), tmp_path / "run", quiet=True)


def losses(recipe, workdir, devices=1):
    with pytest.MonkeyPatch.context() as patch:
        on_devices(patch, devices)
        lmjax.run(recipe, workdir, quiet=True)
    return [line["loss"] for line in lines_of(workdir) if "loss" in line]


def test_microbatches_devices_and_a_stop_change_nothing_of_choices_in_buckets(folder, no_charts, tmp_path):
    task = Choices(**sources(folder, "swag", "swag"), language=0.5)
    recipe = changed(stage(folder, "decoder", task, buckets=(9,)), train__steps=6, log__every=1, checkpoint__every=3)
    recipe = changed(recipe, optimizer__schedule__kind="constant")
    whole = losses(recipe, tmp_path / "whole")
    np.testing.assert_allclose(losses(recipe, tmp_path / "devices", 2), whole, rtol=1e-4)
    np.testing.assert_allclose(losses(changed(recipe, train__microbatches=4), tmp_path / "parts"), whole, rtol=1e-4)
    losses(changed(recipe, train__steps=3), tmp_path / "stopped")
    assert losses(recipe, tmp_path / "stopped") == whole
