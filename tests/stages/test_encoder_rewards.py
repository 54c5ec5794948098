"""A reward model on an encoder: it learns rankings by the token that it is told to read, and scores by it again."""

import json

import pytest

import lmjax
from lmjax.data.conversation_files import read_records
from lmjax.runs.score import open_scorer, ranking_scores
from tests import tiny
from tests.fresh import encoder

pytestmark = pytest.mark.usefixtures("compiled_once", "no_charts")


@pytest.mark.parametrize("reads", ["first", "mean"])
def test_it_learns_the_rankings_and_scores_as_it_was_trained(tmp_path, reads):
    start = encoder(tmp_path / "encoder", context=32)
    records = [{"prompt": c, "answers": [c + " b", c + " a"], "ranks": [0, 1]} for c in tiny.LETTERS]
    rankings = tiny.write_rows(tmp_path / "ranks.jsonl", records)
    stage = tiny.reward_model(
        rankings, start=str(start), reads=reads, epochs=15.0, dialogue__validation=rankings, evaluation__every=100
    )
    assert lmjax.run(stage, tmp_path / "run", quiet=True).exit_code == 0
    line = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert line["validation_accuracy"] == 1.0
    recipe, scorer = open_scorer(tmp_path / "run")
    assert recipe.reads == reads
    _, found = ranking_scores(recipe, scorer, read_records(rankings[0], "ranking").records, "the records")
    scores = list(found)
    assert len(scores) == len(records) and all(better > worse for (better, worse), _ in scores)
