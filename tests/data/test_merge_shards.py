"""Token shards of a source's parts make those of the undivided source, byte for byte."""

import json

import numpy as np
import pytest

from lmjax.data.documents import MemoryDocuments, share_of
from lmjax.data.merge_shards import merge_shards
from lmjax.data.sources import open_source
from lmjax.data.write_shards import prepare_shards
from lmjax.errors import UserError
from lmjax.settings import SourceSettings
from lmjax.tokenizers.byte import ByteTokenizer

TOKENIZER = ByteTokenizer()
HOW = {"fingerprint": "f", "shard_tokens": 50, "workers": 1}


@pytest.fixture
def source(tmp_path):
    """30 records in three files, of ragged lengths; two are bad and one is empty."""
    (tmp_path / "text").mkdir()
    for number in range(3):
        lines = [json.dumps({"text": "ab é" * (at % 5 + number)}) for at in range(10)]
        lines[3] = "{" if number else lines[3]
        (tmp_path / "text" / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return open_source(SourceSettings(kind="jsonl", path=str(tmp_path / "text"), on_bad_record="skip"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
def test_the_merged_folder_equals_the_undivided_one_in_every_byte(tmp_path, source, shares):
    prepare_shards(source, TOKENIZER, tmp_path / "whole", **HOW)
    parts = [
        prepare_shards(share_of(source, share, shares), TOKENIZER, tmp_path / str(share), **HOW)
        for share in range(1, shares + 1)
    ]
    merged = merge_shards(parts, tmp_path / "merged")
    expected = contents(tmp_path / "whole")
    assert contents(tmp_path / "merged") == expected
    assert len(expected) > 5  # files of tokens, the index of documents and the manifest
    manifest = merged.manifest
    assert (manifest.documents, manifest.skipped, manifest.empty) == (26, 2, 2)
    assert [line.partition("text/")[2][:9] for line in manifest.skipped_examples] == ["1.jsonl:4", "2.jsonl:4"]


def test_the_parts_of_a_source_are_disjoint_whole_and_even():
    texts = [str(number) for number in range(23)]
    parts = [share_of(MemoryDocuments(texts), share, 5) for share in range(1, 6)]
    assert [text for part in parts for text in part] == texts
    assert {len(part) for part in parts} == {4, 5}
    assert len({repr(part.identity) for part in parts}) == 5
    selected = MemoryDocuments(texts, SourceSettings(begin=0.5))
    assert [text for share in (1, 2) for text in share_of(selected, share, 2)] == texts[12:]


def test_a_source_of_fewer_documents_than_shares_is_in_the_first():
    parts = [share_of(MemoryDocuments(["a", "b"]), share, 3) for share in (1, 2, 3)]
    assert list(parts[0]) == ["a", "b"] and parts[1:] == [None, None]


def test_a_part_is_not_taken_for_the_whole_source(tmp_path, source):
    prepare_shards(share_of(source, 1, 2), TOKENIZER, tmp_path / "1", **HOW)
    with pytest.raises(UserError, match="made from another source, which differs in share"):
        prepare_shards(source, TOKENIZER, tmp_path / "1", **HOW)
    with pytest.raises(UserError, match="made from another source, which differs in share"):
        prepare_shards(share_of(source, 2, 2), TOKENIZER, tmp_path / "1", **HOW)


def test_a_flipped_bit_in_a_part_is_found_and_nothing_is_written(tmp_path, source):
    parts = [prepare_shards(share_of(source, share, 2), TOKENIZER, tmp_path / str(share), **HOW) for share in (1, 2)]
    path = tmp_path / "2" / "tokens-00001.bin"
    raw = bytearray(path.read_bytes())
    raw[7] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"2/tokens-00001.bin: sha256 \w+, expected \w+; the file is damaged"):
        merge_shards(parts, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_tokens_of_the_merged_shards_are_those_of_the_documents(tmp_path, source):
    parts = [prepare_shards(share_of(source, at, 3), TOKENIZER, tmp_path / str(at), **HOW) for at in (1, 2, 3)]
    merged = merge_shards(parts, tmp_path / "merged")
    texts = [text for text in source if text]
    for number in (0, 12, 25):
        expected = [*TOKENIZER.encode_batch([texts[number]])[0], TOKENIZER.eos_id]
        np.testing.assert_array_equal(merged.document(number), expected)
