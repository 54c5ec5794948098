"""Any tokenizer.json of Hugging Face, run by the library that wrote it: normalizer, pre-tokenizer, model, decoder.

In: the files of a tokenizer as bytes, kept as they are; huggingface_config.py lays over them what transformers does.
Out: the ids, offsets and texts that transformers gives. The names of added tokens in a text are these tokens, as there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from lmjax.errors import UserError, shortened
from lmjax.files import check_form
from lmjax.tokenizers.base import Contents, StoredTokenizer
from lmjax.tokenizers.huggingface_config import PIPELINE, lay_over, makes_its_own_steps, read_config
from lmjax.tokenizers.pipeline import UnknownPieces, bytes_of_tokens, is_library_error, keeps_text, open_pipeline

KIND = "huggingface"
Encode = Callable[..., list[tokenizers.Encoding]]
_IDS = ("eos_id", "bos_id", "pad_id", "unk_id")


class HuggingFaceTokenizer(StoredTokenizer):
    """A tokenizer.json with what the files beside it add.

    Args:
      files: tokenizer.json and, where there are any, the files that transformers reads beside it, by name.
      parameters: "tokenizer_class" (whose flags hold, or null), "eos_id", and "bos_id", "pad_id", "unk_id" or null;
        "rows": the rows of the model's table, or null. Added tokens beyond them have no ids here.
      where: names the tokenizer in errors.

    Raises UserError for files that are damaged or that lmjax cannot follow.
    """

    kind = KIND

    def __init__(self, files: Mapping[str, bytes], parameters: Mapping[str, Any], where: object) -> None:
        self._files, self._parameters, self._where = dict(files), _checked(parameters, where), where
        if PIPELINE not in self._files:
            raise UserError(f"{where}: no {PIPELINE}; expected the file of a Hugging Face tokenizer; restore it")
        self._tokenizer = open_pipeline(self._files[PIPELINE], where)
        self._config = read_config(self._files, where)
        lay_over(self._tokenizer, self._config, self._parameters["tokenizer_class"], where)
        self._unknown = UnknownPieces(self._tokenizer)
        entries = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        rows = self._parameters["rows"]
        self.vocab_size = entries if rows is None else min(entries, rows)
        self.eos_id = self._parameters["eos_id"]
        self.bos_id, self.pad_id, self.unk_id = (self._parameters[name] for name in _IDS[1:])
        for name in _IDS:
            index = self._parameters[name]
            if index is not None and not 0 <= index < self.vocab_size:
                raise UserError(f"{where}: {name} = {index}: expected an id below {self.vocab_size}; restore the file")
        self.lossless = keeps_text(self._tokenizer, self._unknown.none_possible)

    @property
    def remarks(self) -> list[str]:
        """What a reader of the folder has to know: tokens without a row, and a class that says other than the file."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        beyond = sorted(token for token, index in vocabulary.items() if index >= self.vocab_size)
        said = [f"the model has no rows for {shortened(beyond)}; a text that holds one is refused"] if beyond else []
        named = self._parameters["tokenizer_class"]
        if makes_its_own_steps(self._tokenizer, named):
            said.append(
                f"tokenizer_class = {shortened(named)}, for which transformers 5 sets the steps of {PIPELINE} aside; "
                "lmjax follows the file"
            )
        return said

    def token(self, index: int) -> str:
        """The token of an id, as it is written in the vocabulary."""
        return self._tokenizer.id_to_token(index) or ""

    def _encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._encodings(self._tokenizer.encode_batch_fast, list(texts), specials=False)
        return [self._ids(text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `encode`, and the characters [begin, end) of the text that each of them stands for."""
        encoding = self._encodings(self._tokenizer.encode_batch, [text], specials=False)[0]
        return self._ids(text, encoding.ids).tolist(), encoding.offsets

    def encode_with_specials(self, text: str) -> list[int]:
        """The ids between the special tokens that the post-processor puts around a text, such as [CLS] and [SEP]."""
        encoding = self._encodings(self._tokenizer.encode_batch_fast, [text], specials=True)[0]
        return self._ids(text, encoding.ids).tolist()

    def decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(self.text_ids(ids), skip_special_tokens=False)
        return self._config.clean_up(text, self._tokenizer)

    def byte_lengths(self) -> np.ndarray | None:
        sizes = bytes_of_tokens(self._tokenizer) if self.lossless else None
        if sizes is None:
            return None
        lengths = np.array([sizes.get(index, 0) for index in range(self.vocab_size)], np.int64)
        lengths[self.eos_id] = 0
        return lengths

    def contents(self) -> Contents:
        return Contents(self.kind, self._parameters, self._files)

    @classmethod
    def from_contents(cls, contents: Contents, where: object) -> HuggingFaceTokenizer:
        return cls(contents.files, contents.parameters, where)

    def __reduce__(self) -> Any:
        return HuggingFaceTokenizer, (self._files, self._parameters, str(self._where))

    def _encodings(self, encode: Encode, texts: list[str], *, specials: bool) -> list[tokenizers.Encoding]:
        self._unknown.refuse(texts)
        try:
            return encode(texts, add_special_tokens=specials)
        except (TypeError, UnicodeEncodeError):
            raise
        except BaseException as error:
            if not is_library_error(error):
                raise
            if len(texts) > 1:  # the library does not say which
                for text in texts:
                    self._encodings(encode, [text], specials=specials)
            raise UserError(
                f"the text {shortened(texts[0])} cannot be encoded by the tokenizer of {self._where} ({error}); "
                "change the text, or use a tokenizer with an unknown token"
            ) from error

    def _ids(self, text: str, ids: list[int]) -> np.ndarray:
        ids_T = np.asarray(ids, dtype=np.int32)
        if len(ids_T) and ids_T.max() >= self.vocab_size:
            token = self._tokenizer.id_to_token(int(ids_T.max()))
            raise UserError(
                f"the text {shortened(text)} holds {token!r}, token {ids_T.max()}, for which the model's table of "
                f"{self.vocab_size} rows has none; take it out of the text"
            )
        return ids_T


def _checked(parameters: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The parameters, all there and of the right types."""
    check_form(dict(parameters), dict[str, str | int | None], where, "parameters")
    checked: dict[str, Any] = {name: parameters.get(name) for name in ("tokenizer_class", "rows", *_IDS)}
    check_form(checked["tokenizer_class"], str | None, where, "parameters.tokenizer_class")
    for name in ("rows", *_IDS):
        check_form(checked[name], int if name == "eos_id" else int | None, where, f"parameters.{name}")
    return checked


def as_json(value: Any) -> bytes:
    """The bytes of a small JSON file, as all that lmjax writes for transformers."""
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8")
