"""Which kind of source a path is of, and that no field is passed over by the kind that does not use it."""

import argparse
import json

import pytest

from lmjax.commands.command import overridden_recipe
from lmjax.errors import UserError
from lmjax.settings import DataSettings, DialogueSourceSettings, Pretrain, SourceSettings, TokenizerSettings
from lmjax.settings.recipe_files import from_json, to_json


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("my.txt", "text"),
        ("notes/README.md", "text"),
        ("c4-00000.json.gz", "jsonl"),
        ("a/*.JSONL.zst", "jsonl"),
        ("a.csv.xz", "csv"),
        ("a.parquet", "parquet"),
    ],
)
@pytest.mark.parametrize("given", [{}, {"kind": "embedded"}])
def test_a_path_tells_its_kind_by_its_ending(path, kind, given):
    assert SourceSettings(path=path, **given).kind == kind


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["a/b/c.txt", "README.md"], "text"),
        (["README.md"], "text"),
        (["a.jsonl.zst", "dataset_info.json"], "jsonl"),
        (["a.json"], "jsonl"),
        (["x.parquet", ".cache/y.txt"], "parquet"),
        (["manifest.json", "documents.bin"], "shards"),
        (["dataset_info.json", "features.json"], "tfds"),
    ],
)
def test_a_folder_tells_its_kind_by_what_it_holds(tmp_path, names, kind):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert SourceSettings(path=str(tmp_path)).kind == kind


@pytest.mark.parametrize("names", [["a.txt", "b.jsonl"], ["a.dat"], []])
def test_a_folder_that_does_not_tell_its_kind_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"^SourceSettings\.path = .*set kind"):
        SourceSettings(path=str(tmp_path))


@pytest.mark.parametrize("path", ["nowhere", "a.log", "data/*", "~nosuchuser", "a\0"])
def test_a_path_that_does_not_tell_its_kind_is_refused(path):
    with pytest.raises(
        UserError, match=r"^SourceSettings\.path = .*expected a path whose ending tells its kind.*set kind"
    ):
        SourceSettings(path=path)


REFUSED = [
    (SourceSettings, {"field": "body"}, "SourceSettings.field = 'body'"),
    (SourceSettings, {"documents": "line"}, "SourceSettings.documents = 'line'"),
    (SourceSettings, {"on_bad_record": "skip"}, "SourceSettings.on_bad_record = 'skip'"),
    (SourceSettings, {"path": "a.txt", "split": "validation"}, "SourceSettings.split = 'validation'"),
    (SourceSettings, {"path": "a.txt", "field": "body"}, "SourceSettings.field = 'body'"),
    (SourceSettings, {"kind": "jsonl", "path": "a", "documents": "line"}, "SourceSettings.documents = 'line'"),
    (SourceSettings, {"kind": "csv", "path": "a", "split": "test"}, "SourceSettings.split = 'test'"),
    (SourceSettings, {"kind": "parquet", "path": "a", "documents": "line"}, "SourceSettings.documents = 'line'"),
    (SourceSettings, {"kind": "tfds", "path": "a", "documents": "line"}, "SourceSettings.documents = 'line'"),
    (SourceSettings, {"kind": "shards", "path": "a", "field": "body"}, "SourceSettings.field = 'body'"),
    (SourceSettings, {"kind": "shards", "path": "a", "on_bad_record": "skip"}, "SourceSettings.on_bad_record = 'skip'"),
    (DialogueSourceSettings, {"path": "a", "split": "validation"}, "DialogueSourceSettings.split = 'validation'"),
    (DialogueSourceSettings, {"kind": "embedded", "answer_end": "#"}, "DialogueSourceSettings.answer_end = '#'"),
    (TokenizerSettings, {"vocab_size": 300}, "TokenizerSettings.vocab_size = 300"),
    (TokenizerSettings, {"kind": "bpe", "lowercase": False}, "TokenizerSettings.lowercase = False"),
    (TokenizerSettings, {"kind": "bpe", "split_digits": True}, "TokenizerSettings.split_digits = True"),
    (TokenizerSettings, {"kind": "wordpiece", "byte_fallback": False}, "TokenizerSettings.byte_fallback = False"),
    (TokenizerSettings, {"kind": "bpe", "path": "a", "training_bytes": 5}, "TokenizerSettings.training_bytes = 5"),
]


@pytest.mark.parametrize(("cls", "given", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_field_that_its_kind_does_not_use_is_refused_by_name(cls, given, words):
    with pytest.raises(UserError) as error:
        cls(**given)
    assert str(error.value).startswith(f"{words}: expected its default, ") and "does not use it" in str(error.value)


def test_what_a_kind_uses_is_accepted():
    assert SourceSettings(kind="tfds", path="a", split="test", field="body", on_bad_record="skip").split == "test"
    assert SourceSettings(split="validation", weight=2.0, begin=0.5).kind == "embedded"
    assert TokenizerSettings(kind="wordpiece", path="vocab.txt", lowercase=False).lowercase is False


def quickstart(*overrides):
    options = argparse.Namespace(recipe="quickstart", parser=argparse.ArgumentParser("lmjax"))
    return overridden_recipe(options, list(overrides)).stages


def test_a_path_given_to_the_quickstart_is_what_it_trains_on():
    pretrain, sft, *_ = quickstart("--data.train.0.path", "my.txt", "--sft.dialogue.train.0.path", "chats.jsonl")
    assert pretrain.data.train == (SourceSettings(kind="text", path="my.txt"),)
    assert sft.dialogue.train == (DialogueSourceSettings("chats.jsonl", end=0.5),)
    with pytest.raises(
        UserError, match=r"^pretrain\.data\.validation\[0\]\.split = 'validation': .*set it back to 'train'"
    ):
        quickstart("--data.validation.0.path", "my.txt")
    pretrain, *_ = quickstart("--data.validation.0.path", "my.txt", "--data.validation.0.split", "train")
    assert pretrain.data.validation == (SourceSettings(kind="text", path="my.txt"),)


def test_a_recipe_that_an_older_version_wrote_is_read_as_it_was_trained():
    recipe = Pretrain(data=DataSettings(train=(SourceSettings("text", "a.txt"),)))
    older = json.loads(to_json(recipe))
    older["data"]["train"][0] |= {"split": "validation", "field": "body"}
    older["data"]["validation"][0] |= {"path": "passed/over.txt"}
    older["tokenizer"] |= {"vocab_size": 300, "split_digits": True}
    assert from_json(json.dumps(older)) == recipe
