"""What a recipe says of its tokenizer, its sources of text and its batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lmjax.errors import require
from lmjax.fields import PositiveInt, Settings, above, check_weights, require_local
from lmjax.kinds import check_unused, source_kind

Weight = Annotated[float, above(0, "leave the source out instead")]
BYTE_ENTRIES = 257  # of the byte tokenizer: the bytes and the end of a text


@dataclass(frozen=True)
class TokenizerSettings(Settings):
    """Which tokenizer, and how to train it when `path` is empty."""

    kind: Literal["byte", "sentencepiece", "bpe", "wordpiece", "huggingface"] = "byte"  # "byte": what `path` holds
    path: str = ""  # a trained tokenizer: a folder that lmjax or transformers wrote, a .model file or a vocab.txt
    vocab_size: PositiveInt = 4096  # entries, when trained here; the byte tokenizer has its own
    sentencepiece_model: Literal["unigram", "bpe"] = "unigram"
    byte_fallback: bool = True  # SentencePiece: unknown characters become bytes
    user_symbols: tuple[str, ...] = ()  # strings that are always one token
    split_digits: bool = False  # SentencePiece: each digit is a piece of its own
    lowercase: bool = True  # WordPiece: the "uncased" convention, which also strips accents
    training_bytes: PositiveInt = 10_000_000  # at most this much text trains a tokenizer, of every source by its weight

    def check(self) -> None:
        require_local("path", self.path)
        check_unused(self)

    @property
    def planned_vocab_size(self) -> int | None:
        """The entries that the settings alone tell; None where they are in a file."""
        return None if self.path else BYTE_ENTRIES if self.kind == "byte" else self.vocab_size


@dataclass(frozen=True)
class SourceSettings(Settings):
    """One random-access source of documents. The kind of a `path` is found where none is given (lmjax/kinds.py)."""

    kind: Literal["embedded", "text", "jsonl", "csv", "parquet", "tfds", "shards"] = "embedded"
    path: str = ""  # a file, a folder or a glob; for TFDS the builder's name or prepared folder
    split: str = "train"  # of the embedded corpus or of a TFDS builder
    field: str = "text"  # the record's field that holds the text
    documents: Literal["file", "line", "paragraph"] = "file"  # what one document is in plain text
    begin: float = 0.0  # the part of the source that is read, as fractions of its documents,
    end: float = 1.0  # or of its characters, cut at line ends, where the source is a single document
    weight: Weight | None = None  # of this source in a mixture; where none has one, sources count by their tokens
    on_bad_record: Literal["error", "skip"] = "error"

    def check(self) -> None:
        inside = 0.0 <= self.begin < self.end <= 1.0
        require(inside, "begin, end", (self.begin, self.end), "0 <= begin < end <= 1", "use 0 and 1")
        object.__setattr__(self, "kind", source_kind(self.path, self.kind))
        needs_path = self.kind != "embedded"
        require_local("path", self.path)
        require(bool(self.path) or not needs_path, "path", self.path, f"a path for {self.kind!r}", "set path")
        check_unused(self)


@dataclass(frozen=True)
class DataSettings(Settings):
    """What a batch holds. A batch is a pure function of these settings and the step."""

    train: tuple[SourceSettings, ...] = (SourceSettings(),)
    validation: tuple[SourceSettings, ...] = (SourceSettings(split="validation"),)
    sequence_length: PositiveInt = 256  # tokens per row
    batch_size: PositiveInt = 8  # rows per step, over all devices
    packing: Literal["split", "first_fit"] = "split"  # concatenate and split, or whole documents with segments
    isolate_documents: bool = False  # under "split": attention and positions stop at document ends
    shuffle: bool = True
    seed: int = 0
    ramp_from: PositiveInt | None = None  # rows of the first steps, when the batch size ramps up linearly
    ramp_tokens: int = 0  # tokens over which it ramps
    ramp_sizes: PositiveInt = 4  # how many batch sizes the ramp passes through, the last included
    prefetch: PositiveInt = 2  # batches prepared ahead
    # sizes of before they changed, which a resumed run fills in: (first step without them, batch_size,
    # sequence_length, ramp_from or 0, ramp_tokens, ramp_sizes)
    earlier_batches: tuple[tuple[int, int, int, int, int, int], ...] = ()

    def check(self) -> None:
        ends = [earlier[0] for earlier in self.earlier_batches]
        require(ends == sorted({*ends} - {0}), "earlier_batches", ends, "rising steps", "leave it out")
        for name in ("train", "validation"):
            sources = getattr(self, name)
            require(bool(sources), name, sources, "at least one source", "add a SourceSettings")
        check_weights("train", self.train)
        if self.ramp_from is None:
            fix = "set ramp_from too, or leave it out"
            require(self.ramp_tokens == 0, "ramp_tokens", self.ramp_tokens, "0 where nothing ramps", fix)
        else:
            fits = self.ramp_from <= self.batch_size
            require(fits, "ramp_from", self.ramp_from, f"at most batch_size {self.batch_size}", "lower it")
            require(self.ramp_tokens > 0, "ramp_tokens", self.ramp_tokens, "tokens above 0", "set its length")


class LoadedRows:
    """Settings of rows that are not text of sources: the fields that the loader reads, which a subclass has."""

    sequence_length: int
    batch_size: int
    shuffle: bool
    seed: int
    prefetch: int
    earlier_batches: tuple[tuple[int, int, int, int, int, int], ...]

    @property
    def loading(self) -> DataSettings:
        """The same sizes and order, as the loader takes them."""
        return DataSettings(
            sequence_length=self.sequence_length,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            prefetch=self.prefetch,
            earlier_batches=self.earlier_batches,
        )


@dataclass(frozen=True)
class RowSettings(LoadedRows, Settings):
    """What a batch of a task's rows holds. A batch is a pure function of these settings and the step."""

    sequence_length: PositiveInt = 256  # tokens of a row, at most
    # further lengths: a batch has rows of one of them, the least that holds its texts, and fewer columns of padding
    buckets: tuple[int, ...] = ()
    batch_size: PositiveInt = 8  # rows per step, over all devices
    shuffle: bool = True
    seed: int = 0
    prefetch: PositiveInt = 2  # batches prepared ahead
    earlier_batches: tuple[tuple[int, int, int, int, int, int], ...] = ()  # as in DataSettings

    def check(self) -> None:
        fits = all(0 < edge <= self.sequence_length for edge in self.buckets)
        expected = f"lengths from 1 to sequence_length {self.sequence_length}"
        require(fits, "buckets", self.buckets, expected, "leave the others out")
