"""Numbers are written so that they read as what they are."""

import pytest

from lmjax.notation import decimals, duration, percent, rounded, setting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (124_439_808, "124M"),
        (999_600, "1M"),
        (999.6, "1k"),
        (999.4, "999"),
        (5_690.0, "5.69k"),
        (174_604_259_328, "175B"),
        (3.14e23, "3.14e23"),
        (0.25, "0.25"),
        (2.5e-4, "2.5e-4"),
        (0, "0"),
        (-1500, "-1.5k"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_quantities_have_three_digits_and_a_unit(value, text):
    assert rounded(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.36, "0.36 s"), (45, "45 s"), (59.6, "1 min"), (219, "3 min 39 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_durations_have_their_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_a_share_that_is_not_zero_never_reads_as_zero():
    assert [percent(share) for share in (0.0, 2e-5, 0.002, 0.513, 1.0)] == [
        "0%",
        "under 0.01%",
        "0.2%",
        "51.3%",
        "100%",
    ]


def test_settings_read_as_words():
    values = (None, True, False, 375_000_000, 2e-3, "bpe", "", (), ("a", "b"), (10, 12))
    texts = (
        "not set",
        "yes",
        "no",
        "375,000,000",
        "0.002",
        "bpe",
        "empty",
        "none",
        "\u201ca\u201d, \u201cb\u201d",
        "10, 12",
    )
    assert tuple(map(setting, values)) == texts
    assert decimals(float("inf")) == "inf"
