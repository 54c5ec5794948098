"""How a reward model scores what a policy in training writes: one sampled answer to each validation prompt of a stage.

The draws are the same at every evaluation, so that its values can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmjax.checkpoints.evaluated import VALIDATION_REWARD
from lmjax.errors import require
from lmjax.evaluate.policy import PromptSet
from lmjax.evaluate.validation import by_source
from lmjax.rl.rollout import Vocabulary
from lmjax.rl.sampler import Sampler
from lmjax.settings import DialogueStage
from lmjax.tasks.conversations import open_conversations
from lmjax.tasks.task import TaskRun
from lmjax.training.loop import Values


class SampledRewards:
    """Call it with the policy's parameters. Answers are at most evaluation.sample_tokens long."""

    def __init__(self, run: TaskRun) -> None:
        """Raises UserError where the reward model has too short a context."""
        stage, resolved = run.stage, run.resolved
        scorer, start, tokenizer = resolved.scorer, resolved.start, resolved.tokenizer
        assert scorer is not None and start is not None and tokenizer is not None and isinstance(stage, DialogueStage)
        dialogue, tokens = stage.dialogue, stage.evaluation.sample_tokens
        longest, context = dialogue.sequence_length + tokens, min(scorer.settings.context, start.settings.context)
        field = "dialogue.sequence_length + evaluation.sample_tokens"
        require(
            longest <= context, field, longest, f"at most {context} where a reward model reads them", "shorten either"
        )
        rows, records = open_conversations(dialogue.validation, "prompt", resolved, run.session.display)
        self._prompts, self._size = PromptSet(rows, records), dialogue.batch_size
        vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.eos_id)
        self._sampler = Sampler(run.program.model, run.mesh, vocabulary, tokens=tokens, scorer=scorer)
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
        rollout = self._sampler.sample(params, self._prompts.batch(numbers), numbers[0])
        return self._sampler.scores(rollout)[:used]
