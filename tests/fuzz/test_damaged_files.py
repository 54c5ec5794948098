"""Damaged input of every kind ends in a message for the user, never in a traceback. Seeds are fixed.

20,000 inputs in all: each is a valid file with one to three places damaged (tests/fuzz/mutations.py). What may come out
is the value, or UserError; a damaged record of a source may be skipped. Any other exception fails the test and names
the input.
"""

import contextlib
import io
import json
import shutil
from random import Random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file

import lmjax.cli
from lmjax.data.dialogue_records import read_records
from lmjax.data.shards import prepare_shards
from lmjax.data.sources import MemoryDocuments, open_source
from lmjax.data.token_shards import TokenShards
from lmjax.data.tokenizer import build_tokenizer, load_tokenizer
from lmjax.data.tokenizers.byte import ByteTokenizer
from lmjax.errors import UserError
from lmjax.interop.hf_config import read_config
from lmjax.interop.tensor_files import open_tensors
from lmjax.recipe import Pretrain, from_json, load_recipe, to_json
from lmjax.report.report import write_report
from lmjax.rlhf_settings import DialogueSourceSettings
from lmjax.settings import SourceSettings, TokenizerSettings
from lmjax.stages.run import run

from .mutations import JUNK, damaged_bytes, damaged_json

pytestmark = pytest.mark.slow


def survives(call, rng, trials, make, *show):
    """`call(make(rng))` for so many inputs: a value, or UserError. Returns how many were refused."""
    refused = 0
    for trial in range(trials):
        content = make(rng)
        try:
            call(content)
        except UserError as error:
            refused += 1
            assert len(str(error)) < 20_000, "a message that nobody can read"
        except Exception as error:
            shown = content if not isinstance(content, bytes) or len(content) < 2_000 else content[:2_000]
            pytest.fail(f"trial {trial}: {type(error).__name__}: {error}\ninput: {shown!r} {show}", pytrace=True)
    assert 0 < refused < trials, "damage is refused, and what is still valid is taken"
    return refused


def file_call(path, call):
    def write_and_call(content):
        path.write_bytes(content)
        return call()

    return write_and_call


@pytest.mark.parametrize("name", ["quickstart", "gpt1", "instructgpt"])
def test_recipe_json(name):
    recipe = load_recipe(name)
    for number, stage in enumerate(getattr(recipe, "stages", (recipe,))):
        text = to_json(stage)
        survives(
            lambda data: from_json(data.decode(errors="replace")),
            Random(number),
            300,
            lambda r, t=text: damaged_json(t, r),
        )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run of a few steps of a tiny model."""
    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe("quickstart").stages[0]
    text = json.loads(to_json(recipe))
    text["train"]["steps"] = 2
    text["tokenizer"] |= {"kind": "byte"}
    text["model"] |= {"layers": 1, "width": 16, "vocab_size": None}
    text["evaluation"] |= {"batches": 1, "prompts": []}
    run(from_json(json.dumps(text)), folder, quiet=True)
    return folder


@pytest.mark.parametrize("name", ["recipe.json", "summary.json", "environment.json", "metrics.jsonl"])
def test_the_files_of_a_workdir(workdir, tmp_path, name):
    own = tmp_path / "run"
    shutil.copytree(workdir, own, ignore=shutil.ignore_patterns("checkpoints", "tokens"))
    text = (own / name).read_text()
    survives(file_call(own / name, lambda: write_report(own)), Random(1), 150, lambda r: damaged_json(text, r))


def test_a_pipelines_list_of_stages_names_no_other_folder(workdir, tmp_path):
    own = tmp_path / "all"
    shutil.copytree(workdir, own / "pretrain", ignore=shutil.ignore_patterns("checkpoints", "tokens"))
    text = '["pretrain", "sft"]'
    call = file_call(own / "pipeline.json", lambda: write_report(own))
    survives(call, Random(2), 300, lambda r: damaged_json(text, r))


def test_token_shards(tmp_path):
    texts = [f"document {i} has some words" for i in range(20)]
    prepare_shards(MemoryDocuments(texts), ByteTokenizer(), tmp_path / "shards", fingerprint="bytes")
    manifest = tmp_path / "shards" / "manifest.json"
    text = manifest.read_text()

    def call():
        shards = TokenShards(tmp_path / "shards")
        shards.document(0)

    survives(file_call(manifest, call), Random(3), 1500, lambda r: damaged_json(text, r))


def test_tokenizer_folders(tmp_path):
    texts = ["the cat sat on the mat and said hello"] * 50
    for number, kind in enumerate(("byte", "bpe", "wordpiece")):
        folder = tmp_path / kind
        build_tokenizer(TokenizerSettings(kind=kind, vocab_size=300), texts).save(folder)
        for file in sorted(folder.iterdir()):
            data = file.read_bytes()
            make = (lambda r, d=data: damaged_json(d.decode(), r)) if file.suffix == ".json" else None
            make = make or (lambda r, d=data: damaged_bytes(d, r))
            survives(file_call(file, lambda f=folder: load_tokenizer(f).encode("the cat")), Random(number), 300, make)
            file.write_bytes(data)


def test_hugging_face_folders(tmp_path):
    config = {
        **{"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 11},
        **{"n_ctx": 16, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "eos_token_id": 10},
    }
    text = json.dumps(config)
    survives(
        file_call(tmp_path / "config.json", lambda: read_config(tmp_path)),
        Random(4),
        2000,
        lambda r: damaged_json(text, r),
    )
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.ones(4, np.float32)}, tmp_path / "model-2.safetensors")
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})

    def read():
        with open_tensors(tmp_path) as files:
            files.read("a")

    survives(
        file_call(tmp_path / "model.safetensors.index.json", read), Random(5), 1000, lambda r: damaged_json(index, r)
    )
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model-2.safetensors").unlink()
    data = (tmp_path / "model-1.safetensors").read_bytes()
    (tmp_path / "model-1.safetensors").unlink()
    survives(file_call(tmp_path / "model.safetensors", read), Random(6), 1000, lambda r: damaged_bytes(data, r))


TEXTS = ["one document\nof two lines\n\nand another", "héllo — wörld", "x" * 300]


def sources(tmp_path):
    """(settings, path, bytes, whether these are JSON) of every kind of text file."""
    lines = "\n".join(json.dumps({"text": text, "id": n}) for n, text in enumerate(TEXTS)).encode()
    table = pyarrow.table({"text": TEXTS * 50, "n": list(range(150))})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    yield "text", "a.txt", "\n\n".join(TEXTS).encode(), False
    yield "jsonl", "a.jsonl", lines, True
    yield "parquet", "a.parquet", (tmp_path / "t.parquet").read_bytes(), False
    (tmp_path / "t.parquet").unlink()


@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
def test_sources_of_text(tmp_path, on_bad_record):
    for number, (kind, name, data, is_json) in enumerate(sources(tmp_path)):
        path = tmp_path / name
        settings = SourceSettings(kind=kind, path=str(path), on_bad_record=on_bad_record)

        def read(settings=settings):
            documents = open_source(settings)
            for index in range(len(documents)):
                with contextlib.suppress(UserError):
                    documents[index]
            return documents.contents

        def make(rng, data=data, is_json=is_json):
            return damaged_json(data.decode(), rng) if is_json else damaged_bytes(data, rng)

        survive = survives if kind == "parquet" else survives_or_skips
        survive(file_call(path, read), Random(number), 600, make)
        path.unlink()


def survives_or_skips(call, rng, trials, make):
    """The same where every damaged input may be read as another text."""
    for trial in range(trials):
        content = make(rng)
        try:
            call(content)
        except UserError:
            continue
        except Exception as error:
            pytest.fail(f"trial {trial}: {type(error).__name__}: {error}\ninput: {content[:2000]!r}", pytrace=True)


RECORDS = {
    "alpaca": [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"prompt": "Hi", "response": "Hello"}],
    "messages": [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    ],
    "ranking": [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"},
        {"prompt": "Hi", "answers": ["a", "b", "c"], "ranks": [0, 1, 2]},
        {"prompt": "Hi", "responses": ["a", "b"], "scores": [0.5, 1.5]},
    ],
    "tree": [
        {
            "prompt": {
                "text": "Hi",
                "role": "prompter",
                "replies": [
                    {"text": "Hello", "role": "assistant", "rank": 0, "replies": []},
                    {"text": "Go", "role": "assistant", "rank": 1, "replies": []},
                ],
            }
        }
    ],
}


@pytest.mark.parametrize("kind", ["demonstration", "ranking", "response", "prompt"])
@pytest.mark.parametrize("shape", RECORDS)
def test_conversations(tmp_path, kind, shape):
    lines = "\n".join(json.dumps(record) for record in RECORDS[shape])
    for number, name in enumerate(("a.jsonl", "a.json")):
        text = lines if name == "a.jsonl" else json.dumps(RECORDS[shape])
        for on_bad_record in ("error", "skip"):
            source = DialogueSourceSettings(path=str(tmp_path / name), on_bad_record=on_bad_record)
            call = file_call(tmp_path / name, lambda s=source: read_records(s, kind))
            survives_or_skips(call, Random(number), 120, lambda r, t=text: damaged_json(t, r))


def test_conversations_in_csv(tmp_path):
    text = b'prompt,response\nHi,Hello\n"a, ""b""\nc",d\n'
    source = DialogueSourceSettings(path=str(tmp_path / "a.csv"), on_bad_record="skip")
    call = file_call(tmp_path / "a.csv", lambda: read_records(source, "demonstration"))
    survives_or_skips(call, Random(0), 1000, lambda r: damaged_bytes(text, r))


FIELDS = ["train.steps", "data.batch_size", "name", "optimizer.learning_rate", "model.attention.pattern", "log.profile"]
FIELDS += ["data.train.0.path", "data.train.0.kind", "evaluation.prompts", "tokenizer.path", "data.train", "mesh.data"]


def words_of(rng):
    """Words of a command that begins as one should."""
    junk = [str(value) for value in JUNK if isinstance(value, str | int | float)] + [
        "9" * 5_000,
        "-1",
        "[]",
        "(1,",
        "é",
    ]
    junk = [word.encode(errors="replace").decode() for word in junk if "\0" not in word]
    starts = [["run", "gpt1"], ["run", "quickstart"], ["count", "gpt1"], ["count"], ["generate"], ["score"], ["report"]]
    words = list(rng.choice(starts))
    for _ in range(rng.randint(1, 3)):
        option = rng.choice(
            [*(f"--{field}" for field in FIELDS), "--workdir", "--only", "--max-tokens", "--pretrain.name"]
        )
        words += [option, rng.choice(junk)] if rng.random() < 0.8 else [rng.choice(junk)]
    return words


def test_commands(tmp_path, monkeypatch):
    """Nothing is run: what a command would do is replaced by nothing, so that words alone are read."""
    monkeypatch.setattr(lmjax, "run", lambda *_, **__: type("Result", (), {"exit_code": 0})(), raising=False)
    monkeypatch.setattr(lmjax, "load", _refuse, raising=False)
    monkeypatch.setattr("lmjax.stages.score.print_scores", _refuse)
    rng, codes = Random(7), set()
    monkeypatch.chdir(tmp_path)
    for trial in range(400):
        words = words_of(rng)
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            try:
                code = lmjax.cli.main(words)
            except SystemExit as error:
                code = error.code
            except Exception as error:
                pytest.fail(f"trial {trial}: {words!r}: {type(error).__name__}: {error}", pytrace=True)
        codes.add(code)
        assert code in (0, 2), (words, said.getvalue())
        assert "Traceback" not in said.getvalue()
    assert codes == {0, 2}


def _refuse(*_, **__):
    raise UserError("there is nothing to load")


def test_a_recipe_that_was_read_is_the_one_that_was_written():
    recipe = load_recipe("gpt1")
    assert isinstance(recipe, Pretrain)
    assert from_json(to_json(recipe)) == recipe
