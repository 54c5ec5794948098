"""Tokenizer files of Hugging Face folders: the same ids on the way in and out, or a reason, never other ids."""

import json

import pytest

from lmjax.data.tokenizer import build_tokenizer
from lmjax.errors import UserError
from lmjax.interop.hf_tokenizer import read_tokenizer, write_tokenizer
from lmjax.settings import TokenizerSettings

CORPUS = ["the cat sat on the mat, the cat ate the rat\n", "a cat and a hat: 12 + 34 = 46\n"] * 20
TEXTS = ["the cat sat", "  a  hat\n\n", "12+34", "naïve 猫 🐈", "<|endoftext|> [SEP] </s>", "a<x>b foo bar ▁ 猫!"]
SYMBOLS = ("<x>", "at", "foo bar", "猫!")


def trained(kind, vocab_size, **settings):
    return build_tokenizer(TokenizerSettings(kind=kind, vocab_size=vocab_size, **settings), CORPUS)


def bpe(**settings):
    return trained("bpe", 280, **settings)


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


TOKENIZERS = {
    "byte": lambda: build_tokenizer(TokenizerSettings(kind="byte"), []),
    "bpe": bpe,
    "bpe with symbols": lambda: bpe(user_symbols=SYMBOLS),
    "wordpiece": lambda: trained("wordpiece", 50),
    "wordpiece cased, with symbols": lambda: trained("wordpiece", 50, lowercase=False, user_symbols=("<x>",)),
    "sentencepiece": lambda: trained("sentencepiece", 283, user_symbols=SYMBOLS[:1]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_comes_back_with_the_same_ids(tmp_path, name):
    tokenizer = TOKENIZERS[name]()
    write_tokenizer(tmp_path, tokenizer, 64)
    back, reason = read_tokenizer(tmp_path)
    assert reason == ""
    assert [back.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert (back.vocab_size, back.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)


def test_the_pair_of_files_and_the_pipeline_give_the_same_ids(tmp_path):
    tokenizer = bpe()
    write_tokenizer(tmp_path, tokenizer, 64)
    (tmp_path / "vocab.json").rename(tmp_path / "vocab.json.away")
    from_pipeline, _ = read_tokenizer(tmp_path)
    (tmp_path / "vocab.json.away").rename(tmp_path / "vocab.json")
    (tmp_path / "tokenizer.json").unlink()
    from_pair, _ = read_tokenizer(tmp_path)
    for text in TEXTS:
        assert from_pipeline.encode(text) == from_pair.encode(text) == tokenizer.encode(text)


@pytest.mark.data
def test_the_published_files_give_the_published_ids(tmp_path, shared_data):
    """Ids of "Hello world" and of a run of blanks in the published vocabulary."""
    folder = shared_data("vocab_gpt2")
    (tmp_path / "vocab.json").write_bytes((folder / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((folder / "vocab.bpe").read_bytes())
    tokenizer, _ = read_tokenizer(tmp_path)
    assert tokenizer.encode("Hello  world") == [15496, 220, 995]
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)


@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_added_beside_the_pair_of_files_keep_their_ids(tmp_path, place):
    write_tokenizer(tmp_path, bpe(), 64)
    (tmp_path / "tokenizer.json").unlink()
    added = {"added_tokens.json": {"[PAD]": 280, "<x>": 281}}
    added["tokenizer_config.json"] = {
        "added_tokens_decoder": {
            "279": {"content": "<|endoftext|>"},
            "280": {"content": "[PAD]"},
            "281": {"content": "<x>"},
        }
    }
    (tmp_path / place).write_text(json.dumps(added[place]))
    tokenizer, _ = read_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 282
    assert tokenizer.encode("[PAD]<x>") == [280, 281]
    (tmp_path / place).write_text(json.dumps(added[place]).replace("281", "295"))
    with pytest.raises(UserError, match=r"vocab\.json: added token '<x>' has the id 295: expected \[281\]"):
        read_tokenizer(tmp_path)


OTHER_PIPELINES = {
    "a normalizer": (lambda p: p.update(normalizer={"type": "NFC"}), "the normalizer 'NFC'"),
    "another cut": (
        lambda p: p.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits"}]}),
        "the pre-tokenizer .*Digits",
    ),
    "a blank in front": (lambda p: p["pre_tokenizer"].update(add_prefix_space=True), "the pre-tokenizer"),
    "no cut": (lambda p: p["pre_tokenizer"].update(use_regex=False), "the pre-tokenizer"),
    "another model": (lambda p: p["model"].update(type="Unigram"), "a 'Unigram' tokenizer"),
    "byte fallback": (lambda p: p["model"].update(byte_fallback=True), "model.byte_fallback = True"),
    "whole words": (lambda p: p["model"].update(ignore_merges=True), "model.ignore_merges = True"),
    "ends of words": (lambda p: p["model"].update(end_of_word_suffix="</w>"), "model.end_of_word_suffix = '</w>'"),
    "greedy symbols": (lambda p: p["added_tokens"][0].update(lstrip=True), "the added token '<|endoftext|>'"),
}


@pytest.mark.parametrize("case", OTHER_PIPELINES)
def test_a_pipeline_that_would_cut_otherwise_is_not_read_as_gpt2_s(tmp_path, case):
    change, reason = OTHER_PIPELINES[case]
    write_tokenizer(tmp_path, bpe(), 64)
    edit(tmp_path / "tokenizer.json", change)
    tokenizer, found = read_tokenizer(tmp_path)
    assert tokenizer is None
    assert found.startswith(f"{tmp_path / 'tokenizer.json'}: {reason.split('.*')[0]}")


def test_gpt1_s_vocabulary_is_named_as_one_that_is_not_read(tmp_path):
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "the</w>": 1, "t": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt he</w>\n")
    tokenizer, reason = read_tokenizer(tmp_path)
    assert tokenizer is None
    assert "</w>" in reason


def test_a_vocabulary_that_ends_texts_otherwise_is_not_read(tmp_path):
    write_tokenizer(tmp_path, bpe(), 64)
    for file in ("vocab.json", "tokenizer.json"):
        text = (tmp_path / file).read_text().replace("<|endoftext|>", "</s>")
        (tmp_path / file).write_text(text)
    for file in ("tokenizer.json", "vocab.json"):
        tokenizer, reason = read_tokenizer(tmp_path)
        assert tokenizer is None
        assert reason.startswith(f"{tmp_path / file}: no <|endoftext|>")
        (tmp_path / file).unlink()


def test_damaged_or_missing_files_are_errors_and_not_reasons(tmp_path):
    write_tokenizer(tmp_path, bpe(), 64)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json:1: expected JSON"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"expected merges\.txt or vocab\.bpe"):
        read_tokenizer(tmp_path)


def test_a_folder_without_any_says_so(tmp_path):
    assert read_tokenizer(tmp_path) == (None, f"{tmp_path} has no tokenizer")


def test_tokens_added_to_a_published_sentencepiece_model_are_not_passed_over(tmp_path):
    tokenizer = trained("sentencepiece", 282)
    model = tokenizer.contents().files["sentencepiece.model"]
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert read_tokenizer(tmp_path)[0].encode("the cat") == tokenizer.encode("the cat")
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 282}')
    found, reason = read_tokenizer(tmp_path)
    assert found is None
    assert "['<pad>'] were added" in reason
