"""A byte-level vocabulary without some bytes is read; a text that holds one is an error that names it, or left out."""

import pickle

import numpy as np
import pytest

from lmjax.data.conversation_rows import open_rows
from lmjax.data.sources import open_source
from lmjax.data.write_shards import prepare_shards
from lmjax.errors import UserError
from lmjax.settings import DialogueSettings, DialogueSourceSettings, SourceSettings, TokenizerSettings
from lmjax.tokenizers.base import NoTokenizerError, NoTokensError
from lmjax.tokenizers.byte_level_bpe import load_bpe
from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer
from tests.tiny import lacking_bytes, write_rows

MISSING = (0x01, 0xF1)
KINDS = ("huggingface", "bpe")
TEXTS = ["the sea", "", "\tthe\r\n\0\x02 caf\u00e9 \u5f20\u4e09 \U0001f600", "<|endoftext|"]


@pytest.fixture(params=KINDS)
def tokenizer(request, tmp_path):
    found = load_tokenizer(lacking_bytes(tmp_path / request.param, request.param, MISSING))
    assert found.kind == request.param
    return found


def test_every_other_text_comes_back(tokenizer, tmp_path):
    assert tokenizer.lossless and tokenizer.vocab_size == 254 + 2 + 1
    lengths = tokenizer.byte_lengths()
    tokenizer.save(tmp_path / "saved")
    for found in (tokenizer, load_tokenizer(tmp_path / "saved"), pickle.loads(pickle.dumps(tokenizer))):
        for text, ids in zip(TEXTS, found.encode_batch(TEXTS), strict=True):
            assert found.decode(ids) == text and lengths[ids].sum() == len(text.encode())
    assert len(tokenizer.encode("the")) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("the\x01", r"holds '\\x01' \(byte 0x01\) at character 3, for which the tokenizer has no token; remove it"),
        ("\u5f20\U00040000\x01", r"holds '\\U00040000' \(byte 0xF1\) at character 1, for which"),
        ("a" * 5000 + "b\x01c", r"^the text 'a{79}b\\x01c' holds '\\x01' \(byte 0x01\) at character 5001, for which"),
    ],
)
def test_a_text_with_a_missing_byte_is_refused_by_name(tokenizer, text, said):
    ways = (tokenizer.encode, tokenizer.encode_with_offsets, tokenizer.encode_with_specials)
    for way in (*ways, lambda text: tokenizer.encode_batch(["the", text])):
        with pytest.raises(NoTokensError, match=said):
            way(text)
    assert issubclass(NoTokensError, UserError)


def test_a_recipe_names_such_a_vocabulary(tmp_path):
    folder = lacking_bytes(tmp_path / "bpe", "bpe", MISSING)
    assert build_tokenizer(TokenizerSettings(kind="bpe", path=str(folder)), []).vocab_size == 257


def test_a_vocabulary_without_a_byte_of_ascii_text_is_of_another_kind(tmp_path):
    folder = lacking_bytes(tmp_path / "bpe", "bpe", (0x20,))
    with pytest.raises(NoTokenizerError, match=r"1 of 256 are missing, those of ASCII text among them; a vocab"):
        load_bpe(folder / "vocab.json", folder / "merges.txt")


def test_shards_leave_such_documents_out_or_name_the_first(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the sea\na\x01b\n\nthe\nthe \U00040000\n", encoding="utf-8")
    read = {"kind": "text", "path": str(tmp_path / "a.txt"), "documents": "line"}
    with pytest.raises(
        UserError, match=r'a\.txt: document 2: the text .*0x01.*; or set source\.on_bad_record = "skip"'
    ):
        prepare_shards(open_source(SourceSettings(**read)), tokenizer, tmp_path / "s", fingerprint="x")
    source = open_source(SourceSettings(**read, on_bad_record="skip"))
    shards = prepare_shards(source, tokenizer, tmp_path / "s", fingerprint="x")
    assert (shards.manifest.documents, shards.manifest.skipped) == (2, 2)
    assert "document 4" in shards.manifest.skipped_examples[1] and "0xF1" in shards.manifest.skipped_examples[1]
    end = tokenizer.eos_id
    assert shards.take(np.arange(shards.manifest.tokens)).tolist() == [
        *tokenizer.encode("the sea"),
        end,
        *tokenizer.encode("the"),
        end,
    ]


@pytest.mark.parametrize("kind", ["demonstration", "prompt"])
def test_conversations_leave_such_records_out_or_name_the_first(tokenizer, tmp_path, kind):
    rows = [{"prompt": "the", "answer": "sea"}, {"prompt": "a\x01", "answer": "b"}, {"prompt": "b", "answer": "c"}]
    rows = [{"prompt": row["prompt"]} for row in rows] if kind == "prompt" else rows
    settings = DialogueSettings(sequence_length=64, packing=False)
    (source,) = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=r"a\.jsonl.*0x01.*; or leave it out: on_bad_record"):
        open_rows(source, settings, tokenizer, kind)
    skipping = DialogueSourceSettings(path=source.path, on_bad_record="skip")
    found, counts, records = open_rows(skipping, settings, tokenizer, kind)
    assert (len(found), len(records), counts.records, counts.bad) == (2, 2, 2, 1)
    assert "0x01" in counts.messages[0]
