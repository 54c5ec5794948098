"""Text as its UTF-8 bytes: ids 0 to 255, and 256 for the end of a text. It needs no training and is lossless."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmjax.tokenizers.base import Contents, StoredTokenizer
from lmjax.tokenizers.pieces import Pieces, character_of_bytes, located


class ByteTokenizer(StoredTokenizer):
    """One id per byte. Ids that are not valid UTF-8, which a model may sample, decode to U+FFFD."""

    kind = "byte"
    vocab_size = 257
    eos_id = 256
    lossless = True

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32) for text in texts]

    def _pieces(self, texts: Sequence[str]) -> list[Pieces]:
        found = []
        for text, ids in zip(texts, self._encode_batch(texts), strict=True):
            character = character_of_bytes(text.encode())
            found.append(located(text, ids, np.stack([character, character + 1], axis=1)))
        return found

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(self.text_ids(ids)).decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        return np.array([1] * 256 + [0], np.int64)

    def contents(self) -> Contents:
        return Contents(self.kind, {}, {})
