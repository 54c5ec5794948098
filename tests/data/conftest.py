"""A tokenizer of bytes and token shards made of given texts, for the tests of sources, shards and the loader."""

from itertools import count

import numpy as np
import pytest

from lmjax.data.sources import MemoryDocuments
from lmjax.data.write_shards import prepare_shards


class Bytes:
    """UTF-8 bytes, and 256 at a document's end."""

    vocab_size = 257
    eos_id = 256

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) for text in texts]


@pytest.fixture
def byte_encoder():
    return Bytes()


@pytest.fixture
def make_shards(tmp_path, byte_encoder):
    """A function from texts to their token shards; `shard_tokens` is small so that rows cross files."""
    numbers = count()

    def make(texts, shard_tokens=37, fingerprint="bytes"):
        source = MemoryDocuments(texts)
        folder = tmp_path / f"shards{next(numbers)}"
        return prepare_shards(source, byte_encoder, folder, fingerprint=fingerprint, shard_tokens=shard_tokens)

    return make


@pytest.fixture
def ragged_texts():
    """60 documents of 1 to 40 letters; no two begin alike."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 60)
    return [chr(0x100 + i) + "".join(map(chr, rng.integers(97, 123, n))) for i, n in enumerate(lengths)]
