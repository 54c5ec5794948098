"""Comparisons from a simulated labeler: answers sampled from a policy and ranked by a known reward, as JSONL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lmjax.data.dialogue import Prompt
from lmjax.data.dialogue_rows import RECORD
from lmjax.data.packing import Rows
from lmjax.errors import require
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.rows import place_rows, row_sharding
from lmjax.parallel.shardings import on_mesh
from lmjax.rlhf.labeler import best_of, best_of_divergence, noisy_ranks
from lmjax.rlhf.reward_function import load_function
from lmjax.rlhf.rollout import Rollout, Vocabulary, repeated, sample
from lmjax.rlhf_recipes import Compare
from lmjax.stages.going_on import open_dialogue
from lmjax.stages.start import Start, abstract_on, open_reward_model, open_start
from lmjax.stages.texts import prompt_text, response_texts
from lmjax.stages.workdir import write_whole
from lmjax.training.progress import ProgressDisplay

COMPARISONS_FILE = "comparisons.jsonl"


def compare(recipe: Compare, workdir: Path, display: ProgressDisplay) -> dict[str, Any]:
    """Writes the comparisons and returns what is known of them: gold rewards, and with a proxy those of the best of n.

    A prompt whose answers the labeler finds equal, or of which fewer than two are not empty, is left out and counted.
    """
    require(bool(recipe.dialogue.train), "dialogue.train", (), "at least one source", "name a file of prompts")
    start = open_start(recipe.start, workdir)
    gold_function = load_function(recipe.gold, "gold")
    judge = open_reward_model(recipe.proxy, workdir, start, "proxy") if recipe.proxy else None
    rows, records = open_dialogue(recipe.dialogue.train, recipe.dialogue, start.tokenizer, "prompt", workdir, display)
    sampler = _Sampler(recipe, start, judge)
    lines, gold, proxy = [], [], []
    for source_rows, source_records in zip(rows, records, strict=True):
        for asked, answers, scores in sampler.answers(source_rows, source_records):
            prompts = [prompt_text(record, recipe.dialogue.template) for record in asked for _ in range(recipe.answers)]
            given = gold_function(prompts, answers)
            gold.append(given.reshape(-1, recipe.answers))
            proxy.append(scores)
            texts = [answers[i : i + recipe.answers] for i in range(0, len(answers), recipe.answers)]
            lines += list(zip(asked, texts, gold[-1], strict=True))
    gold_BK = np.concatenate(gold)
    written = _written(lines, noisy_ranks(gold_BK, recipe.noise, recipe.seed))
    require(bool(written), "answers", recipe.answers, "answers that differ", "raise temperature or response_tokens")
    write_whole(workdir / COMPARISONS_FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in written))
    display.say(
        f"{len(written)} comparisons, {len(lines) - len(written)} prompts left out; mean gold {gold_BK.mean():.4f}"
    )
    summary: dict[str, Any] = {"comparisons": len(written), "left_out": len(lines) - len(written)}
    summary["gold"] = float(gold_BK.mean())
    if judge is not None:
        summary["best_of"] = _best_of_n(gold_BK, np.concatenate(proxy), display)
    return summary


def _written(lines: list[Any], ranks_BK: np.ndarray) -> list[dict[str, Any]]:
    """The records of those prompts whose answers are told apart."""
    out = []
    for (record, answers, gold_K), ranks_K in zip(lines, ranks_BK, strict=True):
        kept = [k for k, answer in enumerate(answers) if answer.strip()]
        if len({int(ranks_K[k]) for k in kept}) > 1:
            prompt = [{"role": turn.role, "content": turn.text} for turn in record.turns]
            chosen = {"answers": [answers[k] for k in kept], "ranks": [int(ranks_K[k]) for k in kept]}
            out.append({"prompt": prompt} | chosen | {"gold": [float(gold_K[k]) for k in kept]})
    return out


def _best_of_n(gold_BK: np.ndarray, proxy_BK: np.ndarray, display: ProgressDisplay) -> list[dict[str, float]]:
    table = []
    for n in (2**i for i in range(gold_BK.shape[1].bit_length())):
        row = {"n": n, "kl": best_of_divergence(n)}
        row |= {"gold": best_of(n, proxy_BK, gold_BK), "proxy": best_of(n, proxy_BK, proxy_BK)}
        display.say(f"best of {n}: gold {row['gold']:.4f}, proxy {row['proxy']:.4f}, {row['kl']:.3f} nats")
        table.append(row)
    return table


class _Sampler:
    """Samples answers to prompts, batch by batch, and scores them by the proxy where there is one."""

    def __init__(self, recipe: Compare, start: Start, judge: Start | None) -> None:
        self._recipe, self._start, self._judge = recipe, start, judge
        self._mesh = make_mesh(recipe.mesh)
        platform = jax.default_backend()
        self._policy = LanguageModel(start.settings, recipe.compute, platform)
        self._params = start.language_model(abstract_on(self._policy, self._mesh))
        self._rows = row_sharding(self._mesh)
        self._roll = jax.jit(on_mesh(self._rolled, self._mesh), out_shardings=self._rows)
        self._proxy: ScalarModel | None = None
        if judge is not None:
            self._proxy = ScalarModel(LanguageModel(judge.settings, recipe.compute, platform))
            self._proxy_params = judge.reward_model(abstract_on(self._proxy, self._mesh))
            self._score = jax.jit(on_mesh(self._proxy.scores, self._mesh), out_shardings=self._rows)

    def answers(self, rows: Rows, records: list[Any]) -> Any:
        """Yields (records, their answers, proxy scores [b, K] or None), each record's answers next to each other."""
        size, K = self._recipe.dialogue.batch_size, self._recipe.answers
        for begin in range(0, len(rows), size):
            numbers = np.arange(begin, begin + size) % len(rows)  # one shape; what is repeated is not used
            used = min(size, len(rows) - begin)
            batch = rows.batch(numbers)
            asked: list[Prompt] = [records[number] for number in batch[RECORD][:used, 0]]
            rollout = self._roll(self._params, place_rows(batch, self._mesh), np.int32(begin))
            texts = response_texts(rollout, self._start.tokenizer)[: used * K]
            scores = None
            if self._proxy is not None:
                scores = np.asarray(jax.device_get(self._score(self._proxy_params, rollout.rows)))[: used * K]
                scores = scores.reshape(used, K)
            yield asked, texts, scores

    def _rolled(self, params: Any, batch: Any, begin: jax.Array) -> Rollout:
        recipe, tokenizer = self._recipe, self._start.tokenizer
        key = jax.random.fold_in(jax.random.key(recipe.seed), begin)
        vocabulary = Vocabulary(tokenizer.vocab_size, tokenizer.eos_id)
        tokens, temperature = recipe.response_tokens, recipe.temperature
        prompts = repeated(batch, recipe.answers)
        return sample(self._policy, params, prompts, key, vocabulary, tokens=tokens, temperature=temperature)
