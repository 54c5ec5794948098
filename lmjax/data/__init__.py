"""From raw text to batches: tokenizers, random-access sources, token shards, packing and the loader."""
