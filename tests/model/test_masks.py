"""Which keys a query sees, held against a loop over queries and keys."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.masks import Mask

QUERIES, KEYS = 5, 9
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [0, 0, 1, 1, 2, 3, 3, 3, 3]], np.int32)


def seen_by_loop(causal, band, offset, segments):
    """One query and one key at a time, straight from the sentence that describes the mask."""
    rows = 1 if segments is None else len(segments)
    seen = np.zeros((rows, 1, QUERIES, KEYS), bool)
    for row in range(rows):
        for t in range(QUERIES):
            for s in range(KEYS):
                at = offset + t
                ahead = s - at
                visible = not (causal and ahead > 0)
                if band is not None:
                    visible = visible and abs(ahead) <= band - 1
                if segments is not None:
                    own = segments[row][at]
                    visible = visible and segments[row][s] == own and segments[row][s] > 0
                seen[row, 0, t, s] = visible
    return seen


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("band", [None, 1, 3, 20])
@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "ragged"])
def test_a_mask_shows_what_a_loop_over_queries_and_keys_shows(causal, band, offset, segments):
    queries = keys = None
    if segments is not None:
        keys = jnp.asarray(segments)
        queries = keys[:, offset : offset + QUERIES]
    mask = Mask(causal, band, queries, keys, offset=jnp.int32(offset))
    assert (np.asarray(mask.visible(QUERIES, KEYS)) == seen_by_loop(causal, band, offset, segments)).all()


def test_a_query_with_enough_keys_before_it_sees_exactly_the_band():
    counts = np.asarray(Mask(True, 3).visible(8, 8)).sum(-1)[0, 0]
    assert counts.tolist() == [1, 2, 3, 3, 3, 3, 3, 3]


def test_padding_is_seen_by_nobody():
    segments = jnp.asarray(SEGMENTS)
    seen = np.asarray(Mask(False, None, segments, segments).visible(KEYS, KEYS))[:, 0]
    assert not seen[np.broadcast_to((SEGMENTS == 0)[:, None, :], seen.shape)].any()
