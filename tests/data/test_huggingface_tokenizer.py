"""Folders of transformers give its ids, offsets and texts, kind by kind; what is not followed is refused by name."""

import hashlib
import json
import lzma
import pickle
import random
from base64 import b64decode
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lmjax.errors import UserError
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.base import NoTokenizerError
from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer, tokenizer_fingerprint

GOLDEN = json.loads(lzma.decompress((Path(__file__).parents[1] / "golden" / "hf_tokenizers.json.xz").read_bytes()))
STRINGS, KINDS = GOLDEN["strings"], GOLDEN["kinds"]
EDITED = {"gpt2_pair", "gpt2_pair_decoder", "bert_vocab_txt", "llama2_model", "model_alone", "model_and_chat"}


@pytest.fixture
def folder(tmp_path):
    """A function from the name of a kind to its folder."""

    def write(name):
        (tmp_path / name).mkdir()
        for file, data in KINDS[name]["files"].items():
            (tmp_path / name / file).write_bytes(b64decode(data))
        return tmp_path / name

    return write


def digest(values):
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def edit(path, **changes):
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(value | changes))


@pytest.mark.parametrize("name", KINDS)
def test_two_thousand_hard_strings_give_what_transformers_gives(folder, name):
    known = KINDS[name]
    tokenizer = load_tokenizer(folder(name))
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eos_id) == (
        "huggingface",
        known["entries"],
        known["eos_id"],
    )
    for index in known["refused"]:
        with pytest.raises(UserError, match=r"for which the tokenizer has no token"):
            tokenizer.encode(STRINGS[index])
    kept = [text for index, text in enumerate(STRINGS) if index not in set(known["refused"])]
    ids = [row.tolist() for row in tokenizer.encode_batch(kept)]
    alone = [tokenizer.encode_with_offsets(text) for text in kept]
    assert [row for row, _ in alone] == ids
    assert digest(ids) == known["digests"]["ids"]
    assert digest([[list(pair) for pair in offsets] for _, offsets in alone]) == known["digests"]["offsets"]
    assert digest([tokenizer.encode_with_specials(text) for text in kept]) == known["digests"]["with_specials"]
    assert digest([tokenizer.decode(row) for row in ids]) == known["digests"]["decoded"]


@pytest.mark.parametrize("name", KINDS)
def test_a_lossless_tokenizer_gives_every_hard_string_back(folder, name):
    """To Llama 2's normalizer U+2581 is a blank, and what follows a special token a text of its own."""
    tokenizer = load_tokenizer(folder(name))
    plain = ["\u2581", "<s>", "</s>", "<unk>"] if name == "llama2_prepend" else []
    kept = [text for index, text in enumerate(STRINGS) if index not in set(KINDS[name]["refused"])]
    kept = [text for text in kept if not any(mark in text for mark in plain)]
    rows = [tokenizer.encode(text) for text in kept]
    kept = [text for text, row in zip(kept, rows, strict=True) if tokenizer.eos_id not in row]
    back = [tokenizer.decode(row) for row in rows if tokenizer.eos_id not in row]
    assert tokenizer.lossless == (back == kept)


@pytest.mark.parametrize("name", KINDS)
def test_the_bytes_of_a_texts_ids_add_up_to_its_own_or_are_not_told(folder, name):
    tokenizer = load_tokenizer(folder(name))
    lengths = tokenizer.byte_lengths()
    assert (lengths is None) == (not tokenizer.lossless or name == "llama2_prepend")
    if lengths is not None:
        assert lengths.shape == (tokenizer.vocab_size,) and lengths[tokenizer.eos_id] == 0
        kept = [text for index, text in enumerate(STRINGS) if index not in set(KINDS[name]["refused"])]
        rows = tokenizer.encode_batch(kept)
        counted = [(text, row) for text, row in zip(kept, rows, strict=True) if tokenizer.eos_id not in row]
        assert [lengths[row].sum() for _, row in counted] == [len(text.encode()) for text, _ in counted]


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_is_kept_byte_for_byte_and_comes_back(folder, tmp_path, name):
    tokenizer = load_tokenizer(folder(name))
    tokenizer.save(tmp_path / "saved")
    back = load_tokenizer(tmp_path / "saved")
    texts = [text for index, text in enumerate(STRINGS[:300]) if index not in set(KINDS[name]["refused"])]
    for other in (back, pickle.loads(pickle.dumps(tokenizer))):
        assert [other.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
        assert (other.vocab_size, other.eos_id, other.bos_id, other.pad_id, other.unk_id) == (
            (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.unk_id)
        )
    assert tokenizer_fingerprint(back) == tokenizer_fingerprint(tokenizer)
    if name not in EDITED:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / name / file).read_bytes()


def test_the_kind_is_taken_from_the_folder_and_a_contradiction_is_refused(folder):
    path = folder("gpt2_pair")
    assert build_tokenizer(TokenizerSettings(path=str(path)), ()).kind == "huggingface"
    assert build_tokenizer(TokenizerSettings(kind="huggingface", path=str(path)), ()).kind == "huggingface"
    published = build_tokenizer(TokenizerSettings(kind="bpe", path=str(path)), ())  # the pair of files alone
    assert (published.kind, published.vocab_size, len(published.encode("<|endoftext|>")) > 1) == ("bpe", 600, True)
    with pytest.raises(UserError, match=r"holds a 'huggingface' tokenizer: expected 'wordpiece'"):
        build_tokenizer(TokenizerSettings(kind="wordpiece", path=str(path)), ())
    with pytest.raises(UserError, match=r"tokenizer\.path = '': expected a folder"):
        build_tokenizer(TokenizerSettings(kind="huggingface"), ())
    with pytest.raises(UserError, match=r"user_symbols = \('<x>',\): expected none"):
        load_tokenizer(path, user_symbols=("<x>",))


def test_the_file_itself_is_as_good_as_its_folder(folder):
    path = folder("bert_accents")
    assert load_tokenizer(path / "tokenizer.json").encode("n\u00e4ive") == load_tokenizer(path).encode("n\u00e4ive")


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        (
            "prefix_in_file",
            {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False},
            "add_prefix_space = False",
        ),
        ("smollm", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, "add_prefix_space = True"),
        ("bert_own", {"tokenizer_class": None, "do_lower_case": True}, "do_lower_case = True"),
        ("gpt2_pair", {"tokenizer_class": "Qwen2Tokenizer"}, "tokenizer_class = 'Qwen2Tokenizer': expected 'GPT2"),
        ("llama2_model", {"tokenizer_class": "T5Tokenizer"}, "tokenizer_class = 'T5Tokenizer': expected 'Llama"),
        ("gpt2_pair", {"added_tokens_decoder": {"607": {"content": "<x>"}}}, "'<x>' has the id 607: expected 600"),
    ],
)
def test_flags_that_would_give_other_ids_are_refused_by_name(folder, name, changes, reason):
    path = folder(name)
    edit(path / "tokenizer_config.json", **changes)
    with pytest.raises(UserError) as error:
        load_tokenizer(path)
    assert f"{path}" in str(error.value)
    assert reason in str(error.value)


def test_ids_drawn_by_chance_are_refused(folder):
    path = folder("gpt2")
    value = json.loads((path / "tokenizer.json").read_text())
    value["model"]["dropout"] = 0.1
    (path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"tokenizer\.json: model\.dropout = 0\.1: expected none"):
        load_tokenizer(path)


def test_the_end_of_a_text_is_looked_for_by_name_and_then_in_the_model_s_files(folder):
    path = folder("llama2_prepend")
    assert load_tokenizer(path).eos_id == 2
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(NoTokenizerError, match=r"tokenizer_config\.json: no eos_token"):
        load_tokenizer(path)
    edit(path / "config.json", eos_token_id=[7, 2], bos_token_id=1, pad_token_id=0)
    found = load_tokenizer(path)
    assert (found.eos_id, found.bos_id, found.pad_id) == (7, 1, 0)
    edit(path / "generation_config.json", eos_token_id=2)
    assert load_tokenizer(path).eos_id == 2
    edit(path / "tokenizer_config.json", eos_token={"__type": "AddedToken", "content": "<s>", "lstrip": False})
    assert load_tokenizer(path).eos_id == 1


def test_added_tokens_without_a_row_are_refused_in_texts_alone(folder):
    tokenizer = load_tokenizer(folder("llama2_model"), rows=600)
    said = "the model has no rows for ['<pad>']; a text that holds one is refused"
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.remarks) == (600, None, [said])
    assert tokenizer.encode("the cat") == load_tokenizer(folder("llama2")).encode("the cat")
    with pytest.raises(UserError, match=r"holds '<pad>', token 600: expected ids below 600, the rows of"):
        tokenizer.encode_batch(["fine", "a <pad> b"])


def test_an_end_or_a_class_that_the_model_or_the_file_contradicts_is_named(folder):
    path = folder("llama2_model")
    edit(path / "tokenizer_config.json", eos_token="<pad>")
    with pytest.raises(NoTokenizerError, match=r"eos_token has the id 600: expected one of the 600 rows"):
        load_tokenizer(path, rows=600)
    for name, own in (("gpt2", []), ("llama2", []), ("bert", []), ("bert_own", [])):
        assert load_tokenizer(folder(name)).remarks == own
    path = folder("smollm")
    edit(path / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    assert load_tokenizer(path).remarks[0].startswith("tokenizer_class = 'GPT2Tokenizer', for which transformers 5")


def test_what_has_no_token_is_named_with_its_place(folder):
    tokenizer = load_tokenizer(folder("smollm"))
    assert tokenizer.lossless  # as nothing is dropped
    with pytest.raises(UserError, match=r"the text 'fine\\x01' holds '\\x01' \(byte 0x01\) at character 4, for which"):
        tokenizer.encode_batch(["fine", "fine\x01"])


def words(unk_token):
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "<u>": 2, "</s>": 3}, unk_token=unk_token))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer.to_str()


def test_a_model_without_its_unknown_token_names_the_text(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (tmp_path / "tokenizer.json").write_text(words("<missing>"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a b a") == [0, 1, 0]
    with pytest.raises(UserError, match=r"the text 'a c' cannot be encoded .*WordLevel"):
        tokenizer.encode_batch(["a b", "a c"])
    (tmp_path / "tokenizer.json").write_text(words("<u>"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a c") == [0, 2]
    assert not tokenizer.lossless


JUNK = [None, True, 7, -1, 1e400, "x", "\ud800", [], [1], {}, {"a": 1}, {"content": 3}, [{"content": "x"}]]
CONFIG_FIELDS = [
    *("tokenizer_class", "eos_token", "pad_token", "unk_token", "add_prefix_space", "do_lower_case", "strip_accents"),
    *("tokenize_chinese_chars", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"),
    *("clean_up_tokenization_spaces", "add_bos_token", "split_special_tokens", "legacy"),
]


@pytest.mark.parametrize("name", ["bert", "gpt2_pair"])
@pytest.mark.parametrize("field", CONFIG_FIELDS)
def test_any_value_of_a_field_is_followed_or_a_user_error(folder, name, field):
    path = folder(name)
    original = json.loads((path / "tokenizer_config.json").read_text())
    for value in JUNK:
        (path / "tokenizer_config.json").write_text(json.dumps(original | {field: value}))
        try:
            load_tokenizer(path).encode("the cat")
        except UserError as error:
            assert len(str(error)) < 800


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "[]", "3", '{"a": 1' + "0" * 5000 + "}", '"\\ud800"', "\ufffe"]
)
def test_a_file_that_is_no_object_is_a_user_error(folder, file, text):
    path = folder("bert")
    (path / file).write_text(text)
    if file == "special_tokens_map.json":
        (path / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=str(path)):
        load_tokenizer(path)


def test_junk_in_a_pipeline_is_a_user_error(folder):
    path = folder("gpt2")
    whole = json.loads((path / "tokenizer.json").read_text())
    parts = [
        ("model",),
        ("model", "vocab"),
        ("model", "merges"),
        ("model", "type"),
        ("added_tokens",),
        ("pre_tokenizer",),
    ]
    for keys in parts:
        for value in JUNK[1:]:
            changed = json.loads(json.dumps(whole))
            place = changed
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = value
            (path / "tokenizer.json").write_text(json.dumps(changed))
            harmless = value == [] and keys[-1] in ("merges", "added_tokens")
            try:
                load_tokenizer(path).encode("the cat")
                assert harmless, (keys, value)
            except UserError as error:
                assert not harmless and "tokenizer.json" in str(error)


def flipped(rng, data):
    """The bytes with a few bits flipped, or cut short."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 20])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed) if rng.random() < 0.7 else data[: rng.randrange(len(data))]


@pytest.mark.slow
def test_damage_anywhere_is_followed_or_a_user_error(folder):
    rng = random.Random(0)
    for name in sorted(KINDS):
        path = folder(name)
        for file in sorted(path.iterdir()):
            whole = file.read_bytes()
            for _ in range(20):
                file.write_bytes(flipped(rng, whole))
                try:
                    tokenizer = load_tokenizer(path)
                    tokenizer.decode(tokenizer.encode("the caf\u00e9 <x>"))
                except UserError as error:
                    assert len(str(error)) < 1500
            file.write_bytes(whole)
