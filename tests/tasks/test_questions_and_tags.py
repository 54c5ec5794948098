"""Question answering and tags as fine-tuning stages on a tiny decoder: they learn and are measured; bad data."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import lmjax
from lmjax.checkpoints.initial import found_checkpoint, recipe_of
from lmjax.data.labelled_sets.questions import WRONG_SPAN
from lmjax.errors import UserError
from lmjax.settings import Finetune, LabelledSettings, LogSettings, OptimizerSettings, RowSettings, TokenizerSettings
from lmjax.stages.finetune import adapted, task_of
from lmjax.tasks.question_answering import QuestionAnswering
from lmjax.tasks.registry import task_named
from lmjax.tasks.resolved import resolve
from lmjax.tasks.tags import Tags
from lmjax.tasks.task import Session
from tests.running import lines_of, without_charts
from tests.tiny import changed, pretrain, text

THINGS, PLACES = ["cat", "dog", "hen", "pig", "cow", "bee"], ["mat", "box", "bed", "car", "hut", "den"]
RATE = OptimizerSettings(learning_rate=1e-2, weight_decay=0.0)


def passages(rng, count, taken):
    """A thing and a place among other words; a question asks for either, and in a fifth of the passages it is not."""
    rows = []
    while (number := len(rows)) < count:
        asked, words = int(rng.integers(2)), [str(rng.choice(THINGS)), str(rng.choice(PLACES))]
        answer = words[asked] if number % 5 else "."
        words[asked] = answer
        order = rng.permutation([*words, *rng.choice(["in", "."], rng.integers(2, 6))])
        passage = " ".join(order)
        if passage in taken:
            continue
        taken.add(passage)
        place = [{"text": answer, "answer_start": passage.index(answer)}] if number % 5 else []
        row = {"id": f"q{number}", "question": ["it", "in"][asked], "answers": place, "is_impossible": not place}
        rows.append((passage, row))
    return {"data": [{"paragraphs": [{"context": passage, "qas": [row]}]} for passage, row in rows]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data of both tasks, and a tiny decoder that is hardly trained, whose context is shorter than a row."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(0)
    taken = set()  # no passage is in both files
    for name, count in (("train", 240), ("held", 40)):
        (folder / f"{name}.json").write_text(json.dumps(passages(rng, count, taken)))
        words = [rng.choice([*THINGS, *PLACES, "in", "."], rng.integers(3, 9)) for _ in range(count)]
        tags = [["B-THING" if w in THINGS else "B-PLACE" if w in PLACES else "O" for w in each] for each in words]
        lines = ["".join(f"{w} {t}\n" for w, t in zip(*each, strict=True)) for each in zip(words, tags, strict=True)]
        (folder / f"{name}.conll").write_text("\n".join(lines))
    (folder / "text.txt").write_text("\n".join(" ".join(["it", *THINGS, "in", *PLACES, "."]) for _ in range(40)))
    words = TokenizerSettings(kind="wordpiece", vocab_size=57)
    base = pretrain(text(folder / "text.txt"), name="base", train__steps=1, tokenizer=words)
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        lmjax.run(base, folder / "base", quiet=True)
    return folder


def stage(folder, task, **changes):
    own = Finetune(
        start=str(folder / "base"),
        task=task,
        rows=RowSettings(sequence_length=32, buckets=(16,), batch_size=16),
        optimizer=RATE,
        log=LogSettings(every=20, tensorboard=False),
    )
    return changed(own, **{"train__steps": 120, "evaluation__every": 60, **changes})


def sources(folder, name, form, suffix):
    return (LabelledSettings(path=str(folder / f"{name}.{suffix}"), form=form),)


def questions(folder, **changes):
    train, held = (sources(folder, name, "squad", "json") for name in ("train", "held"))
    return QuestionAnswering(**{"train": train, "validation": held, "question_length": 4, "stride": 8} | changes)


def tags(folder, **changes):
    train, held = (sources(folder, name, "conll", "conll") for name in ("train", "held"))
    return Tags(**{"train": train, "validation": held, "stride": 8} | changes)


def test_tags_are_learned_and_measured_as_conlleval(folder, tmp_path, no_charts):
    result = lmjax.run(stage(folder, tags(folder)), tmp_path / "tags", quiet=True)
    assert result.exit_code == 0
    last = lines_of(tmp_path / "tags", "validation_f1")[-1]
    assert last["validation_f1"] == last["validation_strict_f1"] == 1.0
    assert last["validation_accuracy"] == last["validation_f1_THING"] == 1.0
    task = task_named(recipe_of(found_checkpoint(tmp_path / "tags")).task, "task")
    assert task.labels == ("O", "B-PLACE", "B-THING")


def test_answers_are_learned_and_measured_as_squad(folder, tmp_path, no_charts):
    recipe = stage(folder, questions(folder), train__steps=280, evaluation__every=280)
    result = lmjax.run(recipe, tmp_path / "questions", quiet=True)
    assert result.exit_code == 0
    (last,) = lines_of(tmp_path / "questions", "validation_exact")
    names = {name.removeprefix("validation_") for name in last}
    assert {*QuestionAnswering.metrics, "HasAns_f1", "NoAns_f1", "best_f1_threshold", "spans"} <= names
    assert last["validation_HasAns_exact"] > 0.9  # one of four to eight words by chance
    assert last["validation_best_f1"] >= last["validation_f1"]


def opened(recipe, folder):
    """The data of a stage as it opens them, and what it says of them."""
    resolved = resolve(recipe, folder=folder).opened()
    task, said = task_of(resolved), []
    display = SimpleNamespace(say=said.append)
    return task.open(adapted(resolved, task), Session(stop=None, display=display)), said


def test_a_passage_on_both_sides_and_skipped_records_are_told(folder, tmp_path):
    contents = json.loads((folder / "held.json").read_text())
    contents["data"] += json.loads((folder / "train.json").read_text())["data"][:3]
    for number, article in enumerate(contents["data"]):
        article["paragraphs"][0]["qas"][0]["id"] = str(number)
    contents["data"][0]["paragraphs"][0]["qas"][0]["answers"] = [{"text": "x", "answer_start": 0}]
    contents["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"] = False
    (tmp_path / "both.json").write_text(json.dumps(contents))
    held = (LabelledSettings(path=str(tmp_path / "both.json"), form="squad", on_bad_record="skip"),)
    data, said = opened(stage(folder, questions(folder, validation=held)), tmp_path)
    assert said == [
        f"task.validation[0]: 1 records skipped: {WRONG_SPAN}",
        "warning: 3 of the 42 passages of task.validation are in task.train, too: what was learned of them is "
        "measured on them; give other articles to either",
    ]
    assert [len(rows.questions) for rows in data.validation] == [42]
    assert opened(stage(folder, questions(folder)), tmp_path)[1] == []


def test_questions_and_words_without_labels_are_no_training_data(folder, tmp_path):
    row = {"id": "q", "question": "it", "context": "cat in box"}
    (tmp_path / "bare.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "bare.conll").write_text("cat\nin\n")
    bare = (LabelledSettings(path=str(tmp_path / "bare.jsonl"), form="questions"),)
    with pytest.raises(UserError, match=r"bare\.jsonl:1: expected an answer, or is_impossible: found neither"):
        opened(stage(folder, questions(folder, train=bare)), tmp_path)
    words = (LabelledSettings(path=str(tmp_path / "bare.conll"), form="conll"),)
    for changes in ({"train": words}, {"validation": words}, {"train": words, "labels": ("O", "B-PLACE", "B-THING")}):
        with pytest.raises(UserError, match=r"bare\.conll:1: expected a tag for each word: found none"):
            opened(stage(folder, tags(folder, **changes)), tmp_path)


def test_a_tag_that_is_only_in_the_validation_data_is_an_error_with_its_line(folder, tmp_path):
    (tmp_path / "held.conll").write_text("cat B-THING\nin O\n\nbox B-PLAICE\n")
    held = (LabelledSettings(path=str(tmp_path / "held.conll"), form="conll"),)
    with pytest.raises(UserError, match=r"held\.conll:4: the tag 'B-PLAICE'.*did you mean 'B-PLACE'"):
        opened(stage(folder, tags(folder, validation=held)), tmp_path)
