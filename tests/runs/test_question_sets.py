"""`lmjax evaluate --task`: sets of questions put to a trained model, printed, and written answer by answer."""

import dataclasses
import json

import numpy as np
import pytest

import lmjax
from lmjax.cli import main
from lmjax.evaluate.questions import Writing
from lmjax.evaluate.sets import SETS
from lmjax.runs import question_sets
from tests.tiny import write_rows

ROWS = [
    {"ctx": "the", "endings": ["cat", "sea", "mat", "a"], "label": 0},
    {"ctx": "a", "endings": ["mat", "on", "cat", "ran"], "label": 2},
    {"ctx": "on", "endings": ["a", "the", "sea", "cat"], "label": 1},
]


@pytest.fixture(scope="module")
def trained(whole):
    return whole[1]


@pytest.fixture
def sets(tmp_path):
    """The folder of the sets: hellaswag and lambada."""
    for name, rows in (("hellaswag", ROWS), ("lambada", [{"text": "the cat sat"}, {"text": "sea"}])):
        path = tmp_path / SETS[name].file
        path.parent.mkdir()
        write_rows(path, rows)
    return tmp_path


def printed(capsys, *words):
    code = main(["evaluate", *map(str, words)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def log_prob(model, context, choice):
    """By one forward pass over the end of text, the context and the choice."""
    ids = [256, *f"{context}{choice}".encode()]
    logits = np.asarray(model.apply([ids[:-1]]), np.float64)[0]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p[np.arange(len(ids) - 1), ids[1:]][-len(choice) :].sum()


def test_the_accuracies_are_those_of_a_forward_pass_for_each_choice(trained, sets, tmp_path, capsys):
    words = (trained, "--task", "hellaswag", "--task-data", sets, "--out", tmp_path / "answers.jsonl", "--json")
    (marks,) = json.loads(printed(capsys, *words))
    model = lmjax.load(trained)
    scores = [[log_prob(model, row["ctx"], f" {ending}") for ending in row["endings"]] for row in ROWS]
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    for line, row, expected in zip(lines, ROWS, scores, strict=True):
        assert line["log_probs"] == pytest.approx(expected, abs=1e-5)
        assert (line["gold"], line["choices"]) == (row["label"], [f" {ending}" for ending in row["endings"]])
    rights = [int(np.argmax(own)) == row["label"] for own, row in zip(scores, ROWS, strict=True)]
    assert marks["accuracy"] == pytest.approx(np.mean(rights))
    assert marks["accuracy_error"] == pytest.approx(np.std(rights, ddof=1) / np.sqrt(3))
    per_byte = [own / np.array([len(e) + 1 for e in row["endings"]]) for own, row in zip(scores, ROWS, strict=True)]
    right = [int(np.argmax(own)) == row["label"] for own, row in zip(per_byte, ROWS, strict=True)]
    assert marks["per_byte"] == pytest.approx(np.mean(right))
    assert (marks["questions"], marks["shots"], marks["left_out"], marks["cut"]) == (3, 0, 0, 0)


def test_the_same_model_fine_tuned_stands_beside_it_in_table_file_and_plot(
    trained, sets, tmp_path, capsys, monkeypatch
):
    shown = []
    monkeypatch.setattr(question_sets, "write_shots", lambda path, marks: shown.append((path, marks)))
    files = ("--out", tmp_path / "answers.jsonl", "--plot", tmp_path / "shots.png")
    asked = ("--task", "hellaswag", "--task-data", sets, "--shots", "0,1", "--fine-tuned", trained)
    lines = printed(capsys, trained, *asked, *files).splitlines()
    assert [line.split()[:3] for line in lines] == [
        *(["hellaswag", shots, "shots"] for shots in "01"),
        ["hellaswag", "fine-tuned", "3"],
    ]
    assert lines[0].split()[3:] == lines[2].split()[2:]  # it is the same checkpoint here
    ((path, marks),) = shown
    assert path == tmp_path / "shots.png"
    assert [(mark.task, mark.measure, mark.shots, mark.trained, mark.guessed) for mark in marks] == [
        *(("hellaswag", "accuracy", shots, False, 0.25) for shots in (0, 1)),
        ("hellaswag", "accuracy", 0, True, 0.25),
    ]
    assert f"{marks[0].value:.4f}" == lines[0].split()[lines[0].split().index("accuracy") + 1]
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [record.get("fine_tuned", False) for record in records] == [False] * 6 + [True] * 3


def test_a_mesh_and_a_limit_give_the_same_answers(trained, sets, tmp_path, capsys):
    answers = {}
    for name, more in {"one": (), "cut": ("--mesh", "data=2,fsdp=4"), "two": ("--limit", "2")}.items():
        out = tmp_path / f"{name}.jsonl"
        printed(capsys, trained, "--task", "hellaswag", "--task-data", sets, "--out", out, *more)
        answers[name] = [json.loads(line)["log_probs"] for line in out.read_text().splitlines()]
    np.testing.assert_allclose(answers["cut"], answers["one"], atol=1e-5)
    np.testing.assert_allclose(answers["two"], answers["one"][:2], atol=1e-5)


def test_shots_that_do_not_fit_are_dropped_and_counted(trained, sets, tmp_path, capsys):
    """The context has 16 tokens: a question of up to 8 with one shot fits, and with two it does not."""
    words = (
        "--task",
        "hellaswag",
        "--task-data",
        sets,
        "--shots",
        "0,2",
        "--json",
        "--out",
        tmp_path / "answers.jsonl",
    )
    none, two = json.loads(printed(capsys, trained, *words))
    assert (none["shots"], none["fewer_shots"], two["shots"]) == (0, 0, 2)
    assert two["fewer_shots"] == 3 and two["cut"] == 0
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["shots"] for line in lines] == [0, 0, 0, 2, 2, 2]
    assert all(line["shots_left"] < max(line["shots"], 1) for line in lines)


def test_a_last_word_has_both_protocols_and_a_perplexity(trained, sets, capsys):
    words = (trained, "--task", "lambada", "--task-data", sets)
    (marks,) = json.loads(printed(capsys, *words, "--json"))
    model = lmjax.load(trained)
    loss = -log_prob(model, "the cat", " sat")
    assert marks["perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)
    ids = [256, *b"the cat sat"]
    likeliest = np.asarray(model.apply([ids[:-1]]))[0].argmax(-1)[-4:] == ids[-4:]
    assert (marks["last_word"], marks["last_token"]) == (likeliest.all(), likeliest[-1])
    assert (marks["questions"], marks["left_out"], marks["last_word_error"]) == (1, 1, None)
    line = printed(capsys, *words)
    assert line.startswith("lambada                 0 shots       1 questions  last_word ") and "1 left out" in line


@pytest.fixture
def translations(tmp_path, monkeypatch):
    """The folder of sets with fr_en, whose answers have up to 4 tokens and end with a line.

    Of the context of 16 tokens that leaves 12 to a prompt, with the token before every text.
    """
    writing = Writing(4, ("\n",), lambda text, references: {"begins": float(text[:1] == references[0])})
    monkeypatch.setitem(SETS, "fr_en", dataclasses.replace(SETS["fr_en"], writing=writing))
    path = tmp_path / SETS["fr_en"].file
    path.parent.mkdir(exist_ok=True)
    path.write_text("fr,en\na,t\nb,o\nc,\n")
    return tmp_path


def written(model, ids):
    """What the likeliest of four forward passes say, up to the end of a line."""
    tokens = list(ids)
    for _ in range(4):
        tokens.append(int(np.asarray(model.apply([tokens]))[0, -1, :257].argmax()))
    return model.tokenizer.decode(tokens[len(ids) :]).split("\n")[0].strip()


def test_answers_are_written_and_marked(trained, translations, tmp_path, capsys):
    words = (trained, "--task", "fr_en", "--task-data", translations, "--shots", "0,1", "--json")
    marks = json.loads(printed(capsys, *words, "--out", tmp_path / "out.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model = lmjax.load(trained)
    prompts = [b"a =", b"b =", b"b = o\na =", b"a = t\nb ="]
    assert [line["answer"] for line in lines] == [written(model, [256, *prompt]) for prompt in prompts]
    rights = [float(line["answer"][:1] == right) for line, right in zip(lines, "toto", strict=True)]
    assert [line["begins"] for line in lines] == rights
    assert [one["begins"] for one in marks] == [np.mean(rights[:2]), np.mean(rights[2:])]
    counts = [(one["shots"], one["questions"], one["left_out"], one["fewer_shots"], one["cut"]) for one in marks]
    assert counts == [(0, 2, 1, 0, 0), (1, 2, 1, 0, 0)]
    assert [(line["references"], line["context"]) for line in lines[:2]] == [(["t"], "a ="), (["o"], "b =")]


def test_a_mesh_writes_the_same_answers(trained, translations, tmp_path, capsys):
    words = (trained, "--task", "fr_en", "--task-data", translations, "--shots", "1", "--out")
    printed(capsys, *words, tmp_path / "one.jsonl")
    printed(capsys, *words, tmp_path / "cut.jsonl", "--mesh", "data=2,fsdp=4")
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "cut.jsonl").read_text()


def test_a_prompt_that_is_too_long_loses_its_shots_or_is_an_error(trained, translations, capsys):
    (translations / SETS["fr_en"].file).write_text("fr,en\nbcdef,o\nbcdeg,o\nmer au loin,s\n")
    words = [trained, "--task", "fr_en", "--task-data", translations, "--shots", "1"]
    (marks,) = json.loads(printed(capsys, *words, "--json"))
    assert (marks["questions"], marks["fewer_shots"], marks["cut"]) == (3, 3, 1)
    assert main(["evaluate", *map(str, words), "--too-long", "error"]) == 2
    message = "fr_en, 1 shots, the question 'bcdef =': its prompt is longer than the model's context; ask for fewer"
    assert message in capsys.readouterr().err
    words = [trained, "--task", "hellaswag", "--task-data", hellaswag_of(translations), "--shots", "2"]
    assert main(["evaluate", *map(str, words), "--too-long", "error"]) == 2
    assert "hellaswag, 2 shots, the question 'the'" in capsys.readouterr().err
    printed(capsys, *words[:-1], "0", "--too-long", "error")


def hellaswag_of(folder):
    path = folder / SETS["hellaswag"].file
    path.parent.mkdir(exist_ok=True)
    write_rows(path, ROWS)
    return folder


def test_groups_have_marks_of_their_own(trained, tmp_path, monkeypatch, capsys):
    """Two subjects of three questions in the form of MMLU, of which one is left out, and the pool holds another."""
    monkeypatch.setitem(SETS, "mmlu", dataclasses.replace(SETS["mmlu"], description=""))
    row = '"{}","{}","a","b","c","d","{}"\n'.format
    test = [row("x", "1", "A"), row("y", "2", "B"), row("x", "3", "C"), row("y", "4", "E")]
    pool = [row("x", "1", "A"), row("x", "5", "D"), row("y", "6", "F"), row("y", "7", "B")]
    for file, rows in ((SETS["mmlu"].file, test), (SETS["mmlu"].pool, pool)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("".join(rows))
    words = (trained, "--task", "mmlu", "--task-data", tmp_path, "--shots", "1", "--out", tmp_path / "out.jsonl")
    (marks,) = json.loads(printed(capsys, *words, "--json"))
    assert [marks[name] for name in ("questions", "left_out", "pool_left_out", "in_pool")] == [3, 1, 1, 1]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines] == ["x", "y", "x"]
    x = np.mean([lines[0]["accuracy"], lines[2]["accuracy"]])
    assert {name: (own["questions"], own["accuracy"]) for name, own in marks["groups"].items()} == {
        "x": (2, x),
        "y": (1, lines[1]["accuracy"]),
    }
    line = printed(capsys, *words[:-2])
    assert "1 left out  1 left out of the pool  1 in the pool, too" in line


def test_the_first_prompt_of_each_set_can_be_read(trained, sets, translations, capsys):
    words = (trained, "--task", "fr_en,hellaswag", "--task-data", translations, "--shots", "0,1", "--show-prompt")
    printed_all = printed(capsys, *words)
    assert printed_all.startswith(
        'fr_en, 0 shots:\na =\n{"references": ["t"]}\n\nfr_en, 1 shots:\nb = o\na =\n{"references": ["t"]}\n\n'
        'hellaswag, 0 shots:\nthe\n{"choices": [" cat", " sea", " mat", " a"], "gold": 0}\n\n'
    )
    assert "accuracy" not in printed_all


def test_a_set_whose_answers_do_not_fit_the_context_is_refused(trained, translations, capsys):
    (translations / "gsm8k").mkdir()
    write_rows(translations / SETS["gsm8k"].file, [{"question": "a", "answer": "#### 1"}])
    assert main(["evaluate", str(trained), "--task", "gsm8k", "--task-data", str(translations)]) == 2
    assert "the model's context = 16: expected more than the 256 that an answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "helaswag"], "--task = 'helaswag': expected one of hellaswag, piqa, copa, xcopa_zh, "),
        (["--task", "hellaswag", "--shots", "3"], "--shots 3: the pool has 2 other questions"),
        (["--task", "hellaswag", "--shots", "a"], "--shots = 'a': expected numbers such as 0,1,8"),
        (["--task", "hellaswag", "--shots", "9" * 5000], "expected numbers such as 0,1,8"),
        (["--task", "hellaswag", "--shots", "1", "--seed=-1"], "--seed = -1: expected a number from 0"),
        (["--task", "hellaswag", "--field", "x"], "--field = 'x': expected no such option with --task"),
        (["--task", "hellaswag", "--show-prompt", "--json"], "--json = True: expected nothing beside --show-prompt"),
        (["--data", "a.txt", "--shots", "3"], "--shots = '3': expected no such option with --data"),
        (["--data", "a.txt"], "expected no such option with --data"),
        (["--task", "hellaswag", "--limit", "0"], "--limit = 0: expected a number above 0"),
        (["--task", "piqa"], "piqa_dev"),
        (["--task", "hellaswag", "--show-prompt", "--out", "a"], "--out = 'a': expected nothing beside --show-prompt"),
        (["--task", "hellaswag", "--plot", "a.pdf"], "--plot a.pdf: expected a file that ends in .png"),
        (["--task", "hellaswag", "--plot", "none/a.png"], "--plot none/a.png: expected a file in a folder that exists"),
        (["--data", "a.txt", "--out", "a"], "--out = 'a': expected no such option with --data"),
        (["--data", "a.txt", "--limit", "3"], "--limit = 3: expected no such option with --data"),
        (["--task", "hellaswag", "--data", "a.txt"], "= '--data --task': expected --data, --task or --suite, and one"),
        ([], "= 'none': expected --data, --task or --suite, and one"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_is_said_and_ends_with_2(trained, sets, capsys, words, message):
    assert main(["evaluate", str(trained), *words, "--task-data", str(sets)]) == 2
    assert message in capsys.readouterr().err


def test_a_plot_where_a_folder_is_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "a.png").mkdir()
    words = ["evaluate", tmp_path, "--task", "hellaswag", "--plot", tmp_path / "a.png"]
    assert main([str(word) for word in words]) == 2
    assert "a.png: found a folder, expected a file" in capsys.readouterr().err


def test_no_file_is_written_over(trained, sets, tmp_path, capsys):
    (tmp_path / "answers.jsonl").write_text("mine")
    words = ["evaluate", trained, "--task", "hellaswag", "--task-data", sets, "--out", tmp_path / "answers.jsonl"]
    assert main([str(word) for word in words]) == 2
    assert "answers.jsonl" in capsys.readouterr().err
    assert (tmp_path / "answers.jsonl").read_text() == "mine"


def test_what_fails_leaves_no_file(trained, sets, tmp_path, capsys):
    for checkpoint in (trained, tmp_path / "none"):
        words = ["evaluate", checkpoint, "--task", "hellaswag,piqa", "--task-data", sets, "--out", tmp_path / "a.jsonl"]
        assert main([str(word) for word in words]) == 2
        assert not (tmp_path / "a.jsonl").exists()
    assert "none: no checkpoint" in capsys.readouterr().err
