"""How good a policy is on prompts that it does not learn from: reward, known reward, divergence, lengths, samples.

In: the phases of an iteration, compiled, and the validation prompts of every source. Out: a function of the state that
gives numbers and records samples. Its draws are the same at every evaluation, so that these can be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from lmjax.data.batch import Batch
from lmjax.data.conversation_rows import RECORD
from lmjax.data.conversations import Prompt
from lmjax.data.loader import dealt
from lmjax.data.packing import Rows
from lmjax.data.source_shares import source_names
from lmjax.evaluate.samples import EvaluationLines, prompt_text, response_texts, write_samples
from lmjax.evaluate.validation import by_source
from lmjax.model.language_model import LanguageModel
from lmjax.optim.train_state import TrainState
from lmjax.parallel.placement import place_rows
from lmjax.rl.learner import POLICY
from lmjax.rl.reward_function import RewardFunction
from lmjax.rl.rollout import Rollout
from lmjax.settings import PPO
from lmjax.tokenizers.tokenizer import Tokenizer
from lmjax.training.loop import Values
from lmjax.training.stop import StopRequest

SHOWN = 4  # responses of an evaluation that are recorded

Scorer = Callable[[Rollout, Sequence[str], Sequence[Prompt]], Any]


class Numbered(NamedTuple):
    """The numbers of a batch's prompts, int64 [B], of which the first `used` count."""

    numbers: np.ndarray
    used: int


class PromptSet:
    """The prompts of several sources under one numbering: those of the second follow those of the first."""

    def __init__(self, rows: Sequence[Rows], records: Sequence[Sequence[Any]]) -> None:
        self.records: list[Prompt] = [record for source in records for record in source]
        self._rows = list(rows)
        self._firsts = np.cumsum([0, *map(len, rows)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def batch(self, numbers: np.ndarray) -> Batch:
        """The prompts with these numbers, int64 [B]; their field RECORD holds the numbers."""
        sources = np.searchsorted(self._firsts, numbers, side="right") - 1
        out: Batch = {}
        for source in np.unique(sources):
            here = sources == source
            part = self._rows[source].batch(numbers[here] - self._firsts[source])
            for name, array in part.items():
                out.setdefault(name, np.zeros((len(numbers), *array.shape[1:]), array.dtype))[here] = array
        return out | {RECORD: numbers[:, None].astype(np.int32)}

    def read_by_source(self, size: int, most: int | None, stop: StopRequest) -> Iterator[Iterator[Numbered]]:
        """For each source its batches of `size` prompts that an evaluation of `most` batches reads: data/loader.py.

        The last batch of a source is filled up with prompts that are not used, so that all have one shape. Raises
        Interrupted where a stop is asked for.
        """
        counts = np.diff(self._firsts)
        batches = dealt([-(-count // size) for count in counts.tolist()], most)

        def read(first: int, count: int, own: int) -> Iterator[Numbered]:
            for begin in range(0, own * size, size):
                stop.check()
                yield Numbered(first + np.arange(begin, begin + size) % count, min(size, count - begin))

        return (read(*each) for each in zip(self._firsts.tolist(), counts.tolist(), batches, strict=False))

    def of_source(self, source: int) -> Rows:
        """The rows of one source, numbered among all."""
        return _SourceRows(self, int(self._firsts[source]), len(self._rows[source]))

    def texts(self, recipe: PPO, batch: Batch) -> list[str]:
        """The text of the prompt of each response to a batch."""
        return [prompt_text(record, recipe.dialogue.template) for record in self.asked(recipe, batch)]

    def asked(self, recipe: PPO, batch: Batch) -> list[Prompt]:
        """The prompt of each response to a batch."""
        numbers = np.asarray(jax.device_get(batch[RECORD]))[:, 0]
        return [self.records[number] for number in numbers for _ in range(recipe.ppo.group)]


class _SourceRows:
    """A part of a prompt set, as the loader takes it."""

    dropped_tokens = 0

    def __init__(self, prompts: PromptSet, first: int, size: int) -> None:
        self._prompts, self._first, self._size = prompts, first, size

    def __len__(self) -> int:
        return self._size

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        return self._prompts.batch(indices + self._first)


@dataclass(frozen=True)
class PolicyEvaluation:
    """Evaluates a policy: `roll` samples, `score` is the reward, `divergence` that from the reference, [B].

    `gold` is the known reward, where there is one.
    """

    recipe: PPO
    tokenizer: Tokenizer
    policy: LanguageModel
    prompts: PromptSet
    mesh: Mesh
    roll: Callable[[TrainState, Batch], Rollout]
    score: Scorer
    divergence: Callable[[TrainState, Rollout], Any]
    gold: RewardFunction | None
    samples: Sequence[str]  # what is continued at each evaluation
    stop: StopRequest

    def __call__(self, state: TrainState, done: int, lines: EvaluationLines) -> Values:
        """Raises Interrupted between two batches where a stop is asked for."""
        recipe, own, tokenizer = self.recipe, state.params[POLICY], self.tokenizer
        write_samples(self.policy, own, tokenizer, recipe.evaluation, self.samples, lines, done, self.stop)
        index, found = 0, []
        for source in self.prompts.read_by_source(recipe.dialogue.batch_size, recipe.evaluation.batches, self.stop):
            of_source: list[dict[str, np.ndarray]] = []
            for numbers, used in source:
                values, asked, texts = self._batch(state, numbers, index)
                of_source.append({name: array[: used * recipe.ppo.group] for name, array in values.items()})
                if index == 0:
                    _write_responses(of_source[0], asked, texts, recipe.ppo.group, lines, done)
                index += 1
            found.append(of_source)
        if not found:
            return {}
        names = source_names(recipe.dialogue.validation)
        whole = [batch for of_source in found for batch in of_source]
        return _means(whole) | by_source(names, [_means(of_source) for of_source in found])

    def _batch(
        self, state: TrainState, numbers: np.ndarray, index: int
    ) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
        """The values of each response to a batch of prompts, the prompts' texts and the responses'."""
        drawn = jax.device_put(np.int32(-1 - index), state.step.sharding)
        batch = place_rows(self.prompts.batch(numbers), self.mesh)
        rollout = self.roll(dataclasses.replace(state, step=drawn), batch)
        asked = self.prompts.texts(self.recipe, batch)
        texts = response_texts(rollout, self.tokenizer)
        records = self.prompts.asked(self.recipe, batch)
        values = {"reward": self.score(rollout, asked, records), "kl": self.divergence(state, rollout)}
        fetched = {name: np.asarray(value) for name, value in jax.device_get(values).items()}
        if self.gold is not None:
            fetched["gold"] = self.gold(asked, texts, records)
        finished, mask = jax.device_get((rollout.finished, rollout.mask))
        return fetched | {"length": mask.sum(axis=1), "finished": finished}, asked, texts


def _means(batches: Sequence[dict[str, np.ndarray]]) -> Values:
    """Over all responses of the batches."""
    names = batches[0]
    return {f"validation_{name}": float(np.concatenate([b[name] for b in batches]).mean()) for name in names}


def _write_responses(
    values: dict[str, np.ndarray],
    asked: Sequence[str],
    texts: Sequence[str],
    group: int,
    lines: EvaluationLines,
    done: int,
) -> None:
    """Records the first response to each of the first prompts, and what it was worth."""
    for row in range(0, min(SHOWN * group, len(values["reward"])), group):
        worth = {f"sample_{name}": float(values[name][row]) for name in ("reward", "gold") if name in values}
        lines.write(done, {"prompt": asked[row], "sample": texts[row]} | worth)
