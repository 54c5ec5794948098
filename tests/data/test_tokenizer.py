"""Lossless where promised, trained alike twice, saved files that come back the same, mistakes that are named."""

import functools
import json
import pickle
import pydoc_data.topics
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.errors import UserError
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer, tokenizer_fingerprint

# ruff: noqa: RUF001  (Chinese punctuation is meant)

TEXTS = [text for name, text in sorted(pydoc_data.topics.topics.items()) if len(text) < 20_000]
AWKWARD = [
    "",
    "Hello world",
    "the cat's 3rd life; he'll  see\n\n\tif x:\n        return  1   \n",
    "你好，世界。深度学习 123",
    "😀👩‍👩‍👧 naïve café e\u0301 \u2581marks\u2581 \u2581",
    "blanks:    \t  \n \r\n \u00a0\u3000 end ",
    "<|endoftext|> </s> <s> <unk> <pad> [SEP] [CLS] [MASK] <0x41>",
    "\0\x01\x7f\u2585",
]
KINDS = {
    "byte": TokenizerSettings(),
    "unigram": TokenizerSettings(kind="sentencepiece", vocab_size=600, user_symbols=("<|user|>", 'a,"b', "é à")),
    "sentencepiece_bpe": TokenizerSettings(kind="sentencepiece", vocab_size=600, sentencepiece_model="bpe"),
    "bpe": TokenizerSettings(kind="bpe", vocab_size=600, user_symbols=("<|user|>", "é à", "éa")),
    "wordpiece": TokenizerSettings(kind="wordpiece", vocab_size=600, user_symbols=("<|user|>",)),
    "cased": TokenizerSettings(kind="wordpiece", vocab_size=600, lowercase=False),
}
LOSSLESS = ["byte", "unigram", "sentencepiece_bpe", "bpe"]
TRAINED = [name for name in KINDS if name != "byte"]


@functools.cache
def trained(name):
    return build_tokenizer(KINDS[name], TEXTS)


@pytest.mark.parametrize("name", KINDS)
def test_a_tokenizer_says_whether_it_loses_text(name, tmp_path):
    assert trained(name).lossless == (name in LOSSLESS)
    trained(name).save(tmp_path)
    assert load_tokenizer(tmp_path).lossless == (name in LOSSLESS)


def test_a_sentencepiece_without_byte_fallback_loses_text():
    asked = TokenizerSettings(kind="sentencepiece", vocab_size=600, byte_fallback=False)
    assert not build_tokenizer(asked, TEXTS).lossless


@pytest.mark.parametrize("name", LOSSLESS)
@given(text=st.text())
@settings(max_examples=150, deadline=None)
def test_decoding_inverts_encoding(name, text):
    tokenizer = trained(name)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", LOSSLESS)
@given(parts=st.lists(st.one_of(st.text(), st.sampled_from([*AWKWARD, " ", "\n", "\u2581", "<|user|>", "é à"]))))
@settings(max_examples=100, deadline=None)
def test_the_bytes_of_a_texts_ids_add_up_to_its_own(name, parts):
    tokenizer, text = trained(name), "".join(parts)
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,) and lengths[tokenizer.eos_id] == 0
    assert lengths[tokenizer.encode(text)].sum() == len(text.encode())


@pytest.mark.parametrize("name", ["wordpiece", "cased"])
def test_where_text_is_lost_no_id_stands_for_bytes(name):
    assert trained(name).byte_lengths() is None


@pytest.mark.parametrize("name", LOSSLESS)
@given(parts=st.lists(st.sampled_from([*AWKWARD, " ", "\n", "\u2581", "<|user|>", "é à", "éa", 'a,"b', "if"])))
@settings(max_examples=100, deadline=None)
def test_decoding_inverts_encoding_of_blanks_symbols_and_marks(name, parts):
    tokenizer, text = trained(name), "".join(parts)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_gives_the_ids_of_each_text_alone(name):
    tokenizer = trained(name)
    batch = tokenizer.encode_batch(AWKWARD)
    assert [ids.dtype for ids in batch] == [np.int32] * len(AWKWARD)
    assert [ids.shape for ids in batch] == [(len(tokenizer.encode(text)),) for text in AWKWARD]
    assert [ids.tolist() for ids in batch] == [tokenizer.encode(text) for text in AWKWARD]
    assert all(0 <= index < tokenizer.vocab_size for ids in batch for index in ids)


@pytest.mark.parametrize("name", KINDS)
def test_names_of_special_tokens_in_data_are_ordinary_text(name):
    tokenizer = trained(name)
    ids = tokenizer.encode("a <|endoftext|> b </s> c [SEP] d <s> e [PAD] f <unk>")
    assert tokenizer.eos_id not in ids
    if name in LOSSLESS:
        assert tokenizer.decode(ids) == "a <|endoftext|> b </s> c [SEP] d <s> e [PAD] f <unk>"


@pytest.mark.parametrize("name", KINDS)
def test_end_of_text_decodes_to_nothing(name):
    tokenizer = trained(name)
    ids = tokenizer.encode("the value")
    assert tokenizer.decode([tokenizer.eos_id, *ids, tokenizer.eos_id]) == "the value"
    assert tokenizer.decode(np.asarray(ids, dtype=np.int32)) == "the value"


@pytest.mark.parametrize("name", KINDS)
def test_an_id_outside_the_vocabulary_is_an_error_that_names_it(name):
    tokenizer = trained(name)
    for index in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match=f"token id {index}: expected 0 to {tokenizer.vocab_size - 1}"):
            tokenizer.decode([index])


@pytest.mark.parametrize("name", KINDS)
def test_text_that_is_not_unicode_is_an_error_that_names_the_place(name):
    with pytest.raises(UserError, match=r"text 1 of 2: .* lone surrogate U\+D800 at character 3"):
        trained(name).encode_batch(["fine", "bad\ud800"])


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_tokenizer_comes_back_with_the_same_ids(name, tmp_path):
    tokenizer = trained(name)
    tokenizer.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert (loaded.kind, loaded.vocab_size, loaded.eos_id) == (tokenizer.kind, tokenizer.vocab_size, tokenizer.eos_id)
    texts = [*AWKWARD, *TEXTS[:20], "a <|user|> é à éa"]
    assert [loaded.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


def test_fingerprints_tell_tokenizers_apart():
    assert len({tokenizer_fingerprint(trained(name)) for name in KINDS}) == len(KINDS)


@pytest.mark.parametrize("name", TRAINED)
def test_training_twice_gives_equal_files(name):
    again = build_tokenizer(KINDS[name], TEXTS)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(trained(name))


@pytest.mark.parametrize("name", TRAINED)
def test_training_gives_the_vocabulary_size_asked_for_and_compresses(name):
    tokenizer = trained(name)
    assert tokenizer.vocab_size == 600
    text = " ".join(TEXTS[0].split())
    assert len(tokenizer.encode(text)) < 0.6 * len(text)


@pytest.mark.parametrize("name", TRAINED)
def test_a_vocabulary_too_large_for_the_text_names_the_largest_that_fits(name):
    texts = ["the cat sat on the mat, the cat sat on the hat"] * 3
    asked = TokenizerSettings(kind=KINDS[name].kind, sentencepiece_model=KINDS[name].sentencepiece_model)
    with pytest.raises(UserError, match=r"vocab_size = 4096: expected at most \d+") as error:
        build_tokenizer(asked, texts)
    most = int(re.search(r"at most (\d+)", str(error.value))[1])
    fits = TokenizerSettings(**{**vars(asked), "vocab_size": most})
    assert build_tokenizer(fits, texts).vocab_size == most


@pytest.mark.parametrize("name", TRAINED)
def test_a_vocabulary_too_small_names_the_smallest_that_fits(name):
    asked = TokenizerSettings(**{**vars(KINDS[name]), "vocab_size": 20})
    with pytest.raises(UserError, match=r"vocab_size = 20: expected at least \d+") as error:
        build_tokenizer(asked, TEXTS)
    least = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert build_tokenizer(TokenizerSettings(**{**vars(asked), "vocab_size": least}), TEXTS).vocab_size == least


@pytest.mark.parametrize("name", TRAINED)
def test_training_prints_nothing(name, capfd):
    build_tokenizer(KINDS[name], TEXTS)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["unigram", "bpe", "wordpiece"])
def test_a_user_symbol_is_one_token_anywhere(name):
    tokenizer = trained(name)
    alone = tokenizer.encode("<|user|>")
    assert tokenizer.encode("x<|user|>y").count(alone[-1]) == 1
    assert tokenizer.decode(alone).strip() == "<|user|>"
    assert len(alone) == 1


def test_training_reads_no_more_text_than_training_bytes():
    def texts():
        yield "é" * 300  # two bytes each
        yield "never" + 1 / 0

    few = TokenizerSettings(kind="bpe", vocab_size=258, training_bytes=601 - 2)
    assert build_tokenizer(few, texts()).vocab_size == 258
    with pytest.raises(ZeroDivisionError):
        build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=258, training_bytes=601), texts())


def test_digits_split_when_asked():
    base = {"kind": "sentencepiece", "vocab_size": 420}
    texts = ["in 2024 and in 2023, 1024 of 2048"] * 50 + TEXTS[:20]
    split = build_tokenizer(TokenizerSettings(**base, split_digits=True), texts)
    assert len(split.encode("2024")) == 4
    assert len(build_tokenizer(TokenizerSettings(**base), texts).encode("2024")) < 4


def test_very_long_lines_train_a_sentencepiece_bpe():
    texts = ["ab" * 50_000 + "c" * 70_000]
    asked = TokenizerSettings(kind="sentencepiece", sentencepiece_model="bpe", vocab_size=270)
    assert build_tokenizer(asked, texts).vocab_size == 270


def test_tokenizers_travel_to_worker_processes():
    for name in KINDS:
        copy = pickle.loads(pickle.dumps(trained(name)))
        assert copy.encode(AWKWARD[2]) == trained(name).encode(AWKWARD[2])


def test_no_text_or_contradictory_settings_are_errors(tmp_path):
    with pytest.raises(UserError, match="expected some, found none"):
        build_tokenizer(KINDS["bpe"], ["", " \n"])
    with pytest.raises(UserError, match=r"user_symbols = \('x',\): expected none"):
        build_tokenizer(TokenizerSettings(kind="byte", user_symbols=("x",)), [])
    trained("bpe").save(tmp_path)
    with pytest.raises(UserError, match=r"set tokenizer\.kind to 'bpe'"):
        build_tokenizer(TokenizerSettings(kind="wordpiece", path=str(tmp_path)), [])
    for kind, symbol in (("bpe", "<|endoftext|>"), ("bpe", "Ġ"), ("wordpiece", "[SEP]"), ("sentencepiece", "</s>")):
        with pytest.raises(UserError, match="symbol"):
            build_tokenizer(TokenizerSettings(kind=kind, vocab_size=600, user_symbols=(symbol,)), TEXTS)


def test_missing_and_unknown_files_are_errors_that_name_the_path(tmp_path):
    with pytest.raises(UserError, match=r"absent.*no such file.*expected"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(UserError, match=rf"{tmp_path}: found no tokenizer.*expected"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected merges.txt or vocab.bpe beside vocab.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(UserError, match=r"merges.txt:2: 'a b c': expected two tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match=r"vocab.json: expected a JSON object"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{\n"a": ')
    with pytest.raises(UserError, match=r"vocab.json:2: expected JSON"):
        load_tokenizer(tmp_path)
    for name, content, message in (
        ("x.model", b"not a model", "expected a SentencePiece model"),
        ("empty.model", b"", "expected a SentencePiece model"),
        ("vocab.txt", b"a\nb\n", r"expected the lines \[UNK\] and \[SEP\]"),
        ("twice.txt", b"[UNK]\n[SEP]\na\na\n", "'a' is repeated"),
        ("latin.txt", b"[UNK]\n[SEP]\n\xe9\n", "byte 0xe9 is not UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}.*{message}"):
            load_tokenizer(tmp_path / name)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_saved_folders_are_errors_that_name_the_path(name, tmp_path):
    trained(name).save(tmp_path)
    metadata = tmp_path / "lmjax_tokenizer.json"
    for path in set(tmp_path.iterdir()) - {metadata}:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=rf"{path.name}: expected the SHA-256"):
            load_tokenizer(tmp_path)
        path.unlink()
        with pytest.raises(UserError, match=rf"{path.name}: cannot be read"):
            load_tokenizer(tmp_path)
        path.write_bytes(whole)
    whole = json.loads(metadata.read_text())
    for changes, message in (({"kind": "bpee"}, r"kind = 'bpee'.*did you mean 'bpe'"), ({"format": 9}, "format = 9")):
        metadata.write_text(json.dumps(whole | changes))
        with pytest.raises(UserError, match=rf"lmjax_tokenizer.json: {message}"):
            load_tokenizer(tmp_path)
    metadata.write_text("{}")
    with pytest.raises(UserError, match=r"lmjax_tokenizer\.json: no field 'format'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/dev/zero", "/etc/hostname", "sub/file", "..", "", "~root"])
def test_a_saved_folder_s_list_of_files_stays_in_it(name, tmp_path):
    trained("bpe").save(tmp_path / "saved")
    metadata = tmp_path / "saved" / "lmjax_tokenizer.json"
    (tmp_path / "outside").write_text("secret")
    whole = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(whole | {"sha256": {name: "0" * 64}}))
    with pytest.raises(UserError, match=r"lmjax_tokenizer\.json: .* names a file: expected one plain name"):
        load_tokenizer(tmp_path / "saved")


@pytest.mark.parametrize(
    ("target", "reason"), [("/dev/zero", "expected a plain file, found a folder or a device"), ("../x", "a link to")]
)
def test_a_saved_file_that_is_a_link_out_of_its_folder_is_refused(target, reason, tmp_path):
    trained("bpe").save(tmp_path / "saved")
    path = tmp_path / "saved" / "tokenizer.json"
    path.rename(tmp_path / "x")
    path.symlink_to(target)
    with pytest.raises(UserError, match=rf"tokenizer\.json: {reason}"):
        load_tokenizer(tmp_path / "saved")


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("field", ["kind", "parameters", "sha256", "format"])
def test_any_value_in_a_saved_folder_s_description_is_a_user_error(name, field, tmp_path):
    trained(name).save(tmp_path)
    metadata = tmp_path / "lmjax_tokenizer.json"
    whole = json.loads(metadata.read_text())
    parameters = [{key: 7} for key in whole["parameters"]] if field == "parameters" else []
    for junk in (None, 7, "x", [], [1], {"vocab.json": 3}, 10**400, *parameters):
        metadata.write_text(json.dumps(whole | {field: junk}))
        if junk == {"vocab.json": 3} and field == "parameters":
            continue  # an unknown parameter
        with pytest.raises(UserError, match=r"lmjax_tokenizer|parameters"):
            load_tokenizer(tmp_path)
