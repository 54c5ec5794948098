"""Examples with several rows, as the options of a question or ranked answers: fields [B, K, T], folded and unfolded.

In: a batch whose fields of tokens are [B, K, T]. Out: its rows [B x K, T], and which of them are there. What a model
gives of the rows, [B x K, ...], is reshaped back to [B, K, ...].
"""

from __future__ import annotations

import jax

from lmjax.data.batch import SEGMENTS, TOKENS, Batch


def options_as_rows(batch: Batch) -> Batch:
    """The fields [B, K, T] of K options for each example as rows, [B x K, T]; other fields are left out."""
    shape = batch[TOKENS].shape
    return {name: array.reshape(-1, shape[-1]) for name, array in batch.items() if array.shape == shape}


def present_options(batch: Batch) -> jax.Array:
    """Boolean [B, K]: True for an option, False for padding."""
    return (batch[SEGMENTS] != 0).any(axis=-1)
