"""`lmjax run text --data FILE`: what it chooses of own text, and a run of it from the command line to its summary."""

import dataclasses
import json
import random

import pytest

from lmjax.cli import main
from lmjax.settings.recipe_files import load_recipe
from tests.running import without_charts

WORDS = (
    "the",
    "cat",
    "dog",
    "sea",
    "sun",
    "moon",
    "ran",
    "sat",
    "sang",
    "under",
    "over",
    "near",
    "old",
    "young",
    "tall",
)


def prose(path, count: int, field: str = "") -> str:
    """A file of so many bytes of sentences that differ, or of records whose `field` holds one."""
    rng, lines, held = random.Random(0), [], 0
    while held < count:
        lines.append(" ".join(rng.choices(WORDS, k=8)) + f" {rng.randrange(10**6)}.\n")
        held += len(lines[-1])
    path.write_text("".join(json.dumps({field: line}) + "\n" for line in lines) if field else "".join(lines))
    return str(path)


def test_what_is_chosen_follows_from_the_text(tmp_path):
    small = load_recipe("text", data=(prose(tmp_path / "a.txt", 20_000),))
    assert small.tokenizer.kind == "byte" and small.data.sequence_length == 64
    tokens = 20_000 * 0.9
    assert small.train.steps * small.data.batch_size * 64 == pytest.approx(16 * tokens, rel=0.05), "16 epochs"
    assert tokens / (small.data.batch_size * 64) >= 20, "steps of an epoch"
    assert small.model.dropout == 0.1

    large = load_recipe("text", data=(prose(tmp_path / "b.txt", 900_000),))
    assert (large.tokenizer.kind, large.tokenizer.vocab_size) == ("bpe", 1024)
    assert (large.data.sequence_length, large.data.batch_size) == (128, 16)
    assert large.train.steps == round(1_800_000 / 2048)
    assert any(reason.startswith("vocabulary: 1,024 entries") for reason in large.reasons)

    medium = load_recipe("text:medium", data=(str(tmp_path / "a.txt"),))
    assert medium.model.layers == 12 and medium.data.sequence_length == 64, "200 rows of text"
    assert medium.name == "text-medium"


def test_the_validation_text_is_the_end_of_every_source_and_of_nothing_else(tmp_path):
    files = (prose(tmp_path / "a.txt", 30_000), prose(tmp_path / "b.jsonl", 30_000, "content"))
    recipe = load_recipe("text", data=files, field="content")
    pairs = list(zip(recipe.data.train, recipe.data.validation, strict=True))
    assert [(train.kind, train.begin, train.end, held.end) for train, held in pairs] == [
        ("text", 0.0, 0.9, 1.0),
        ("jsonl", 0.0, 0.9, 1.0),
    ]
    assert all(dataclasses.replace(held, begin=0.0, end=train.end) == train for train, held in pairs)
    assert all(held.begin == train.end for train, held in pairs)


def test_text_that_repeats_itself_is_read_as_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("again and again\n" * 40_000)
    recipe = load_recipe("text", data=(str(tmp_path / "a.txt"),))
    assert recipe.tokenizer.kind == "byte"
    assert any("the text repeats itself" in reason for reason in recipe.reasons)


def test_own_text_is_trained_on_by_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    without_charts(monkeypatch)
    prose(tmp_path / "my.jsonl", 20_000, "content")
    words = ["--field", "content", "--train.steps", "4", "--model.layers=1", "--model.width", "32"]
    words += ["--model.attention.heads", "2", "--evaluation.sample-tokens", "4"]
    assert main(["run", "text", "--data", "my.jsonl", *words]) == 0
    said = capsys.readouterr().out
    for line in ("text: 20,0", "vocabulary: the 257 of bytes", "tokens: about 18,0", "context: 64 tokens", "steps: "):
        assert f"\n{line}" in f"\n{said}"
    assert "report: runs/text-tiny/report.html" in said
    assert json.loads((tmp_path / "runs/text-tiny/summary.json").read_text())["steps"] == 4
    assert main(["run", "text", "--data", "my.jsonl", *words]) == 0
    assert capsys.readouterr().out.startswith("runs/text-tiny is done.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "lmjax: text: --data is missing. Files, folders or globs of text"),
        (["--data"], "lmjax: --data: no file is named"),
        (["--data", "absent", "gone"], "lmjax: --data absent: expected a file, a folder or a glob"),
        (["--data", "absent", "gone"], "\n--data gone: expected a file"),
        (["--data", "short.txt"], "short.txt: 6 bytes of text: expected at least 10,000 to learn from; name more text"),
        (["--data", "my.jsonl"], "my.jsonl:1: no field 'text'; it has 'content'; choose by --field"),
        (["--data", "my.jsonl", "--filed", "content"], "--filed: no such option; did you mean '--field'?"),
    ],
)
def test_a_mistake_is_told_plainly_and_nothing_is_written(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("short\n")
    prose(tmp_path / "my.jsonl", 20_000, "content")
    try:
        code = main(["run", "text", *words])
    except SystemExit as leaving:
        code = leaving.code
    said = capsys.readouterr()
    assert code == 2 and message in said.err and "Traceback" not in said.err
    assert not (tmp_path / "runs").exists()
