"""How a reward model scores what a policy in training writes: one sampled answer to each validation prompt of a stage.

The draws are the same at every evaluation, so that its values can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lmjax.checkpoints.evaluated import VALIDATION_REWARD
from lmjax.data.batch import Batch
from lmjax.errors import require
from lmjax.evaluate.policy import PromptSet
from lmjax.evaluate.validation import by_source
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.placement import ROWS, abstract_params, batch_sharding, on_mesh, place_rows
from lmjax.rl.rollout import Rollout, Vocabulary, sample
from lmjax.settings import DialogueStage
from lmjax.tasks.conversations import open_conversations
from lmjax.tasks.program import platform_of
from lmjax.tasks.task import TaskRun
from lmjax.training.loop import Values


class SampledRewards:
    """Call it with the policy's parameters. Answers are at most evaluation.sample_tokens long."""

    def __init__(self, run: TaskRun) -> None:
        """Raises UserError where the reward model has too short a context."""
        stage, resolved, mesh = run.stage, run.resolved, run.mesh
        scorer, start, tokenizer = resolved.scorer, resolved.start, resolved.tokenizer
        assert scorer is not None and start is not None and tokenizer is not None and isinstance(stage, DialogueStage)
        dialogue, self._tokens = stage.dialogue, stage.evaluation.sample_tokens
        longest, context = dialogue.sequence_length + self._tokens, min(scorer.settings.context, start.settings.context)
        field = "dialogue.sequence_length + evaluation.sample_tokens"
        require(longest <= context, field, longest, f"at most {context} where a judge reads them", "shorten either")
        rows, records = open_conversations(dialogue.validation, "prompt", resolved, run.session.display)
        self._prompts, self._size, self._mesh = PromptSet(rows, records), dialogue.batch_size, mesh
        self._policy, self._vocabulary = run.program.model, Vocabulary(tokenizer.vocab_size, tokenizer.eos_id)
        reward = ScalarModel(LanguageModel(scorer.settings, stage.compute, platform_of(mesh)))
        self._params = scorer.reward_model(abstract_params(reward, mesh))
        rows_cut = batch_sharding(mesh, ROWS)
        self._roll = jax.jit(on_mesh(self._rolled, mesh), out_shardings=rows_cut)
        self._score = jax.jit(on_mesh(reward.scores, mesh), out_shardings=rows_cut)
        self._most, self._stop = stage.evaluation.batches, run.session.stop

    def values(self, names: Sequence[str], params: Any) -> Values:
        """The mean score over all prompts, and over those of each source where there are several."""
        scores = self(params)
        whole = {VALIDATION_REWARD: float(np.concatenate(scores).mean())}
        return whole | by_source(names, [{VALIDATION_REWARD: float(own.mean())} for own in scores])

    def __call__(self, params: Any) -> list[np.ndarray]:
        """The scores of the answers to each source's prompts, as many batches as evaluation.batches says.

        Raises Interrupted between two batches where a stop is asked for.
        """
        return [
            np.concatenate([self._scores(params, *batch) for batch in source])
            for source in self._prompts.read_by_source(self._size, self._most, self._stop)
        ]

    def _scores(self, params: Any, numbers: np.ndarray, used: int) -> np.ndarray:
        rollout = self._roll(params, place_rows(self._prompts.batch(numbers), self._mesh), np.int32(numbers[0]))
        return np.asarray(jax.device_get(self._score(self._params, rollout.rows)))[:used]

    def _rolled(self, params: Any, batch: Batch, begin: jax.Array) -> Rollout:
        key = jax.random.fold_in(jax.random.key(0), begin)
        return sample(self._policy, params, batch, key, self._vocabulary, tokens=self._tokens, temperature=1.0)
