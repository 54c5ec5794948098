"""How a reward model scores what a policy in training writes: one sampled answer to each validation prompt of a stage.

In: an SFT recipe that names a judge. Out: a function from the policy's parameters to the mean score. The draws are the
same at every evaluation, so that its values can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax.checkpoints.evaluated import VALIDATION_REWARD
from lmjax.data.batch import Batch
from lmjax.errors import require
from lmjax.evaluate.policy import PromptSet
from lmjax.evaluate.validation import by_source
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.rows import place_rows, row_sharding
from lmjax.parallel.shardings import on_mesh
from lmjax.rl.rollout import Rollout, Vocabulary, sample
from lmjax.settings.stages import SFT
from lmjax.stages.finetune import open_dialogue
from lmjax.stages.initial import Start, abstract_on, open_reward_model
from lmjax.stages.steps import platform_of
from lmjax.training.loop import Values
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest


class Judge:
    """Call it with the policy's parameters. Answers are at most evaluation.sample_tokens long."""

    def __init__(
        self,
        recipe: SFT,
        start: Start,
        policy: LanguageModel,
        mesh: Mesh,
        workdir: Path,
        display: ProgressDisplay,
        stop: StopRequest,
    ) -> None:
        """Raises UserError where the judge is no reward model, has another tokenizer, or too short a context."""
        dialogue, self._tokens = recipe.dialogue, recipe.evaluation.sample_tokens
        judge = open_reward_model(recipe.judge, workdir, start, "judge")
        longest, context = dialogue.sequence_length + self._tokens, min(judge.settings.context, start.settings.context)
        field = "dialogue.sequence_length + evaluation.sample_tokens"
        require(longest <= context, field, longest, f"at most {context} where a judge reads them", "shorten either")
        rows, records = open_dialogue(dialogue.validation, dialogue, start.tokenizer, "prompt", workdir, display)
        self._prompts, self._size, self._mesh = PromptSet(rows, records), dialogue.batch_size, mesh
        self._policy, self._vocabulary = policy, Vocabulary(start.tokenizer.vocab_size, start.tokenizer.eos_id)
        reward = ScalarModel(LanguageModel(judge.settings, recipe.compute, platform_of(mesh)))
        self._params = judge.reward_model(abstract_on(reward, mesh))
        self._roll = jax.jit(on_mesh(self._rolled, mesh), out_shardings=row_sharding(mesh))
        self._score = jax.jit(on_mesh(reward.scores, mesh), out_shardings=row_sharding(mesh))
        self._most, self._stop = recipe.evaluation.batches, stop

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
