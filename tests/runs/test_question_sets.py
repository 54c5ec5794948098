"""`lmjax evaluate --task`: sets of questions put to a trained model, printed, and written answer by answer."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.cli import main
from lmjax.evaluate.sets import SETS
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


def test_a_mesh_and_a_limit_give_the_same_answers(trained, sets, tmp_path, capsys):
    answers = {}
    for name, more in {"one": (), "cut": ("--mesh", "data=2,fsdp=4"), "two": ("--limit", "2")}.items():
        out = tmp_path / f"{name}.jsonl"
        printed(capsys, trained, "--task", "hellaswag", "--task-data", sets, "--out", out, *more)
        answers[name] = [json.loads(line)["log_probs"] for line in out.read_text().splitlines()]
    np.testing.assert_allclose(answers["cut"], answers["one"], atol=1e-5)
    np.testing.assert_allclose(answers["two"], answers["one"][:2], atol=1e-5)


def test_shots_that_do_not_fit_are_dropped_and_counted(trained, sets, capsys):
    """The context has 16 tokens: a question of up to 8 with one shot fits, and with two it does not."""
    out = printed(capsys, trained, "--task", "hellaswag", "--task-data", sets, "--shots", "0,2", "--json")
    none, two = json.loads(out)
    assert (none["shots"], none["fewer_shots"], two["shots"]) == (0, 0, 2)
    assert two["fewer_shots"] == 3 and two["cut"] == 0


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
    assert line.startswith("lambada               0 shots       1 questions  last_word ") and "1 left out" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "helaswag"], "--task = 'helaswag': expected one of hellaswag, piqa, copa, xcopa_zh, "),
        (["--task", "hellaswag", "--shots", "3"], "--shots 3: the pool has 2 other questions"),
        (["--task", "hellaswag", "--shots", "a"], "--shots = 'a': expected numbers such as 0,1,8"),
        (["--task", "hellaswag", "--limit", "0"], "--limit = 0: expected a number above 0"),
        (["--task", "piqa"], "piqa_dev"),
        (["--task", "hellaswag", "--data", "a.txt"], "expected --data or --task, and not both"),
        ([], "expected --data or --task, and not both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_said_and_ends_with_2(trained, sets, capsys, words, message):
    assert main(["evaluate", str(trained), *words, "--task-data", str(sets)]) == 2
    assert message in capsys.readouterr().err


def test_no_file_is_written_over(trained, sets, tmp_path, capsys):
    (tmp_path / "answers.jsonl").write_text("mine")
    words = ["evaluate", trained, "--task", "hellaswag", "--task-data", sets, "--out", tmp_path / "answers.jsonl"]
    assert main([str(word) for word in words]) == 2
    assert "answers.jsonl" in capsys.readouterr().err
    assert (tmp_path / "answers.jsonl").read_text() == "mine"
