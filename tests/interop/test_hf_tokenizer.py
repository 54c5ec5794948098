"""Tokenizer files of Hugging Face folders: the same ids on the way in and out, or a reason, never other ids."""

import json

import pytest
import tokenizers

from lmjax.errors import UserError
from lmjax.interop.hf_tokenizer import read_tokenizer, write_tokenizer
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.tokenizer import build_tokenizer

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


def foreign(folder, tokenizer):
    """The folder of a tokenizer as transformers would have written it, without lmjax's own description."""
    write_tokenizer(folder, tokenizer, 64)
    (folder / "lmjax_tokenizer.json").unlink()
    return folder


def test_the_pair_of_files_and_the_pipeline_give_the_same_ids(tmp_path):
    tokenizer = bpe()
    foreign(tmp_path, tokenizer)
    (tmp_path / "vocab.json").rename(tmp_path / "vocab.json.away")
    from_pipeline, _ = read_tokenizer(tmp_path)
    (tmp_path / "vocab.json.away").rename(tmp_path / "vocab.json")
    (tmp_path / "tokenizer.json").unlink()
    from_pair, _ = read_tokenizer(tmp_path)
    assert from_pipeline.kind == from_pair.kind == "huggingface"
    for text in TEXTS[:4]:
        assert from_pipeline.encode(text) == from_pair.encode(text) == tokenizer.encode(text)
    assert from_pipeline.encode("<|endoftext|>") == from_pair.encode("<|endoftext|>") == [tokenizer.eos_id]


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
    foreign(tmp_path, bpe())
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
    with pytest.raises(UserError, match=r"added token '<x>' has the id 295: expected 281"):
        read_tokenizer(tmp_path)


OTHER_PIPELINES = {
    "a normalizer": lambda p: p.update(normalizer={"type": "NFC"}),
    "another cut": lambda p: p.update(
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, p["pre_tokenizer"]],
        }
    ),
    "no cut": lambda p: p["pre_tokenizer"].update(use_regex=False),
    "whole words": lambda p: p["model"].update(ignore_merges=True),
    "greedy symbols": lambda p: p["added_tokens"][0].update(lstrip=True),
}


@pytest.mark.parametrize("case", OTHER_PIPELINES)
def test_a_pipeline_is_followed_as_it_is_and_kept(tmp_path, case):
    foreign(tmp_path / "hf", bpe(user_symbols=("<x>",)))
    edit(tmp_path / "hf" / "tokenizer.json", OTHER_PIPELINES[case])
    tokenizer, _ = read_tokenizer(tmp_path / "hf")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    texts = [*TEXTS, "cafe\u0301 1234 the cat  <|endoftext|>"]
    assert [tokenizer.encode(text) for text in texts] == [library.encode(text).ids for text in texts]
    for number in (1, 2):  # out and in again
        write_tokenizer(tmp_path / f"{number}", tokenizer, 64)
        tokenizer, _ = read_tokenizer(tmp_path / f"{number}")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / f"{number}" / file).read_bytes() == (tmp_path / "hf" / file).read_bytes()
    assert [tokenizer.encode(text) for text in texts] == [library.encode(text).ids for text in texts]


def test_an_export_that_was_edited_is_not_read_as_it_was(tmp_path):
    write_tokenizer(tmp_path, bpe(), 64)
    edit(tmp_path / "tokenizer.json", lambda p: p.update(normalizer={"type": "NFC"}))
    with pytest.raises(UserError, match=r"tokenizer\.json: expected the SHA-256 .* or remove lmjax_tokenizer\.json"):
        read_tokenizer(tmp_path)


def test_gpt1_s_vocabulary_is_named_as_one_that_is_not_read(tmp_path):
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "the</w>": 1, "t": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt he</w>\n")
    for extra in (None, "config.json"):
        if extra:
            (tmp_path / extra).write_text('{"model_type": "openai-gpt"}')
        tokenizer, reason = read_tokenizer(tmp_path)
        assert tokenizer is None
        assert "GPT-1" in reason


def test_a_vocabulary_that_ends_texts_otherwise_takes_the_name_or_is_not_read(tmp_path):
    foreign(tmp_path, bpe())
    for file in ("vocab.json", "tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / file).read_text().replace("<|endoftext|>", "</s>")
        (tmp_path / file).write_text(text)
    assert read_tokenizer(tmp_path)[0].eos_id == 279
    edit(tmp_path / "tokenizer_config.json", lambda c: c.update(tokenizer_class="PreTrainedTokenizerFast"))
    edit(tmp_path / "tokenizer_config.json", lambda c: c.pop("eos_token"))
    (tmp_path / "generation_config.json").unlink()
    tokenizer, reason = read_tokenizer(tmp_path)
    assert tokenizer is None
    assert reason.startswith(f"{tmp_path / 'tokenizer_config.json'}: no eos_token")


def test_damaged_or_missing_files_are_errors_and_not_reasons(tmp_path):
    foreign(tmp_path, bpe())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json:1: expected JSON"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"expected merges\.txt or vocab\.bpe"):
        read_tokenizer(tmp_path)


def test_a_folder_without_any_says_so(tmp_path):
    tokenizer, reason = read_tokenizer(tmp_path)
    assert tokenizer is None
    assert reason.startswith(f"{tmp_path}: found no tokenizer in it")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert read_tokenizer(tmp_path) == (None, f"{tmp_path} has no tokenizer")


def test_tokens_added_to_a_published_sentencepiece_model_are_one_token_each(tmp_path):
    tokenizer = trained("sentencepiece", 282)
    model = tokenizer.contents().files["sentencepiece.model"]
    (tmp_path / "tokenizer.model").write_bytes(model)
    assert read_tokenizer(tmp_path)[0].encode("the cat") == tokenizer.encode("the cat")
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 282}')
    found, _ = read_tokenizer(tmp_path)
    assert found.encode("the cat<pad>the") == [*tokenizer.encode("the cat"), 282, *tokenizer.encode("the")]
    assert (found.vocab_size, found.eos_id) == (283, tokenizer.eos_id)
    assert read_tokenizer(tmp_path, rows=282)[0].vocab_size == 282


def values(folder, file):
    return json.loads((folder / file).read_text())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_export_says_where_texts_begin_end_and_are_padded(tmp_path, name):
    tokenizer = TOKENIZERS[name]()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "eos_token_id": 9}')
    write_tokenizer(tmp_path, tokenizer, 64)
    pad_id = 0 if tokenizer.kind == "wordpiece" else None
    ids = {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": pad_id}
    assert values(tmp_path, "generation_config.json") == ids
    assert values(tmp_path, "config.json") == {"model_type": "gpt2"} | ids
    if tokenizer.kind == "sentencepiece":
        return
    names = values(tmp_path, "tokenizer_config.json")
    pipeline = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert pipeline.token_to_id(names["eos_token"]) == tokenizer.eos_id
    assert pipeline.get_added_tokens_decoder()[tokenizer.eos_id].special


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_an_export_keeps_symbols_as_one_token_and_turn_marks_special(tmp_path, kind):
    tokenizer = trained(kind, {"bpe": 280, "wordpiece": 50}[kind], user_symbols=("<|im_end|>", "<x>"))
    write_tokenizer(tmp_path, tokenizer, 64)
    pipeline = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [text for text in TEXTS if "[SEP]" not in text] + ["the cat<|im_end|>a<x>b"]
    assert [pipeline.encode(text, add_special_tokens=False).ids for text in texts] == [
        tokenizer.encode(text) for text in texts
    ]
    added = {token.content: token.special for token in pipeline.get_added_tokens_decoder().values()}
    assert (added["<|im_end|>"], added["<x>"]) == (True, False)


def test_a_folder_s_own_end_pad_and_special_tokens_come_back_out(tmp_path):
    foreign(tmp_path / "hf", bpe(user_symbols=("<|im_end|>", "<|pad|>")))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    edit(tmp_path / "hf" / "tokenizer_config.json", lambda c: c.update(names) or c.pop("bos_token"))
    tokenizer, _ = read_tokenizer(tmp_path / "hf")
    ids = (tokenizer.encode("<|im_end|>")[0], tokenizer.encode("<|pad|>")[0])
    assert (tokenizer.eos_id, tokenizer.pad_id) == ids
    assert tokenizer.decode([*tokenizer.encode("the cat"), tokenizer.eos_id]) == "the cat"
    write_tokenizer(tmp_path, tokenizer, 64)
    written = values(tmp_path, "generation_config.json")
    assert (written["eos_token_id"], written["pad_token_id"]) == ids
    assert values(tmp_path, "tokenizer_config.json") == values(tmp_path / "hf", "tokenizer_config.json")
