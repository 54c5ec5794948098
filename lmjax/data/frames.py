"""One or two texts as one row: the special tokens around them, and what is left out of those that are too long.

In: token ids. Out: the tokens of a row and their types. An encoder reads [CLS] a [SEP] b [SEP] (Devlin et al. 2018,
section 3.2), a decoder Start a Delimiter b Extract, three new rows behind its table (Radford et al. 2018, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmjax.data.labelled import UnfitExampleError
from lmjax.errors import UserError, require
from lmjax.tokenizers.tokenizer import Tokenizer

Cut = Literal["head", "tail", "head_tail", "error"]
_HEAD = 4  # "head_tail": a quarter of what is left is the head, 128 of 510 tokens (Sun et al. 2019, section 5.3.1)


@dataclass(frozen=True)
class Frame:
    """The ids before the first text, between two texts, and after the last one."""

    begin: int
    between: int
    end: int


def encoder_frame(tokenizer: Tokenizer) -> Frame:
    """[CLS], [SEP] and [SEP]. Raises UserError where the tokenizer has none of them."""
    special = tokenizer.special
    for name in ("cls", "sep"):
        if getattr(special, name) is None:
            raise UserError(
                f"the {tokenizer.kind} tokenizer has no [{name.upper()}]: expected one, which an encoder reads around "
                "a text; use a wordpiece tokenizer, or the tokenizer of the encoder's checkpoint"
            )
    return Frame(special.cls, special.sep, special.sep)  # type: ignore[arg-type]


def decoder_frame(rows: int) -> Frame:
    """Start, Delimiter and Extract: the next three rows behind a table of `rows`."""
    return Frame(rows, rows + 1, rows + 2)


def framed(
    frame: Frame, a: np.ndarray, b: np.ndarray | None, length: int, cut: Cut = "head", where: object = "the text"
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of one or two texts in a row, and their types, int32 [n], n <= length.

    Types are 0 up to the token between the texts, and 1 behind it. `cut` says which part of a text that is too long is
    kept; of two texts the longer one is shortened (`fitting`). Raises UserError, which names `where`, for a text that
    is too long where cut = "error".
    """
    texts = [a] if b is None else [a, b]
    room, tokens = length - len(texts) - 1, [len(text) for text in texts]
    require(room >= len(texts), "rows.sequence_length", length, f"{len(texts) + 1} and some tokens", "raise it")
    if cut == "error" and sum(tokens) > room:
        raise UnfitExampleError(
            f"{where}: {' and '.join(map(str, tokens))} tokens, expected at most {room} of rows.sequence_length = "
            f"{length}; raise it, or let the task cut long texts",
            "longer than a row",
        )
    most = (min(len(a), room),) if b is None else fitting(len(a), len(b), room)
    parts = [text[kept(len(text), size, cut)] for text, size in zip(texts, most, strict=True)]
    marks = [[frame.between]] * (len(parts) - 1) + [[frame.end]]
    ids = [[frame.begin], *(each for pair in zip(parts, marks, strict=True) for each in pair)]
    sizes = [1 + len(parts[0]) + 1, *(len(part) + 1 for part in parts[1:])]
    return np.concatenate(ids).astype(np.int32), np.repeat(np.arange(len(parts), dtype=np.int32), sizes)


def fitting(a: int, b: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts are kept so that both fit: one after the other is taken from the longer one.

    Of equal ones the second is shortened, as in BERT's code.
    """
    half = room // 2
    if a + b <= room:
        return a, b
    if a <= room - half:
        return a, room - a
    return (room - b, b) if b <= half else (room - half, half)


def kept(tokens: int, most: int, cut: Cut) -> np.ndarray:
    """The places of the tokens, int64, that are kept of a text of which at most so many fit."""
    dropped = max(tokens - most, 0)
    head = {"head": most, "error": most, "tail": 0, "head_tail": -(-most // _HEAD)}[cut]
    places = np.arange(tokens - dropped)
    return places + dropped * (places >= head)
