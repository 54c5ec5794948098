"""Tokenizer folders of older versions give the ids, the texts and the fingerprint that they gave, also saved again."""

import json
from pathlib import Path

import pytest

from lmjax.errors import UserError
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer, tokenizer_fingerprint

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizers_c60ae93"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
CORPUS = ["the cat sat on the mat, the cat ate the rat\n", "A cat and a hat: 12 + 34 = 46 caf\u00e9\n"] * 20
TRAINED = {
    "bpe": TokenizerSettings(kind="bpe", vocab_size=290, user_symbols=("<|user|>", "a", "\u00e9 \u00e0", "\u00e9a")),
    "wordpiece": TokenizerSettings(kind="wordpiece", vocab_size=55, user_symbols=("<|user|>", "cat")),
    "wordpiece_cased": TokenizerSettings(kind="wordpiece", vocab_size=55, lowercase=False),
    "sentencepiece": TokenizerSettings(kind="sentencepiece", vocab_size=285, user_symbols=("<|user|>",)),
}


def check(tokenizer, name):
    known = EXPECTED["kinds"][name]
    ids = [tokenizer.encode(text) for text in EXPECTED["texts"]]
    lengths = tokenizer.byte_lengths()
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eos_id, tokenizer.lossless) == tuple(
        known[field] for field in ("kind", "vocab_size", "eos_id", "lossless")
    )
    assert ids == known["ids"]
    assert [tokenizer.decode(line) for line in ids] == known["decoded"]
    assert [tokenizer.decode([index]) for index in range(tokenizer.vocab_size)] == known["tokens"]
    assert (None if lengths is None else lengths.tolist()) == known["byte_lengths"]
    assert tokenizer_fingerprint(tokenizer) == known["fingerprint"], "token shards are known by it"


@pytest.mark.parametrize("name", EXPECTED["kinds"])
def test_an_older_folder_is_read_as_it_was_and_comes_back_when_saved(name, tmp_path):
    tokenizer = load_tokenizer(GOLDEN / name)
    check(tokenizer, name)
    tokenizer.save(tmp_path)
    check(load_tokenizer(tmp_path), name)


@pytest.mark.parametrize("name", TRAINED)
def test_training_gives_the_tokenizer_that_it_gave(name, tmp_path):
    tokenizer = build_tokenizer(TRAINED[name], CORPUS)
    check(tokenizer, name)
    tokenizer.save(tmp_path)
    check(load_tokenizer(tmp_path), name)


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_a_trained_tokenizer_is_saved_as_the_library_s_own_file(name, tmp_path):
    tokenizer = build_tokenizer(TRAINED[name], CORPUS)
    tokenizer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lmjax_tokenizer.json", "tokenizer.json"]
    library = load_tokenizer(tmp_path / "tokenizer.json")
    assert library.kind == "huggingface"
    texts = [text for text in EXPECTED["texts"] if "[SEP]" not in text]
    assert [library.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
    assert (library.vocab_size, library.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)


@pytest.mark.parametrize(("name", "other"), [("bpe", "wordpiece"), ("wordpiece", "bpe")])
def test_a_file_of_another_kind_s_steps_is_refused(name, other, tmp_path):
    build_tokenizer(TRAINED[name], CORPUS).save(tmp_path)
    metadata = tmp_path / "lmjax_tokenizer.json"
    metadata.write_text(metadata.read_text().replace(f'"kind": "{name}"', f'"kind": "{other}"'))
    with pytest.raises(UserError, match=r"parameters\.eos_id|tokenizer.json has the steps"):
        load_tokenizer(tmp_path)
