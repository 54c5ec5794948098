"""Opens a source of documents: SourceSettings in, random access to documents out."""

from __future__ import annotations

from lmjax.data.documents import BadRecordError, Documents, MemoryDocuments, Source
from lmjax.data.text_sources import CsvDocuments, FileDocuments, JsonLines
from lmjax.errors import UserError
from lmjax.settings import SourceSettings

__all__ = ["BadRecordError", "Documents", "MemoryDocuments", "Source", "open_source"]


def open_source(settings: SourceSettings) -> Documents:
    """The documents of a source of text. Raises UserError where it is missing, empty or of token shards."""
    if settings.kind == "embedded":
        from lmjax.data.embedded_corpus import embedded_corpus  # imported on use: it reads every docstring

        return MemoryDocuments(embedded_corpus(settings.split), settings)
    if settings.kind == "text":
        return FileDocuments(settings)
    if settings.kind == "jsonl":
        return JsonLines(settings)
    if settings.kind == "csv":
        return CsvDocuments(settings)
    if settings.kind == "parquet":
        from lmjax.data.table_sources import ParquetDocuments

        return ParquetDocuments(settings)
    if settings.kind == "tfds":
        from lmjax.data.table_sources import TfdsDocuments

        return TfdsDocuments(settings)
    raise UserError(
        f"source.kind = {settings.kind!r}: expected a source of text; token shards hold no text, so give the recipe a "
        "trained tokenizer (tokenizer.path) and use them for training or validation only"
    )
