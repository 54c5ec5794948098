"""A reward model's scores of the answers in a file or in any other source of dialogue."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from lmjax.data.dialogue import Demonstration, Ranking, Record, Turn, render
from lmjax.data.dialogue_records import Kind, holds_rankings
from lmjax.data.dialogue_rows import open_rows
from lmjax.errors import require
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.objective.preference import answer_scores
from lmjax.parallel.platform import prepare_jax
from lmjax.rlhf_recipes import RewardModel
from lmjax.rlhf_settings import DialogueSettings, DialogueSourceSettings
from lmjax.stages.start import Start, abstract_params, open_start

AT_ONCE = 8  # prompts


def score_file(checkpoint: Path, file: Path) -> Iterator[tuple[str, str, float]]:
    """(prompt, answer, score) of each answer in a file of rankings, pairs or single answers, in the file's order.

    The prompt is as the model reads it. Raises UserError for a checkpoint that is no reward model's, and for records
    without answers; answers that are too long are cut as in training.
    """
    recipe, start = open_scorer(checkpoint)
    source = DialogueSourceSettings(path=str(file))
    dialogue = dataclasses.replace(recipe.dialogue, most_answers=99)
    for record, scores_K in scored_records(recipe, start, source, dialogue):
        prompt, answers = _texts(record)
        text = "".join(piece.text for piece in render(prompt, dialogue.template))
        yield from ((text, answer, float(value)) for answer, value in zip(answers, scores_K, strict=False))


def open_scorer(checkpoint: Path) -> tuple[RewardModel, Start]:
    """A reward model and the recipe that made it. Raises UserError for a checkpoint that is no reward model's."""
    prepare_jax()
    with tempfile.TemporaryDirectory() as folder:
        start = open_start(str(checkpoint), Path(folder))
    recipe = start.recipe
    require(isinstance(recipe, RewardModel), "CKPT", str(checkpoint), "a reward model", "name the stage that made one")
    assert isinstance(recipe, RewardModel)
    return recipe, start


def scored_records(
    recipe: RewardModel, start: Start, source: DialogueSourceSettings, dialogue: DialogueSettings
) -> Iterator[tuple[Record, np.ndarray]]:
    """Each record of a source that fits and the scores of its answers, float32 [K], in the source's order.

    There are fewer scores than answers where the record has more than dialogue.most_answers.
    """
    kind: Kind = "ranking" if holds_rankings(source) else "answer"
    rows, _, records = open_rows(source, dialogue, start.tokenizer, kind)
    compute = dataclasses.replace(recipe.compute, remat="none")  # of training alone, and it may offload to the host
    model = ScalarModel(LanguageModel(start.settings, compute, jax.default_backend()))
    params = start.reward_model(abstract_params(model, jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    score = jax.jit(lambda params, batch: answer_scores(model, params, batch))
    for begin in range(0, len(rows), AT_ONCE):
        indices = np.arange(begin, begin + AT_ONCE) % len(rows)  # one shape; what is repeated is not shown
        scores_BK = np.asarray(score(params, rows.batch(indices)))
        for record, scores_K in zip(records[begin : begin + AT_ONCE], scores_BK, strict=False):
            yield record, scores_K[: len(_texts(record)[1])]


def _texts(record: object) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    if isinstance(record, Ranking):
        return record.prompt, record.answers
    assert isinstance(record, Demonstration)
    return record.turns[:-1], (record.turns[-1].text,)
