"""Runs are tested by what they do and say; charts are drawn in tests/report, and of a pipeline in tests/stages."""

import pytest


@pytest.fixture(autouse=True)
def _reports_are_not_drawn(no_charts):
    pass
