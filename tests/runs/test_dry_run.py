"""`lmjax run --dry-run`: what a run would do, its recipe, its memory, and everything that is missing, at once."""

import pytest

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.plan.slices import Slice
from lmjax.runs import dry_run as module
from lmjax.runs.dry_run import dry_run
from lmjax.runs.run import run
from lmjax.settings import (
    SFT,
    DialogueSettings,
    DialogueSourceSettings,
    Finetune,
    LabelledSettings,
    Pipeline,
    SourceSettings,
    TokenizerSettings,
)
from lmjax.settings.recipe_files import load_recipe
from lmjax.tasks.sentences import Sentences
from tests.running import on_devices
from tests.tiny import for_slice, pretrain, text, write_recipe


def said_of(recipe, workdir=None) -> list[str]:
    lines: list[str] = []
    dry_run(recipe, workdir, lines.append)
    return lines


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 100)
    return tmp_path


def test_a_dry_run_says_what_a_run_would_and_writes_nothing(here, capsys):
    recipe = pretrain(text("text.txt"), reasons=("steps: 10, because it is a test",))
    spec = write_recipe(here / "mine.py", recipe)
    before = sorted(here.iterdir())
    assert main(["run", str(spec), "--dry-run", "--train.steps", "7"]) == 0
    said = capsys.readouterr().out
    told, printed = said.split('\n"""', 1)
    assert told.splitlines() == [
        *("workdir: runs/tiny", "devices: 8 x cpu", "steps: 10, because it is a test"),
        "model: 1 layer of width 16, 257 entries, 7,680 parameters",
        "data.train: 2,300 bytes in a file of text.txt, to be made tokens",
        "data.validation: 2,300 bytes in a file of text.txt, to be made tokens",
        "steps: 7 of 8 x 16 tokens, 896 tokens planned",
    ]
    assert sorted(here.iterdir()) == before
    (here / "printed.py").write_text('"""' + printed)
    assert load_recipe("printed.py").train.steps == 7


def test_the_tokens_of_shards_are_known(here, capsys, monkeypatch):
    on_devices(monkeypatch)
    spec = write_recipe(here / "mine.py", pretrain(text("text.txt")))
    assert main(["data", "prepare", str(spec), "--out", "out", "--workers", "1"]) == 0
    (shards,) = (here / "out" / "tokens").iterdir()
    recipe = pretrain((SourceSettings(kind="shards", path=str(shards)),))
    lines = said_of(recipe)
    assert f"data.train: 2,301 tokens in {shards}" in lines
    assert "steps: 10 of 8 x 16 tokens, 1,280 tokens planned, 0.56 epochs" in lines


def test_everything_that_is_missing_is_said_at_once_with_exit_code_2(here, capsys):
    labelled = Sentences(train=(LabelledSettings("a.csv"),), validation=(LabelledSettings("b.csv"),))
    first = pretrain(
        (SourceSettings(path="c.txt"), SourceSettings(kind="shards", path="d")), text("e.txt"), tokenizer__path="f"
    )
    turns = DialogueSettings(train=(DialogueSourceSettings("tiny/made.jsonl"), DialogueSourceSettings("g.jsonl")))
    pipeline = Pipeline("all", (first, SFT(start="tiny", dialogue=turns), Finetune(start="runs/h", task=labelled)))
    with pytest.raises(UserError) as caught:
        said_of(pipeline)
    found = [line for line in str(caught.value).splitlines() if "expected" in line]
    assert [line.split(" = ")[0] for line in found] == [
        *("stage tiny: tokenizer.path", "tiny.data.train[0].path", "tiny.data.train[1].path"),
        *("tiny.data.validation[0].path", "sft.dialogue.train[1].path"),
        *("stage finetune: start", "finetune.task.train[0].path", "finetune.task.validation[0].path"),
    ]
    write_recipe(here / "mine.py", first)
    assert main(["run", "mine.py", "--dry-run"]) == 2
    assert capsys.readouterr().err.count("expected") == 4
    assert not (here / "runs").exists()


def test_a_run_says_everything_that_is_missing_too_before_it_begins(here):
    recipe = pretrain(text("c.txt"), text("e.txt"))
    with pytest.raises(UserError, match=r"data.train\[0\].path = 'c.txt': .*\ndata.validation\[0\].path = 'e.txt': "):
        run(recipe, here / "w", quiet=True)
    assert sorted(path.name for path in (here / "w").iterdir()) == [".lock"]


def test_a_published_tokenizer_that_is_not_there_comes_with_the_commands_that_fetch_it(here, capsys):
    assert main(["run", "gpt2:124m", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "model: 12 layers of width 768, 50,257 entries, 124,439,808 parameters" in said.out
    assert "mkdir -p data/gpt2_tokenizer\n  curl -fL https://" in said.err
    for name in ("encoder.json", "vocab.bpe"):
        assert f"/124M/{name} -o data/gpt2_tokenizer/{name}\n" in said.err
    assert said.err.count("data/openwebtext/") == 2
    recipe = pretrain(text("text.txt"), tokenizer=TokenizerSettings(kind="sentencepiece", path="x.model"))
    with pytest.raises(UserError, match=r"= 'x.model': expected the files of a sentencepiece tokenizer; name"):
        said_of(recipe)


def test_the_memory_of_an_attached_slice_is_predicted(here, monkeypatch):
    monkeypatch.setattr(module, "slice_of", lambda devices: Slice("two chips", "v5e", (1, 2)))
    recipe = for_slice(data__train=text("text.txt"), data__validation=text("text.txt"), plan__topology="")
    (line,) = [line for line in said_of(recipe) if line.startswith("on two chips: ")]
    assert "GiB HBM by arithmetic; lmjax plan --topology two chips compiles it" in line
    assert 0 < float(line.split(";")[-2].split()[0]) < 15.75


@pytest.mark.tpu
def test_the_memory_of_a_named_slice_is_compiled(here):
    lines = said_of(for_slice(data__train=text("text.txt"), data__validation=text("text.txt")))
    assert any(line.startswith("  HBM ") and "GiB at the peak of 15.75" in line for line in lines)
