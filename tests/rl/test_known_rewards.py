"""What the known rewards like."""

import pytest

from lmjax.rl.known_rewards import WORDS, short_sentence


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (" of the input are returned in sorted order.", 2.0),  # 8 words, a full stop, no repeats
        (" of the input are returned in sorted order", 1.0),
        (" of the array of the array of the.", 1.0 + 4 / 8),  # "the." is not "the"
        (" " + " ".join(f"w{i}" for i in range(2 * WORDS)) + ".", 1.0),
        (" " + " ".join(f"w{i}" for i in range(9 * WORDS)) + ".", 1.0),  # no longer one is worse
        (" none.", 2.0 - 7 / 8),
        ("", -1.0),
    ],
)
def test_a_short_whole_sentence_without_repetition_is_best(response, score):
    assert short_sentence(["The"], [response]) == [pytest.approx(score)]
