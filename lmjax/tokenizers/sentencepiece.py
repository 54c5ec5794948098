"""SentencePiece (Kudo & Richardson 2018): unigram or BPE models trained here, and any published `.model` file.

A model trained here is lossless: no normalisation, no blank removed or added, line breaks and tabs as symbols, and
bytes for unseen characters. A published model normalises as its file specifies.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2

from lmjax.errors import UserError
from lmjax.files import check_form
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.base import Contents, StoredTokenizer
from lmjax.tokenizers.pieces import Pieces, SpecialIds, character_of_bytes, located

_FILE = "sentencepiece.model"
_SPACE_MARK = "\u2581"  # SentencePiece writes a blank so, and does not distinguish the two
_LINE_CHARACTERS = 4096  # its BPE trainer aborts the process beyond 65,535 characters in a word
_ALWAYS_SYMBOLS = ("\n", "\t")


class SentencePieceTokenizer(StoredTokenizer):
    """A SentencePiece model.

    Args:
      model: the serialized model.
      where: names it in errors.
      exact: encode U+2581 by its three bytes, as the library would read it as a blank. Only for models trained here:
        a published model keeps its published ids.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, where: object = "the SentencePiece model", *, exact: bool = False) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            pieces = self._processor.get_piece_size()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{where}: expected a SentencePiece model ({error}); copy or train it again") from error
        if not model or pieces == 0:
            raise UserError(f"{where}: expected a SentencePiece model, found no pieces; copy or train it again")
        self._model = model
        eos_id = self._processor.eos_id()
        # A model without an end-of-sentence piece gets one more id, as documents need a separator.
        self.eos_id = eos_id if eos_id >= 0 else pieces
        self.vocab_size = max(pieces, self.eos_id + 1)
        cls, sep, mask = map(self._own, ("[CLS]", "[SEP]", "[MASK]"))
        pad, unk = (None if index < 0 else index for index in (self._processor.pad_id(), self._processor.unk_id()))
        self.special = SpecialIds(cls, sep, mask, pad, unk)
        self._exact = exact
        self.lossless = exact or _keeps_text(model)
        self._space_mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]

    def _own(self, piece: str) -> int | None:
        """The id of a piece; None where the model has no such piece."""
        index = self._processor.piece_to_id(piece)
        return index if self._processor.id_to_piece(index) == piece else None

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self._exact and any(_SPACE_MARK in text for text in texts):
            return [self._encode_exactly(text) for text in texts]
        return [np.asarray(ids, dtype=np.int32) for ids in self._processor.encode(list(texts), out_type=int)]

    def _encode_exactly(self, text: str) -> np.ndarray:
        first, *rest = self._processor.encode(text.split(_SPACE_MARK), out_type=int)
        ids = list(first)
        for part in rest:
            ids += self._space_mark_ids + part
        return np.asarray(ids, dtype=np.int32)

    def _pieces(self, texts: Sequence[str]) -> list[Pieces]:
        if not self._exact:
            return [located(text, *self._spans(text)) for text in texts]
        return [self._pieces_exactly(text) for text in texts]

    def _pieces_exactly(self, text: str) -> Pieces:
        ids, spans, begin = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int64)], 0
        for part in re.split(f"({_SPACE_MARK})", text):
            if part == _SPACE_MARK:
                own = np.array(self._space_mark_ids, np.int32), np.array([[0, 1]] * len(self._space_mark_ids))
            else:
                own = self._spans(part)
            ids.append(own[0])
            spans.append(own[1] + begin)
            begin += len(part)
        return located(text, np.concatenate(ids), np.concatenate(spans))

    def _spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids and the spans of a text. The library's are of bytes; of a character's pieces the last one has it."""
        encoded = self._processor.encode(text, out_type="serialized_proto")
        proto: Any = sentencepiece_pb2
        pieces = proto.SentencePieceText.FromString(encoded).pieces
        spans = np.array([(piece.begin, piece.end) for piece in pieces], np.int64).reshape(-1, 2)
        for place in reversed(range(len(pieces) - 1)):
            begin, end = spans[place]
            if begin == end == spans[place + 1, 0] and pieces[place].piece != _SPACE_MARK:
                spans[place, 1] = spans[place + 1, 1]
        characters = np.append(character_of_bytes(text.encode()), len(text))
        return np.array([piece.id for piece in pieces], np.int32), characters[spans]

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode(self.text_ids(ids))

    def byte_lengths(self) -> np.ndarray | None:
        """None for a published model: the blank that it adds before a text is not in the text."""
        if not self._exact:
            return None
        model, lengths = self._processor, np.zeros(self.vocab_size, np.int64)
        for index in range(model.get_piece_size()):
            text = model.id_to_piece(index).replace(_SPACE_MARK, " ")
            lengths[index] = 1 if model.is_byte(index) else len(text.encode())
        for index in (self.eos_id, model.unk_id()):  # which occur in no text
            lengths[index] = 0
        return lengths

    def contents(self) -> Contents:
        return Contents(self.kind, {"exact": self._exact}, {_FILE: self._model})

    @classmethod
    def from_contents(cls, contents: Contents, where: object) -> SentencePieceTokenizer:
        exact = check_form(contents.parameters.get("exact", False), bool, where, "parameters.exact")
        return cls(contents.files.get(_FILE, b""), where, exact=exact)


def _keeps_text(model: bytes) -> bool:
    """Whether a published model normalises nothing and has a piece for every byte.

    All models read U+2581 as a blank.
    """
    definitions: Any = sentencepiece_model_pb2  # mypy finds no classes in it
    proto = definitions.ModelProto.FromString(model)
    rules = proto.normalizer_spec
    byte_pieces = sum(piece.type == piece.BYTE for piece in proto.pieces)
    changes = rules.precompiled_charsmap or rules.remove_extra_whitespaces or not rules.escape_whitespaces
    return byte_pieces == 256 and not changes


def train_sentencepiece(settings: TokenizerSettings, texts: Iterable[str]) -> SentencePieceTokenizer:
    """Trains a model of `settings.vocab_size` pieces. The same texts give the same bytes on every machine.

    Raises UserError when the text does not support the vocabulary size, with the nearest one that it does.
    """
    for symbol in settings.user_symbols:
        if symbol in ("", "<unk>", "</s>") or _SPACE_MARK in symbol:
            raise UserError(
                f"tokenizer.user_symbols holds {symbol!r}: expected a string without U+2581 that is not one of "
                "SentencePiece's own symbols <unk> and </s>; choose another string"
            )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model,
            model_type=settings.sentencepiece_model,
            vocab_size=settings.vocab_size,
            byte_fallback=settings.byte_fallback,
            character_coverage=0.9995 if settings.byte_fallback else 1.0,
            user_defined_symbols=list(dict.fromkeys((*_ALWAYS_SYMBOLS, *settings.user_symbols))),
            split_digits=settings.split_digits,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=8 * _LINE_CHARACTERS,  # bytes; longer ones would be skipped
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            num_threads=1,  # the sums of unigram's EM would depend on the number of threads
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise _training_error(settings.vocab_size, str(error)) from error
    return SentencePieceTokenizer(model.getvalue(), exact=settings.byte_fallback)


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE_CHARACTERS):
                yield line[start : start + _LINE_CHARACTERS]


def _training_error(vocab_size: int, message: str) -> UserError:
    field = f"tokenizer.vocab_size = {vocab_size}"
    if too_high := re.search(r"value <= (\d+)", message):
        most = too_high[1]
        return UserError(f"{field}: expected at most {most}, all that this text supports; set it to {most} or less")
    if too_low := re.search(r"required_chars\. \d+ vs (\d+)", message):
        least = too_low[1]
        return UserError(f"{field}: expected at least {least}, for symbols, bytes and characters; set it to {least}")
    return UserError(f"the SentencePiece trainer refused the text or the tokenizer settings: {message}")
