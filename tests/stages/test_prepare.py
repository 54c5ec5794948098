"""The tokenizer and the token shards are made once, from the text that the recipe names, and can be made beforehand."""

import contextlib
import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from lmjax.cli import main
from lmjax.data import write_shards
from lmjax.data.loader import Loader, validation_batches
from lmjax.data.token_cache import TokenCache
from lmjax.errors import UserError
from lmjax.settings import (
    SFT,
    DialogueSettings,
    DialogueSourceSettings,
    Pipeline,
    Pretrain,
    SourceSettings,
    TokenizerSettings,
)
from lmjax.settings.recipe_files import load_recipe
from lmjax.settings.recipe_source import source_of
from lmjax.stages import prepare_data as module
from lmjax.stages.prepare_data import Prepared, prepare, prepare_data, train_tokenizer
from lmjax.tasks.conversations import open_mix
from lmjax.tasks.resolved import resolve
from lmjax.tasks.task import Session
from lmjax.tokenizers.tokenizer import load_tokenizer
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest
from tests.tiny import sft, text, write_recipe

BPE = TokenizerSettings(kind="bpe", vocab_size=270)


class Display(ProgressDisplay):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.said: list[str] = []
        self.counted: dict[str, list[tuple[int, int]]] = {}

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextlib.contextmanager
    def counting(self, title: str):
        counts = self.counted.setdefault(title, [])
        yield lambda done, total: counts.append((done, total))


def _batches(recipe: Pretrain, prepared: Prepared) -> list[dict]:
    loader = Loader(prepared.train, [source.weight for source in recipe.data.train], recipe.data)
    validation = validation_batches(prepared.validation, recipe.data, recipe.data.batch_size)
    return [loader.batch_at(step) for step in (0, 3, 100)] + list(validation)


def _assert_equal(a: list[dict], b: list[dict]) -> None:
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_the_second_time_everything_is_found(tmp_path, tiny, monkeypatch):
    recipe = tiny(tokenizer=BPE)
    first = prepare(recipe, tmp_path / "run", Display())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr(module, "build_tokenizer", None)
    display = Display()
    again = prepare(recipe, tmp_path / "run", display)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == files
    assert not any("training the" in line for line in display.said)
    _assert_equal(_batches(recipe, first), _batches(recipe, again))


def test_what_is_made_is_told(tmp_path, tiny):
    display = Display()
    prepared = prepare(tiny(tokenizer=BPE), tmp_path / "run", display)
    read = r"training the bpe tokenizer on ([\d,]+) bytes: all \1 of text .*/train\.txt"
    assert re.fullmatch(read, display.said[0])
    assert f"{prepared.train[0].tokens:,} tokens in 200 documents" in display.said[1]
    (train, _) = display.counted.values()
    assert train[-1] == (200, 200), "the bar reaches the last document"
    silent = Display()
    prepare(tiny(), tmp_path / "bytes", silent)
    assert not any("tokenizer" in line for line in silent.said), "there is nothing to train about bytes"


def test_what_a_folder_leaves_out_and_what_is_bad_are_told(tmp_path, tiny):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, content in (
        ("a.jsonl", b'{"text": "good"}\n{"text": "caf\xe9"}\n'),
        ("._a.jsonl", b"\x00"),
        ("b.md", b"x"),
    ):
        (folder / name).write_bytes(content)
    display = Display()
    source = SourceSettings(path=str(folder), on_bad_record="skip")
    prepare(tiny(data__train=(source,)), tmp_path / "run", display)
    assert display.said[0] == f"source jsonl {folder}: not read: 1 hidden, 1 of another ending"
    bad = f"1 bad records skipped, such as {folder}/a.jsonl:2: byte 0xe9 is not UTF-8"
    assert f"5 tokens in 1 documents, {bad}" in display.said[1]


def test_a_tokenizer_is_kept_only_whole(tmp_path, tiny, monkeypatch):
    recipe = tiny(tokenizer=BPE)

    def die(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "tokenizer_fingerprint", die)
    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe, tmp_path / "run", Display())
    monkeypatch.undo()
    assert [path.suffix for path in (tmp_path / "run").glob("tokenizer-*")] == [".partial"]
    prepare(recipe, tmp_path / "run", Display())
    assert [path.suffix for path in (tmp_path / "run").glob("tokenizer-*")] == [""]


def test_another_tokenizer_or_source_in_one_workdir_has_a_place_of_its_own(tmp_path, tiny):
    one = prepare(tiny(tokenizer=BPE), tmp_path / "run", Display())
    other = prepare(tiny(tokenizer=dataclasses.replace(BPE, vocab_size=280)), tmp_path / "run", Display())
    assert one.tokenizer_folder != other.tokenizer_folder
    assert one.train[0].folder != other.train[0].folder


def test_an_edited_text_is_never_taken_for_the_prepared_one(tmp_path, tiny, texts):
    path = tmp_path / "train.txt"
    path.write_bytes((texts / "train.txt").read_bytes())
    recipe = tiny(data__train=text(path))
    prepare(recipe, tmp_path / "run", Display())
    with path.open("a") as file:
        file.write("one more line\n")
    with pytest.raises(UserError, match=r"made from another source, which differs in contents"):
        prepare(recipe, tmp_path / "run", Display())


def test_a_tokenizer_larger_than_the_table_is_an_error_before_anything_is_encoded(tmp_path, tiny):
    train_tokenizer(tiny(tokenizer=BPE), tmp_path / "bpe", Display())
    table = dataclasses.replace(tiny().model, vocab_size=269)
    loaded = tiny(tokenizer=TokenizerSettings(kind="bpe", path=str(tmp_path / "bpe")), model=table)
    message = r"model.vocab_size = 269: expected at least the tokenizer's 270 entries; raise it"
    with pytest.raises(UserError, match=message):
        prepare(loaded, tmp_path / "run", Display())
    assert not (tmp_path / "run" / "tokens").exists()
    with pytest.raises(UserError, match=message):
        tiny(tokenizer=BPE, model=table)
    fitting = dataclasses.replace(loaded, model=dataclasses.replace(table, vocab_size=270))
    assert prepare(fitting, tmp_path / "run", Display()).tokenizer.vocab_size == 270


def test_skipped_records_are_counted_aloud(tmp_path, tiny, texts):
    (tmp_path / "bad.txt").write_bytes((texts / "train.txt").read_bytes() + b"\xff\xfe\n")
    source = text(tmp_path / "bad.txt", documents="line")[0]
    with pytest.raises(UserError, match=r"bad.txt:201: byte 0xff is not UTF-8"):
        prepare(tiny(data__train=(source,)), tmp_path / "run", Display())
    display = Display()
    prepare(tiny(data__train=(dataclasses.replace(source, on_bad_record="skip"),)), tmp_path / "run", display)
    assert any("200 documents, 1 bad records skipped" in line for line in display.said)


@pytest.mark.parametrize(
    "tokenizer",
    [
        TokenizerSettings(),
        dataclasses.replace(BPE, user_symbols=("<x>",)),
        TokenizerSettings(kind="sentencepiece", vocab_size=285, user_symbols=("<x>",)),
    ],
    ids=lambda settings: settings.kind,
)
def test_training_from_prepared_shards_reads_the_same_batches(tmp_path, tiny, texts, tokenizer):
    path = tmp_path / "train.txt"
    path.write_bytes((texts / "train.txt").read_bytes())
    source = text(path, documents="line")[0]
    train = (dataclasses.replace(source, end=0.9, weight=1.0), dataclasses.replace(source, end=0.5, weight=0.5))
    validation = (dataclasses.replace(source, begin=0.9),)
    recipe = tiny(tokenizer=tokenizer, data__train=train, data__validation=validation)
    from_text = _batches(recipe, prepare(recipe, tmp_path / "run", Display()))
    shards = prepare_data(recipe, tmp_path / "prepared", Display())
    path.unlink()  # nothing but the shards is read from here on
    assert {source.kind for source in shards.data.train + shards.data.validation} == {"shards"}
    _assert_equal(from_text, _batches(shards, prepare(shards, tmp_path / "again", Display())))


def test_the_commands_write_a_tokenizer_and_shards_and_say_how_to_train_from_them(tmp_path, tiny, capsys):
    bpe = {"tokenizer": dataclasses.replace(BPE, vocab_size=300), "model__vocab_size": None}
    spec = write_recipe(tmp_path / "mine.py", tiny(**bpe, data__validation=tiny().data.train))
    out = tmp_path / "tokenizer"
    assert main(["tokenizer", "train", str(spec), "--out", str(out), "--tokenizer.vocab-size", "280"]) == 0
    assert f"bpe tokenizer of 280 entries written to {out}" in capsys.readouterr().out
    assert load_tokenizer(out).vocab_size == 280

    given = ["--tokenizer.path", str(out), "--data.sequence-length", "8"]
    assert main(["data", "prepare", str(spec), "--out", str(tmp_path / "out"), "--workers", "1", *given]) == 2
    assert "tokenizer.vocab_size = 300: expected 280, the entries of" in capsys.readouterr().err
    given += ["--tokenizer.vocab-size", "280"]
    assert main(["data", "prepare", str(spec), "--out", str(tmp_path / "out"), "--workers", "1", *given]) == 0
    said = capsys.readouterr().out
    command = shlex.split(said.split("to train from them:")[1])
    assert command == ["lmjax", "run", str(tmp_path / "out" / "recipe.py")]

    out = tmp_path / "moved"
    (tmp_path / "out").rename(out)
    recipe = load_recipe(str(out / "recipe.py"))
    assert recipe.data.train[0].path.startswith(str(out)) and recipe.tokenizer.path.startswith(str(out))
    assert recipe.data.sequence_length == 8 and recipe.data.train[0].kind == "shards"
    manifest = json.loads((Path(recipe.data.train[0].path) / "manifest.json").read_text())
    assert manifest["documents"] == 200 and manifest["vocab_size"] == 280
    assert load_tokenizer(recipe.tokenizer.path).vocab_size == 280


def test_the_recipe_beside_the_shards_has_all_stages_of_a_pipeline_in_any_folder(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = tiny(data__validation=tiny().data.train)
    lines = source_of(Pipeline("two", (first, sft(()))), "Two.").replace("User:", "Frage:")
    (tmp_path / "two.py").write_text(lines)
    assert main(["data", "prepare", "two.py", "--out", ".", "--workers", "1"]) == 0
    assert "to train from them:\n  lmjax run recipe.py\n" in capsys.readouterr().out
    written = load_recipe("recipe.py")
    assert [stage.name for stage in written.stages] == [first.name, "sft"]
    assert written.stages[1] == load_recipe("two.py").stages[1]
    assert [source.kind for source in written.stages[0].data.train] == ["shards"]


def test_a_run_finds_the_tokenizer_and_the_tokens_of_another_one(tmp_path, tiny, monkeypatch):
    recipe, cache = tiny(tokenizer=BPE), TokenCache(tmp_path / "cache")
    made = prepare(recipe, tmp_path / "one", Display(), cache)
    monkeypatch.setattr(module, "build_tokenizer", None)
    monkeypatch.setattr(write_shards, "_encoded", None)
    display = Display()
    found = prepare(dataclasses.replace(recipe, name="another"), tmp_path / "two", display, cache)
    _assert_equal(_batches(recipe, made), _batches(recipe, found))
    text = recipe.data.train[0].path
    assert re.fullmatch(
        rf"the bpe tokenizer, trained on ([\d,]+) bytes: all \1 of text {text}, is from the cache {cache.folder}",
        display.said[0],
    )
    assert [line for line in display.said if f"in 200 documents, from the cache {cache.folder}" in line]
    assert found.tokenizer_folder.parent == tmp_path / "two", "the workdir has the tokenizer's files"
    assert not list((tmp_path / "two").rglob("*.bin")), "and no copy of the tokens"


def test_an_edited_text_is_never_served_from_the_cache(tmp_path, tiny, texts):
    path, cache = tmp_path / "train.txt", TokenCache(tmp_path / "cache")
    path.write_bytes((texts / "train.txt").read_bytes())
    recipe = tiny(tokenizer=BPE, data__train=text(path))
    before = prepare(recipe, tmp_path / "one", Display(), cache)
    path.write_bytes(path.read_bytes().replace(b"mat", b"hat"))
    with pytest.raises(UserError, match=r"made from another source, which differs in contents"):
        prepare(recipe, tmp_path / "one", Display(), cache)
    after = prepare(recipe, tmp_path / "two", Display(), cache)
    alone = prepare(recipe, tmp_path / "three", Display())
    assert before.train[0].folder != after.train[0].folder
    _assert_equal(_batches(recipe, after), _batches(recipe, alone))


def test_a_workdir_with_tokens_of_its_own_as_older_versions_made_them_is_not_encoded_again(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("one\ntwo\nthree\n")
    source = SourceSettings(kind="text", path="train.txt", documents="line", weight=2.0)
    recipe = tiny(data__train=(source,), data__validation=(source,), data__sequence_length=4)
    older = prepare(recipe, Path("run"), Display())
    assert [path.name for path in Path("run/tokens").iterdir()] == ["text-54590978b543"], "as commit c60ae93 named it"
    mixed = Path("mixed/tokens/mix-0-141bbe4068e7")  # as that commit named the text that a stage mixes in
    shutil.copytree(older.train[0].folder, mixed)
    monkeypatch.setattr(write_shards, "_encoded", None)
    cache = TokenCache(Path("cache"))
    assert prepare(recipe, Path("run"), Display(), cache).train[0].folder == older.train[0].folder
    stage = SFT(start="base", mix=(source,), dialogue=DialogueSettings(train=(DialogueSourceSettings(path="a.jsonl"),)))
    resolved = dataclasses.replace(resolve(stage, folder=Path("mixed")), tokenizer=older.tokenizer)
    (texts,) = open_mix(resolved, Session(StopRequest(), Display(), cache=cache))
    assert texts.folder == mixed and not cache.folder.exists()
