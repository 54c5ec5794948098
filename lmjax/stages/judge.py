"""How a reward model scores what a policy in training writes: one sampled answer to each validation prompt of a stage.

In: an SFT recipe that names a judge. Out: a function from the policy's parameters to the mean score. The draws are the
same at every evaluation, so that its values can be compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax.data.batch import Batch
from lmjax.errors import require
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.rows import place_rows, row_sharding
from lmjax.parallel.shardings import on_mesh
from lmjax.rlhf.rollout import Rollout, Vocabulary, sample
from lmjax.rlhf_recipes import SFT
from lmjax.stages.going_on import open_dialogue
from lmjax.stages.ppo_evaluation import PromptSet
from lmjax.stages.start import Start, abstract_on, open_reward_model
from lmjax.stages.steps import platform_of
from lmjax.training.progress import ProgressDisplay


class Judge:
    """Call it with the policy's parameters. Answers are at most evaluation.sample_tokens long."""

    def __init__(
        self, recipe: SFT, start: Start, policy: LanguageModel, mesh: Mesh, workdir: Path, display: ProgressDisplay
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
        self._most = recipe.evaluation.batches

    def __call__(self, params: Any) -> float:
        """The mean score over the prompts, of the first evaluation.batches batches where that is set."""
        total = len(self._prompts)
        used = min(total, (self._most or total) * self._size)
        scores = []
        for begin in range(0, used, self._size):
            numbers = np.arange(begin, begin + self._size) % total  # one shape; what is repeated is not used
            rollout = self._roll(params, place_rows(self._prompts.batch(numbers), self._mesh), np.int32(begin))
            found = np.asarray(jax.device_get(self._score(self._params, rollout.rows)))
            scores.append(found[: min(self._size, used - begin)])
        return float(np.concatenate(scores).mean())

    def _rolled(self, params: Any, batch: Batch, begin: jax.Array) -> Rollout:
        key = jax.random.fold_in(jax.random.key(0), begin)
        return sample(self._policy, params, batch, key, self._vocabulary, tokens=self._tokens, temperature=1.0)
