"""Answers of a policy to batches of prompts on a mesh, with a reward model's scores, outside of PPO's iterations.

The draws are a function of the seed and of the number of a batch's first prompt: a repeated call gives the same.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax.checkpoints.initial import InitialCheckpoint
from lmjax.data.batch import Batch
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.placement import ROWS, abstract_params, batch_sharding, on_mesh, place_rows
from lmjax.rl.rollout import Rollout, Vocabulary, sample


class Sampler:
    """`answers` to each prompt, of at most so many `tokens`; `scorer` is the checkpoint of a reward model."""

    def __init__(
        self,
        policy: LanguageModel,
        mesh: Mesh,
        vocabulary: Vocabulary,
        *,
        tokens: int,
        temperature: float = 1.0,
        answers: int = 1,
        seed: int = 0,
        scorer: InitialCheckpoint | None = None,
    ) -> None:
        self._mesh, rows = mesh, batch_sharding(mesh, ROWS)

        def roll(params: Any, prompts: Batch, first: jax.Array) -> Rollout:
            key = jax.random.fold_in(jax.random.key(seed), first)
            options: Any = {"tokens": tokens, "temperature": temperature, "group": answers}
            return sample(policy, params, prompts, key, vocabulary, **options)

        self._roll = jax.jit(on_mesh(roll, mesh), out_shardings=rows)
        self._scorer = scorer
        if scorer is not None:
            reward = ScalarModel(LanguageModel(scorer.settings, policy.compute, policy.platform))
            self._reward_params = scorer.reward_model(abstract_params(reward, mesh))
            self._score = jax.jit(on_mesh(reward.scores, mesh), out_shardings=rows)

    def sample(self, params: Any, prompts: Batch, first: int) -> Rollout:
        """Answers to prompts; those to one prompt are neighbours. `first` is the number of the first prompt."""
        rollout: Rollout = self._roll(params, place_rows(prompts, self._mesh), np.int32(first))
        return rollout

    def scores(self, rollout: Rollout) -> np.ndarray:
        """The reward model's score of each answer, float32 [answers], on the host."""
        return np.asarray(jax.device_get(self._score(self._reward_params, rollout.rows)))
