"""Every kind of tokenizer says where in the original text its tokens are, in which word, and what its special ids are.

What may go wrong: spans of bytes or of cleaned text, blanks and accents at the ends, words that the text has not.
"""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

import functools
import json
import lzma
import pydoc_data.topics
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.pieces import SpecialIds
from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer
from lmjax.tokenizers.wordpiece import wordpiece

TEXTS = [text for name, text in sorted(pydoc_data.topics.topics.items()) if len(text) < 3_000]
KINDS = {
    "byte": TokenizerSettings(),
    "unigram": TokenizerSettings(kind="sentencepiece", vocab_size=500, user_symbols=("<|user|>", 'a,"b')),
    "sentencepiece_bpe": TokenizerSettings(kind="sentencepiece", vocab_size=500, sentencepiece_model="bpe"),
    "no_bytes": TokenizerSettings(kind="sentencepiece", vocab_size=200, byte_fallback=False),
    "bpe": TokenizerSettings(kind="bpe", vocab_size=500, user_symbols=("<|user|>",)),
    "wordpiece": TokenizerSettings(kind="wordpiece", vocab_size=500, user_symbols=("<|user|>",)),
}
AWKWARD = [
    *("", " ", "the world", "  the  world \n", "苏轼是北宋著名的文学家", "naïve cafe\u0301 cafe\u0301s"),
    *("the\r\nworld\r\n", "\U0001f600\U0001f469\u200d\U0001f467 a", "th\0e w\x01or\x7fld", "\u2581a\u2581\u2581b"),
    *("<|user|>the<|user|>", "\u3000全角\u3000", "\ufb03 ß İ ŉ", "\u0301\u0301x"),
]


@functools.cache
def made(name):
    return build_tokenizer(KINDS[name], TEXTS)


def spans(tokenizer, text):
    return [text[begin:end] for begin, end in tokenizer.pieces([text])[0].offsets]


def check(tokenizer, text):
    """Ids are those of `encode`; spans lie inside the text, begin in order, and have no blanks at their ends."""
    pieces = tokenizer.pieces([text])[0]
    assert (pieces.ids.dtype, pieces.offsets.dtype, pieces.words.dtype) == (np.int32, np.int64, np.int32)
    assert pieces.ids.tolist() == tokenizer.encode(text)
    assert pieces.offsets.shape == (len(pieces), 2) and pieces.words.shape == (len(pieces),)
    begin, end = pieces.offsets.T
    assert ((begin >= 0) & (begin <= end) & (end <= len(text))).all()
    assert (np.diff(begin) >= 0).all()
    assert (np.diff(pieces.words) >= 0).all() and (pieces.words >= 0).all()
    for first, last in pieces.offsets.tolist():
        assert text[first:last] == text[first:last].strip() or not text[first:last].strip()
    return pieces


@pytest.mark.parametrize("name", KINDS)
def test_spans_are_of_the_original_text_also_for_awkward_ones(name):
    for text in AWKWARD:
        pieces = check(made(name), text)
        if made(name).lossless:
            covered = {at for begin, end in pieces.offsets.tolist() for at in range(begin, end)}
            assert {at for at, character in enumerate(text) if not character.isspace()} <= covered, text


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40))
def test_any_unicode_text_has_spans_inside_it_and_in_order(name, text):
    check(made(name), text)


HARD = json.loads(lzma.decompress((Path(__file__).parents[1] / "golden" / "hf_tokenizers.json.xz").read_bytes()))


@pytest.mark.parametrize("name", HARD["kinds"])
def test_hard_strings_have_spans_with_the_tokenizers_of_transformers(name, tmp_path):
    for file, data in HARD["kinds"][name]["files"].items():
        (tmp_path / file).write_bytes(b64decode(data))
    tokenizer, refused = load_tokenizer(tmp_path), set(HARD["kinds"][name]["refused"])
    for index, text in enumerate(HARD["strings"][:400]):
        if index not in refused:
            check(tokenizer, text)


@pytest.mark.parametrize("name", KINDS)
def test_words_are_told_apart_and_their_tokens_are_together(name):
    text = " see  the playground"
    pieces = made(name).pieces([text])[0]
    first: dict[int, str] = {}
    for word, (begin, end) in zip(pieces.words.tolist(), pieces.offsets, strict=True):
        if text[begin:end].strip():
            first.setdefault(word, text[begin])
    assert list(first.values()) == ["s", "t", "p"], "three words, each from its first letter on"


def test_spans_of_each_kind_of_token():
    assert spans(made("byte"), "aé 轼") == ["a", "é", "é", " ", "轼", "轼", "轼"]
    assert spans(made("unigram"), "é") == ["é", "é"], "the bytes of a character all have its span"
    assert spans(made("unigram"), "\u2581") == ["\u2581"] * 3
    assert spans(made("no_bytes"), "轼 a") == ["轼", "a"], "an unknown character has its span"
    assert "".join(spans(made("bpe"), "the world")) == "theworld", "the blank before a word is in no span"


def test_pieces_of_wordpiece_leave_out_what_is_cleaned_and_keep_accents():
    tokenizer = wordpiece(["[UNK]", "[SEP]", "cafe", "##s", "ab", "x"], lowercase=True)
    assert spans(tokenizer, "Cafe\u0301s, CAFÉ x") == ["Cafe\u0301", "s", ",", "CAFÉ", "x"]
    assert spans(tokenizer, "cafe\u0301 x\u0301\u0301") == ["cafe\u0301", "x\u0301\u0301"], "marks at a span's end"
    assert spans(tokenizer, "a\0b\ufffd  苏轼😀") == ["a\0b", "苏", "轼", "😀"]
    assert tokenizer.pieces(["Cafés, 苏轼"])[0].words.tolist() == [0, 0, 1, 2, 3]


def test_words_that_are_given_number_the_pieces_and_blanks_before_them_are_in_no_span():
    words = ["我", "playgrounds", "", "(x)"]
    for name in KINDS:
        for before in ("", " "):
            pieces = made(name).word_pieces(words, before)
            alone = [made(name).encode(before * (number > 0) + word) for number, word in enumerate(words)]
            assert pieces.ids.tolist() == [index for ids in alone for index in ids], name
            assert pieces.words.tolist() == [number for number, ids in enumerate(alone) for _ in ids]
            for number, word in enumerate(words):
                covered = {at for span in pieces.offsets[pieces.words == number].tolist() for at in range(*span)}
                assert covered == set(range(len(word))), (name, before, word)
    assert len(made("wordpiece").word_pieces([])) == 0


def test_special_ids_of_each_kind(tmp_path):
    assert made("byte").special == made("bpe").special == SpecialIds()
    assert made("unigram").special == SpecialIds(unk=0)
    assert made("wordpiece").special == SpecialIds(cls=2, sep=3, mask=4, pad=0, unk=1)
    assert made("wordpiece").eos_id == made("wordpiece").special.sep
    made("wordpiece").save(tmp_path)
    assert load_tokenizer(tmp_path).special == made("wordpiece").special
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[UNK]", "[SEP]", "[CLS]", "a", "<m>", "[PAD]"]))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "mask_token": "<m>", "pad_token": "[PAD]"})
    )
    assert load_tokenizer(folder).special == SpecialIds(cls=2, sep=1, mask=4, pad=5, unk=0)


@pytest.mark.data
def test_a_sentence_of_characters_that_bert_does_not_know_comes_back(shared_data):
    tokenizer = load_tokenizer(shared_data("vocab_bert"), kind="wordpiece")
    text = "苏轼是北宋著名的文学家与政治家，眉州眉山人。"
    assert spans(tokenizer, text) == list(text)
    ids = tokenizer.pieces([text])[0].ids
    assert (ids == tokenizer.special.unk).sum() == 8
    assert tokenizer.special == SpecialIds(cls=101, sep=102, mask=103, pad=0, unk=100)
    assert tokenizer.pieces([text])[0].words.tolist() == list(range(len(text)))


@pytest.mark.data
def test_published_vocabularies_give_spans_of_awkward_texts(shared_data):
    folder = shared_data("vocab_sentencepiece")
    names = sorted(folder.glob("*.model"))
    for tokenizer in (*map(load_tokenizer, names), load_tokenizer(shared_data("vocab_gpt2"), kind="bpe")):
        for text in AWKWARD:
            check(tokenizer, text)
    assert "".join(spans(load_tokenizer(names[0]), "Hello  wörld")) == "Hellowörld"
