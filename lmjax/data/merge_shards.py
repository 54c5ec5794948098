"""Makes one folder of token shards of those of a source's parts, byte for byte the one of the undivided source.

In: the parts' folders in order (`share_of` in lmjax/data/documents.py). Out: a folder as `prepare_shards` writes it:
the same token files, index of documents and manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmjax.data.shard_writer import ShardWriter, published
from lmjax.data.token_shards import DOCUMENTS, TokenShards

_AT_ONCE = 1 << 24  # tokens that are copied at once


def merge_shards(parts: Sequence[TokenShards], folder: Path) -> TokenShards:
    """Writes the parts' tokens, one after the other, to `folder`.

    The parts are of one source and one tokenizer, in order and none left out: whoever calls has checked that. Raises
    UserError for a file whose checksum differs, and CannotWriteError.
    """
    first = parts[0].manifest
    for part in parts:
        part.verify(first.vocab_size)
    with published(folder) as partial:
        writer = ShardWriter(partial, np.dtype(first.dtype).newbyteorder("<"), first.shard_tokens)
        for part in parts:
            manifest = part.manifest
            for file in manifest.files[:-1]:
                tokens = np.memmap(part.folder / file.name, writer.dtype, mode="r")
                for begin in range(0, len(tokens), _AT_ONCE):
                    writer.add(np.array(tokens[begin : begin + _AT_ONCE]))
            index = np.fromfile(part.folder / DOCUMENTS, "<i8").reshape(2, -1)
            writer.end_documents(*np.diff(index))
            writer.leave_out(manifest.skipped, manifest.skipped_examples, manifest.empty)
        source = {name: value for name, value in first.source.items() if name != "share"}
        writer.finish(
            *(first.source_name, source),
            fingerprint=first.tokenizer,
            vocab_size=first.vocab_size,
            eos_id=first.eos_id,
        )
    return TokenShards(folder, first.tokenizer)
