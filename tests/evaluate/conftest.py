"""Evaluations are tested by their numbers; charts are drawn in tests/report and of the pipeline in tests/stages."""

import pytest


@pytest.fixture(autouse=True)
def _reports_are_not_drawn(no_charts):
    pass
