"""Question answering and tags as fine-tuning stages: they learn, are measured, and predict; bad data is told."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import lmjax
from lmjax.checkpoints.initial import found_checkpoint, recipe_of
from lmjax.cli import main
from lmjax.data.labelled_sets import read_examples
from lmjax.data.labelled_sets.questions import WRONG_SPAN
from lmjax.errors import UserError
from lmjax.evaluate.squad import question_metrics
from lmjax.runs.predict import open_task
from lmjax.settings import (
    Finetune,
    LabelledSettings,
    LogSettings,
    OptimizerSettings,
    PretrainMasked,
    RowSettings,
    TokenizerSettings,
)
from lmjax.stages.finetune import adapted, task_of
from lmjax.tasks.choices import Choices
from lmjax.tasks.question_answering import QuestionAnswering
from lmjax.tasks.registry import task_named
from lmjax.tasks.resolved import resolve
from lmjax.tasks.sentences import Sentences
from lmjax.tasks.tags import Tags
from lmjax.tasks.task import Session
from tests.running import lines_of, without_charts
from tests.tiny import changed, model, pretrain, text

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
    """Data of both tasks, and a tiny encoder and a tiny decoder, hardly trained, whose context is less than a row."""
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
    decoder = pretrain(text(folder / "text.txt"), train__steps=1, tokenizer=words)
    encoder = model(attention__causal=False, positions__segment_types=2)
    data = dataclasses.replace(decoder.data, sequence_length=16)
    masked = PretrainMasked(name="tiny", data=data, tokenizer=words, model=encoder, pairs=False, train=decoder.train)
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        lmjax.run(decoder, folder / "decoder", quiet=True)
        lmjax.run(masked, folder / "encoder", quiet=True)
    return folder


def stage(folder, task, start="encoder", **changes):
    own = Finetune(
        start=str(folder / start),
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


@pytest.fixture(scope="module")
def tagger(folder):
    """The workdir of tags that were learned on the encoder."""
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        assert lmjax.run(stage(folder, tags(folder)), folder / "tags", quiet=True).exit_code == 0
    return folder / "tags"


@pytest.fixture(scope="module")
def answerer(folder):
    """The workdir of questions that were learned on the decoder."""
    recipe = stage(folder, questions(folder), "decoder", train__steps=280, evaluation__every=280)
    with pytest.MonkeyPatch.context() as patch:
        without_charts(patch)
        assert lmjax.run(recipe, folder / "questions", quiet=True).exit_code == 0
    return folder / "questions"


def test_tags_are_learned_and_measured_as_conlleval(tagger):
    last = lines_of(tagger, "validation_f1")[-1]
    assert last["validation_f1"] == last["validation_strict_f1"] == 1.0
    assert last["validation_accuracy"] == last["validation_f1_THING"] == 1.0
    task = task_named(recipe_of(found_checkpoint(tagger)).task, "task")
    assert task.labels == ("O", "B-PLACE", "B-THING")


def test_answers_are_learned_and_measured_as_squad(answerer):
    (last,) = lines_of(answerer, "validation_exact")
    names = {name.removeprefix("validation_") for name in last}
    assert {*QuestionAnswering.metrics, "HasAns_f1", "NoAns_f1", "best_f1_threshold", "spans"} <= names
    assert last["validation_HasAns_exact"] > 0.9  # one of four to eight words by chance
    assert last["validation_best_f1"] >= last["validation_f1"]


def predicted(capsys, *words):
    """The lines of JSON that `lmjax predict` prints, and what it says to standard error."""
    assert main(["predict", *map(str, words)]) == 0
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def test_entities_of_a_file_have_the_characters_of_its_texts(tagger, tmp_path, capsys):
    lines = [{"text": " . cat  in\u3000. box"}, {"words": ["dog", "in", "hut"]}, {"words": [1]}, {"text": "in ."}]
    (tmp_path / "file.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, said = predicted(capsys, tagger, "--input", tmp_path / "file.jsonl", "--skip-bad")
    assert "skipped: " in said and "file.jsonl:3: words is no text: 1" in said
    assert [each["where"].rpartition(":")[2] for each in found] == ["1", "2", "4"]
    entities = [[(e["kind"], e["text"], e["begin"], e["end"]) for e in each["entities"]] for each in found]
    assert entities == [
        [("THING", "cat", 3, 6), ("PLACE", "box", 13, 16)],
        [("THING", "dog", 0, 3), ("PLACE", "hut", 7, 10)],
        [],
    ]
    assert found[0]["text"] == lines[0]["text"]
    assert found[1]["tags"] == ["B-THING", "O", "B-PLACE"]
    (tmp_path / "file.txt").write_text("cat in box\r\n\n" + "dog . " * 60)  # a sentence of several rows
    plain, _ = predicted(capsys, tagger, "--input", tmp_path / "file.txt")
    assert [len(each["entities"]) for each in plain] == [2, 60]


def test_answers_of_a_file_are_those_of_the_evaluation(answerer, folder, tmp_path, capsys):
    found, _ = predicted(capsys, answerer, "--input", folder / "held.json", "--form", "squad")
    questions = read_examples(LabelledSettings(path=str(folder / "held.json"), form="squad")).items
    assert [each["id"] for each in found] == [each.id for each in questions]
    references = [[text for text, _ in each.answers] for each in questions]
    measured = question_metrics([each["text"] for each in found], references)
    (last,) = lines_of(answerer, "validation_exact")
    assert measured["exact"] == pytest.approx(last["validation_exact"])
    for each, question in zip(found, questions, strict=True):
        assert not each["text"] or question.passage[each["begin"] : each["end"]] == each["text"]
        assert sum(span["probability"] for span in each["n_best"]) + each["null_probability"] == pytest.approx(1)
    few, _ = predicted(
        capsys, answerer, "--input", folder / "held.json", "--form", "squad", "--n-best", 2, "--null-threshold", -1e9
    )
    assert {len(each["n_best"]) for each in few} - {1} == {2}  # one where a passage has no other span of its own text
    assert {each["text"] for each in few} == {""}
    squad = ["--input", folder / "held.json", "--form", "squad"]
    tuned, _ = predicted(capsys, answerer, *squad, "--null-threshold", "tuned")
    measured = question_metrics([each["text"] for each in tuned], references)
    assert measured["f1"] == pytest.approx(last["validation_best_f1"])


def test_one_example_is_a_table_or_a_line(answerer, tagger, capsys):
    assert main(["predict", str(answerer), "--text", "in", "--text", ". cat in . box", "--null-threshold", "99"]) == 0
    table = capsys.readouterr().out
    assert "box" in table and "11 to 14" in table and "probability" in table
    assert main(["predict", str(tagger), "--text", "cat in box"]) == 0
    assert "B-THING" in capsys.readouterr().out
    (line,), _ = predicted(capsys, tagger, "--text", "cat", "--json")
    assert [each["text"] for each in line["entities"]] == ["cat"]


def test_a_text_of_several_windows_may_have_another_stride_than_that_of_the_task(tagger, capsys):
    texts = ["--text", " ".join(["cat", "in", "box"] * 20)]
    of_each = [predicted(capsys, tagger, *texts, "--stride", stride, "--json")[0][0] for stride in (30, 8)]
    assert [len(each["tags"]) for each in of_each] == [60, 60]
    assert of_each[0]["probabilities"] != of_each[1]["probabilities"], "words are read in other windows"


def test_classes_and_choices_are_predicted_from_records_and_texts(folder, tmp_path, capsys, no_charts):
    (tmp_path / "classes.jsonl").write_text(
        '{"text": "cat", "label": "thing"}\n{"text": "box", "label": "place"}\n' * 8
    )
    (tmp_path / "choices.jsonl").write_text('{"context": "cat", "options": ["in", "box"], "label": 1}\n' * 16)
    for task in (
        Sentences(train=(LabelledSettings(path=str(tmp_path / "classes.jsonl")),)),
        Choices(train=(LabelledSettings(path=str(tmp_path / "choices.jsonl"), form="options"),)),
    ):
        lmjax.run(stage(folder, task, train__steps=30), tmp_path / type(task).__name__, quiet=True)
    classes, _ = predicted(capsys, tmp_path / "Sentences", "--input", tmp_path / "classes.jsonl")
    assert [each["label"] for each in classes] == ["thing", "place"] * 8
    assert all(sum(each["probabilities"].values()) == pytest.approx(1) for each in classes)
    (tmp_path / "file.txt").write_text("box\ncat\n")
    plain, _ = predicted(capsys, tmp_path / "Sentences", "--input", tmp_path / "file.txt")
    assert [each["label"] for each in plain] == ["place", "thing"]
    (tmp_path / "other.jsonl").write_text('{"opinion": "box", "stars": "1"}\n')
    (other,), _ = predicted(capsys, tmp_path / "Sentences", "--input", tmp_path / "other.jsonl", "--fields", "opinion")
    assert other["label"] == "place"
    assert main(["predict", str(tmp_path / "Sentences"), "--input", str(tmp_path / "other.jsonl")]) == 2
    assert "--fields = (): expected the columns of the texts" in capsys.readouterr().err
    asked = ["--text", "cat", "--text", "box", "--text", "in", "--json"]
    (choice,), _ = predicted(capsys, tmp_path / "Choices", *asked)
    assert choice["choice"] == 0 and sum(choice["probabilities"]) == pytest.approx(1)
    asked = [*asked, "--text", "hut", "--options", 3]
    (choice,), _ = predicted(capsys, tmp_path / "Choices", *asked)
    assert len(choice["probabilities"]) == 3 and sum(choice["probabilities"]) == pytest.approx(1)
    assert main(["predict", str(tmp_path / "Sentences"), "--text", "box"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [name for line in lines for name in ("thing", "place") if name in line] == ["place", "thing"]


def test_parameters_that_are_no_numbers_predict_nothing(answerer):
    tuned = open_task(answerer)
    broken = dataclasses.replace(tuned, params=jax.tree.map(lambda leaf: leaf * np.nan, tuned.params))
    example = tuned.task.example(["in", "cat in box"], "f:1")
    with pytest.raises(UserError, match="of f:1 = nan: expected numbers; training diverged"):
        list(broken.answers([example]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encoder", "--text", "cat"], "expected a checkpoint of a fine-tuned task (Sentences, Choices"),
        (["tags", "--text", "cat", "--text", "in"], "expected one text with words"),
        (["questions", "--text", "cat"], "expected a question and its passage"),
        (["questions", "--input", "file.jsonl"], "file.jsonl:2: no field 'context'"),
        (["questions", "--input", "file.jsonl", "--form", "nosuch"], "--form = 'nosuch': expected a known form"),
        (["questions", "--input", "absent.jsonl"], "absent.jsonl"),
        (["questions", "--input", "empty.jsonl"], "expected a file with examples"),
        (["questions"], "a file, or --text, and not both"),
        (["questions", "--input", "file.jsonl", "--fields", "a"], "--fields = 'a': expected none, as the form"),
        (
            ["tags", "--input", "file.jsonl", "--form", "questions"],
            "--form = 'questions': expected a form of TaggedWords",
        ),
        (
            ["tags", "--text", "cat", "--n-best", "3"],
            "--n-best = 3: expected an option that the checkpoint's task, Tags",
        ),
        (
            ["moved", "--text", "in", "--text", "cat", "--null-threshold", "tuned"],
            "metrics.jsonl: no such file; expected the record",
        ),
        (["questions", "--text", "a", "--text", "b", "--n-best", "0"], "n_best = 0: expected a number above 0"),
        (["tags", "--text", "cat " * 40, "--stride", "31"], "stride = 31: expected 1 to 30, the tokens of a window"),
    ],
)
def test_what_cannot_be_predicted_is_an_error_before_anything_is_printed(
    words, message, folder, tagger, answerer, tmp_path, monkeypatch, capsys
):
    good = {"question": "in", "context": "cat in box"}
    (tmp_path / "file.jsonl").write_text(json.dumps(good) + "\n" + json.dumps({"question": "in"}) + "\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    monkeypatch.chdir(tmp_path)
    if words[0] == "moved" and not (folder / "moved").exists():
        shutil.copytree(answerer / "checkpoints", folder / "moved" / "checkpoints")
    assert main(["predict", str(folder / words[0]), *words[1:]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


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
