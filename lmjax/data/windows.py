"""Texts longer than a row, as windows that overlap, and which window sees most around a token.

In: numbers of tokens. Out: the begins and ends of windows in their text. `stride` is what lies between the begins of
two windows, as `doc_stride` in the code of BERT (Devlin et al. 2018); what two windows share is `size - stride`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lmjax.data.token_strings import within
from lmjax.errors import require


class Windows(NamedTuple):
    """Windows of texts, text after text, each text's from left to right; all int64 [W]."""

    texts: np.ndarray  # the number of the text
    begins: np.ndarray
    ends: np.ndarray


def windows(tokens: np.ndarray, sizes: np.ndarray | int, stride: int) -> Windows:
    """The windows of texts of so many tokens, int [N]: of `sizes` tokens at most, the last one ends with the text.

    A text that fits has one window, an empty text an empty one. Raises FieldError where the stride is not from 1 to the
    smallest size of a text that needs several: tokens would be in no window.
    """
    tokens, sizes = np.asarray(tokens, np.int64), np.broadcast_to(np.asarray(sizes, np.int64), np.shape(tokens))
    beyond = np.maximum(tokens - sizes, 0)
    smallest = int(sizes[beyond > 0].min(initial=np.iinfo(np.int64).max))
    expected = f"1 to {smallest}, the tokens of a window" if smallest < 2**62 else "1 or more"
    require(1 <= stride <= smallest, "stride", stride, expected, "lower it, or give rows more tokens")
    counts = 1 + -(-beyond // stride)
    texts = np.repeat(np.arange(len(tokens)), counts)
    begins = within(counts) * stride
    return Windows(texts, begins, np.minimum(begins + sizes[texts], tokens[texts]))


def most_context(begins: np.ndarray, ends: np.ndarray, tokens: int) -> np.ndarray:
    """The number of the window, of those of one text, that sees most around each of its tokens, int64 [tokens].

    That is the one with the largest min(tokens before, tokens after) + 0.01 x its tokens, and of equals the first, as
    in BERT's code for SQuAD. -1 for a token that is in no window.
    """
    at_T = np.arange(tokens)
    begins_W1, last_W1 = np.asarray(begins)[:, None], np.asarray(ends)[:, None] - 1
    context_WT = np.minimum(at_T - begins_W1, last_W1 - at_T)
    score_WT = np.where(context_WT >= 0, context_WT + 0.01 * (last_W1 - begins_W1 + 1), -1.0)
    if not len(score_WT):
        return np.full(tokens, -1)
    return np.where(score_WT.max(axis=0) < 0, -1, score_WT.argmax(axis=0))
