"""The model of the attention kernel: blocks counted by hand, and the sizes that follow."""

import numpy as np
import pytest

from lmjax.plan.attention_blocks import GRID_STEP, best_block, kernel_seconds
from lmjax.plan.attention_blocks import visited_blocks as visited
from lmjax.plan.slices import find_slice
from lmjax.settings import AttentionSettings, ModelSettings

V5E = find_slice("v5e-1")


def model(pattern=("dense",), band=None, head_dim=128):
    attention = AttentionSettings(heads=2, head_dim=head_dim, pattern=pattern, band=band)
    return ModelSettings(layers=4, width=256, context=8192, vocab_size=512, attention=attention)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("band", [None, 1, 2, 3, 5, 16])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (2, 4), (4, 2), (4, 4), (16, 16)])
def test_visited_blocks_are_those_in_which_some_query_sees_some_key(queries, keys, band, causal):
    place = np.arange(16)
    distance = place[:, None] - place[None, :]
    seen = distance >= 0 if causal else np.full((16, 16), True)
    if band is not None:
        seen &= abs(distance) < band
    blocks = seen.reshape(16 // queries, queries, 16 // keys, keys).any(axis=(1, 3))
    assert visited(16, queries, keys, band, causal) == blocks.sum()


def test_the_time_is_products_at_the_peak_and_the_grids_steps():
    one_block = 2 * 9 * 1024 * 1024 * 128 / 197e12 + 3 * GRID_STEP
    assert kernel_seconds(model(), 2048, 1, 1024, V5E, 1, GRID_STEP) == pytest.approx(4 * 3 * one_block)
    again = 2 * 2 * 1024 * 1024 * 128 / 197e12 + GRID_STEP
    assert kernel_seconds(model(), 2048, 1, 1024, V5E, 2, GRID_STEP) == pytest.approx(4 * 3 * (one_block + again))
    # half of the matrix units' width is empty where a head has 64
    assert kernel_seconds(model(head_dim=64), 2048, 1, 1024, V5E, 1, GRID_STEP) == pytest.approx(4 * 3 * one_block)


def test_one_kernel_makes_all_gradients_of_rows_of_one_block():
    one_block = 2 * 7 * 1024 * 1024 * 128 / 197e12 + 2 * GRID_STEP
    assert kernel_seconds(model(), 1024, 1, None, V5E, 1, GRID_STEP) == pytest.approx(4 * one_block)


def test_small_queries_blocks_wait_for_the_keys_that_they_read_again():
    """v5e makes 240 products in the time in which it reads two bytes: fewer queries leave the matrix units waiting."""
    reading = 3 * (2 * 2 * 128 * 128 / 819e9 + GRID_STEP)
    assert kernel_seconds(model(), 256, 1, 128, V5E, 1, GRID_STEP) == pytest.approx(4 * 3 * reading, rel=0.2)
    assert kernel_seconds(model(), 256, 1, 128, V5E, 1, GRID_STEP) >= 4 * 3 * reading


def test_narrow_bands_want_smaller_blocks_and_long_rows_keep_the_default():
    assert best_block(model(), 8192, 1, V5E) is None
    assert best_block(model(("banded",), 256), 8192, 1, V5E) == 512
    assert best_block(model(), 1024, 1, V5E) is None  # 512 would gain 7%, which is less than the model can tell
