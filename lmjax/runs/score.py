"""A reward model's scores of the answers in a file or in any other source of dialogue."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax.bucket import located
from lmjax.checkpoints.initial import InitialCheckpoint, found_checkpoint, open_initial, recipe_of
from lmjax.data.batch import SEGMENTS
from lmjax.data.conversation_rows import RANKS, Counts, open_rows, ranking_rows
from lmjax.data.conversations import Record
from lmjax.data.packing import Rows
from lmjax.errors import clear_disk_errors, require
from lmjax.evaluate.samples import prompt_text
from lmjax.model.families import model_of
from lmjax.model.heads import ScalarModel
from lmjax.objective.preferences import answer_scores
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import ROWS, abstract_params, batch_sharding, jit_eval, place_rows
from lmjax.parallel.start_jax import prepare_jax
from lmjax.settings import DialogueSourceSettings, MeshSettings, RewardModel

AT_ONCE = 8  # prompts


class Scored(NamedTuple):
    """A response's score, and the reward that its record gives it, if any."""

    prompt: str  # as the model reads it, if it is not too long
    answer: str
    score: float
    reward: float | None


def print_scores(checkpoint: Path, file: Path, *, as_json: bool, skip_bad: bool) -> None:
    """Prints a line for each response. What was skipped or cut goes to standard error, as does, where the file gives
    rewards, how they go with the scores. Raises as `score_file` does.
    """
    responses, counts = score_file(checkpoint, file, skip_bad=skip_bad)
    for message in counts.messages:
        print(f"skipped: {message}", file=sys.stderr)
    if counts.cut:
        print(f"{counts.cut} of {counts.records} responses: the beginning of the prompt is cut", file=sys.stderr)
    for warning in counts.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    scored = []
    for each in responses:
        scored.append(each)
        if as_json:
            given = {name: value for name, value in each._asdict().items() if value is not None}
            print(json.dumps(given, ensure_ascii=False))
        else:
            print(f"{each.score:+9.4f}  {json.dumps(each.answer[:100], ensure_ascii=False)}")
    r, count = correlation(scored)
    if count:
        print(f"Pearson correlation of the scores with {count} given rewards: {r:.4f}", file=sys.stderr)


def score_file(checkpoint: Path, file: Path, *, skip_bad: bool = False) -> tuple[Iterator[Scored], Counts]:
    """Every response in a file in its order (a tree's best-ranked first), and what was skipped or cut.

    A conversation that is longer than in training loses its beginning, whatever training did. Raises UserError for a
    checkpoint that is no reward model's and for bad records, which `skip_bad` leaves out.
    """
    recipe, start = open_scorer(checkpoint)
    source = DialogueSourceSettings(path=str(file), on_bad_record="skip" if skip_bad else "error")
    dialogue = dataclasses.replace(recipe.dialogue, too_long="left")  # which leaves no answer out
    rows, counts, records = open_rows(source, dialogue, start.tokenizer, "response")

    def scored() -> Iterator[Scored]:
        for record, scores_K in zip(records, scores_of(recipe, start, rows), strict=True):
            yield Scored(prompt_text(record, dialogue.template), record.answers[0], float(scores_K[0]), record.reward)

    return scored(), counts


def is_reward_model(checkpoint: Path) -> bool:
    """Whether it scores answers, and does not predict tokens. Raises UserError where there is no checkpoint."""
    prepare_jax()
    path = located(checkpoint)
    with clear_disk_errors(path):
        return recipe_of(found_checkpoint(path)).scores


def open_scorer(checkpoint: Path | str) -> tuple[RewardModel, InitialCheckpoint]:
    """A reward model and the recipe that made it. Raises UserError for a checkpoint that is no reward model's."""
    prepare_jax()
    with tempfile.TemporaryDirectory() as folder:
        start = open_initial(str(checkpoint), Path(folder))
    scores, fix = start.recipe.scores, "name the stage that made one"
    require(scores, "CKPT", str(checkpoint), "a reward model", fix)
    return cast(RewardModel, start.recipe), start


def ranking_scores(
    recipe: RewardModel, start: InitialCheckpoint, records: Sequence[Record], where: str, mesh: Mesh | None = None
) -> tuple[list[Record], Iterator[tuple[list[float], list[int]]]]:
    """The rankings that can be compared, and for each the scores of its answers, float [K], and their ranks.

    All answers are read, and prompts that are too long lose their beginning, whatever training did. A ranking whose
    answers are cut to the same tokens is left out. Raises UserError where none is left.
    """
    most = max((len(record.answers) for record in records), default=2)
    dialogue = dataclasses.replace(recipe.dialogue, too_long="left", most_answers=most)
    rows, used = ranking_rows(list(records), dialogue, start.tokenizer, Counts(len(records)), where)

    def scored() -> Iterator[tuple[list[float], list[int]]]:
        for number, scores_K in enumerate(scores_of(recipe, start, rows, mesh)):
            ranks_K = rows.batch(np.array([number]))[RANKS][0]
            yield scores_K.astype(float).tolist(), ranks_K[ranks_K >= 0].tolist()

    return used, scored()


def scores_of(
    recipe: RewardModel, start: InitialCheckpoint, rows: Rows, mesh: Mesh | None = None
) -> Iterator[np.ndarray]:
    """The scores of the answers to each prompt, float32 [K], of rows of rankings or responses.

    The model is cut over `mesh`, or is on the first device. Raises UserError for a score that is not finite.
    """
    compute = dataclasses.replace(recipe.compute, remat="none")  # of training alone, and it may offload to the host
    model = ScalarModel(model_of(start.settings, compute, jax.default_backend()), recipe.reads)
    mesh = make_mesh(MeshSettings(), jax.devices()[:1]) if mesh is None else mesh
    params = start.reward_model(abstract_params(model, mesh))
    score = jit_eval(partial(answer_scores, model), mesh, params, batch=batch_sharding(mesh, ROWS))
    along = mesh.shape["replica"] * mesh.shape["data"] * mesh.shape["fsdp"]  # devices that rows are cut over
    size = along * -(-AT_ONCE // along)
    for begin in range(0, len(rows), size):
        batch = rows.batch(np.arange(begin, begin + size) % len(rows))  # one shape; what is repeated is not shown
        scores_BK = jax.device_get(score(params, place_rows(batch, mesh)))
        present_BK = batch[SEGMENTS].any(axis=-1)
        fix = "the training that wrote the checkpoint diverged: take an older one"
        for row in range(min(size, len(rows) - begin)):
            scores_K = scores_BK[row][present_BK[row]]
            total = float(scores_K.sum())  # of finite scores, finite
            require(math.isfinite(total), f"{start.checkpoint.path}: a score", total, "a finite number", fix)
            yield scores_K


def correlation(scored: list[Scored]) -> tuple[float, int]:
    """Pearson's r of the scores and the rewards that records give, and of how many responses.

    r is NaN where it is undefined: without two different scores and two different rewards.
    """
    pairs_N2 = np.array([(each.score, each.reward) for each in scored if each.reward is not None]).reshape(-1, 2)
    if not len(pairs_N2) or (pairs_N2 == pairs_N2[0]).all(axis=0).any():
        return float("nan"), len(pairs_N2)
    return float(np.corrcoef(pairs_N2.T)[0, 1]), len(pairs_N2)
