"""Comparisons from a simulated labeler: answers sampled from a policy and ranked by a known reward, as JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np

from lmjax.data.conversation_rows import RECORD
from lmjax.data.conversations import Prompt
from lmjax.data.packing import Rows
from lmjax.errors import UserError, require
from lmjax.evaluate.samples import prompt_text, response_texts
from lmjax.files import MalformedJsonError, check_form, parse_json, read_text, write_whole
from lmjax.model.language_model import LanguageModel
from lmjax.notation import decimals, exact
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import abstract_params
from lmjax.parallel.processes import is_first
from lmjax.rl.best_of_n import best_of, best_of_divergence, noisy_ranks
from lmjax.rl.reward_function import load_function
from lmjax.rl.rollout import Vocabulary
from lmjax.rl.sampler import Sampler
from lmjax.run_files import ANSWERED_FILE
from lmjax.settings import Compare
from lmjax.stages.changes import EARLIER, Kind, Table
from lmjax.stages.kind import StageKind
from lmjax.stages.shown import Shown
from lmjax.tasks.conversations import open_conversations
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Session
from lmjax.training.progress import ProgressDisplay

CHANGES: Table = {  # answers that were sampled are kept, and belong to what they were sampled with
    Kind.FREE: (
        *("name", "reasons", "mesh.", "model.", "compute.remat", "compute.loss_chunk", "compute.attention_block"),
        *("compute.vector_memory", "compute.scan_layers", "compute.unroll_layers"),
        *("dialogue.validation.", "dialogue.prefetch"),
        f"dialogue.{EARLIER}.",
    ),
    Kind.BREAKING: (
        *(
            "start",
            "known_reward",
            "noise",
            "reward_model",
            "no_eos_penalty",
            "answers",
            "response_tokens",
            "temperature",
        ),
        *("seed", "compute.dtype", "dialogue.train.", "dialogue.template.", "dialogue.sequence_length"),
        *("dialogue.batch_size", "dialogue.packing", "dialogue.too_long", "dialogue.prompt_weight"),
        *("dialogue.most_answers", "dialogue.shuffle", "dialogue.seed"),
    ),
}
COMPARISONS_FILE = "comparisons.jsonl"


def compare(resolved: ResolvedStage, session: Session) -> dict[str, Any]:
    """Writes the comparisons and returns their known rewards and, with a reward model, those of the best of n answers.

    A prompt whose answers the labeler finds equal, or of which fewer than two are not empty, is left out and counted.
    What an interrupted run has sampled is saved, batch by batch: the same call resumes after it.
    """
    recipe, workdir, display = resolved.of(Compare), resolved.folder, session.display
    require(bool(recipe.dialogue.train), "dialogue.train", (), "at least one source", "name a file of prompts")
    resolved = resolved.opened()
    scorer = resolved.scorer
    known_reward = load_function(recipe.known_reward, "known_reward")
    resolved.check_lengths()
    rows, records = open_conversations(recipe.dialogue.train, "prompt", resolved, display)
    comparer, K = _Comparer(recipe, resolved, _Answered(workdir / ANSWERED_FILE)), recipe.answers
    found, gold = [], []
    for source_rows, source_records in zip(rows, records, strict=True):
        for given in comparer.answers(source_rows, source_records):
            asked = [record for record in given.records for _ in range(K)]
            prompts = [prompt_text(record, recipe.dialogue.template) for record in asked]
            gold.append(known_reward(prompts, given.texts, asked).reshape(-1, K))
            found.append(given)
    gold_BK = np.concatenate(gold)
    values = {"gold": gold_BK, "finished": np.concatenate([given.finished for given in found])}
    if scorer is not None:
        values["proxy"] = np.concatenate([given.scores for given in found])
    lines = _lines(found, values)
    written = _written(lines, noisy_ranks(gold_BK, recipe.noise, recipe.seed))
    require(bool(written), "answers", recipe.answers, "answers that differ", "raise temperature or response_tokens")
    write_whole(workdir / COMPARISONS_FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in written))
    (workdir / ANSWERED_FILE).unlink(missing_ok=True)
    display.say(
        f"{len(written)} comparisons, {len(lines) - len(written)} prompts left out; mean gold {gold_BK.mean():.4f}"
    )
    summary: dict[str, Any] = {"comparisons": len(written), "left_out": len(lines) - len(written)}
    summary["gold"] = float(gold_BK.mean())
    if scorer is not None:
        preferred_BK = values["proxy"] - recipe.no_eos_penalty * ~values["finished"]
        summary["best_of"] = _best_of_n(gold_BK, values["proxy"], preferred_BK, display)
    return summary


class _Answers(NamedTuple):
    """Prompts, K answers to each side by side, whether they ended, and a reward model's scores, if any."""

    records: list[Prompt]
    texts: list[str]
    finished: np.ndarray  # [B, K]
    scores: Any  # [B, K], or None


def _lines(found: list[_Answers], values: dict[str, np.ndarray]) -> list[tuple[Prompt, list[str], dict[str, Any]]]:
    """Each prompt with its answers and the values of each of them."""
    records = [record for given in found for record in given.records]
    texts = [text for given in found for text in given.texts]
    K = len(texts) // len(records)
    own = [{name: array_BK[row].tolist() for name, array_BK in values.items()} for row in range(len(records))]
    return [(record, texts[row * K : (row + 1) * K], own[row]) for row, record in enumerate(records)]


def _written(lines: list[tuple[Prompt, list[str], dict[str, Any]]], ranks_BK: np.ndarray) -> list[dict[str, Any]]:
    """The records of the prompts whose answers have different ranks."""
    out = []
    for (record, answers, values), ranks_K in zip(lines, ranks_BK, strict=True):
        kept = [k for k, answer in enumerate(answers) if answer.strip()]
        if len({int(ranks_K[k]) for k in kept}) > 1:
            prompt = [{"role": turn.role, "content": turn.text} for turn in record.turns]
            chosen = {"answers": [answers[k] for k in kept], "ranks": [int(ranks_K[k]) for k in kept]}
            out.append({"prompt": prompt} | chosen | {name: [each[k] for k in kept] for name, each in values.items()})
    return out


def _best_of_n(
    gold_BK: np.ndarray, proxy_BK: np.ndarray, preferred_BK: np.ndarray, display: ProgressDisplay
) -> list[dict[str, float]]:
    """Gold and proxy of the answer that is the most `preferred` of n."""
    table = []
    for n in (2**i for i in range(gold_BK.shape[1].bit_length())):
        row = {"n": n, "kl": best_of_divergence(n)}
        row |= {"gold": best_of(n, preferred_BK, gold_BK), "proxy": best_of(n, preferred_BK, proxy_BK)}
        display.say(f"best of {n}: gold {row['gold']:.4f}, proxy {row['proxy']:.4f}, {row['kl']:.3f} nats")
        table.append(row)
    return table


class _Kept(TypedDict):
    """A batch's answers in the file."""

    texts: list[str]
    finished: list[bool]
    scores: list[float] | None


def _kept(line: str, where: str) -> dict[str, Any]:
    fix = "delete the line and those behind it, which are sampled again"
    try:
        return check_form(parse_json(line), _Kept, where, fix=fix)
    except MalformedJsonError as error:
        raise UserError(f"{where}: expected JSON ({error}); {fix}") from error


class _Answered:
    """What each batch of prompts was answered with, kept in a file by the first process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = read_text(path) if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # the last line may have been cut off
        lines = enumerate(whole.split("\n")[:-1], start=1)
        self._kept = [_kept(line, f"{path}:{number}") for number, line in lines]
        if is_first():
            write_whole(path, whole)
        self._next = 0

    def take(self) -> dict[str, Any] | None:
        """The next batch's answers, or None where they are still to be sampled and then to be `keep`t."""
        self._next += 1
        return self._kept[self._next - 1] if self._next <= len(self._kept) else None

    def keep(self, answers: dict[str, Any]) -> None:
        if is_first():
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(answers) + "\n")


class _Comparer:
    """Samples answers to prompts, batch by batch, and scores them by the reward model where there is one."""

    def __init__(self, recipe: Compare, resolved: ResolvedStage, answered: _Answered) -> None:
        start = resolved.start
        assert start is not None
        self._recipe, self._answered, self._tokenizer = recipe, answered, start.tokenizer
        self._scored = resolved.scorer is not None
        mesh = make_mesh(recipe.mesh)
        policy = LanguageModel(start.settings, recipe.compute, jax.default_backend())
        self._params = start.language_model(abstract_params(policy, mesh))
        self._sampler = Sampler(
            policy,
            mesh,
            Vocabulary(start.tokenizer.vocab_size, start.tokenizer.eos_id),
            tokens=recipe.response_tokens,
            temperature=recipe.temperature,
            answers=recipe.answers,
            seed=recipe.seed,
            scorer=resolved.scorer,
        )

    def answers(self, rows: Rows, records: list[Any]) -> Iterator[_Answers]:
        size, K = self._recipe.dialogue.batch_size, self._recipe.answers
        for begin in range(0, len(rows), size):
            numbers = np.arange(begin, begin + size) % len(rows)  # one shape; what is repeated is not used
            used = min(size, len(rows) - begin)
            batch = rows.batch(numbers)
            asked: list[Prompt] = [records[number] for number in batch[RECORD][:used, 0]]
            found = self._answered.take()
            if found is None:
                found = self._sampled(batch, begin, used * K)
                self._answered.keep(found)
            scores = found["scores"] and np.asarray(found["scores"], np.float32).reshape(used, K)
            yield _Answers(asked, found["texts"], np.asarray(found["finished"]).reshape(used, K), scores)

    def _sampled(self, batch: Any, begin: int, used: int) -> dict[str, Any]:
        """Of a batch of prompts whose first `used` answers count: their texts, whether they ended, and their scores."""
        rollout = self._sampler.sample(self._params, batch, begin)
        finished = np.asarray(jax.device_get(rollout.finished))[:used].tolist()
        scores = self._sampler.scores(rollout)[:used].tolist() if self._scored else None
        texts = response_texts(rollout, self._tokenizer)[:used]
        return {"texts": texts, "finished": finished, "scores": scores}


class _Compared(TypedDict):
    """The summary of comparisons."""

    comparisons: int
    left_out: int
    gold: float


def _state(recipe: Any, summary: dict[str, Any]) -> str:
    if not summary:
        return f"{exact(recipe.answers)} answers to each prompt are sampled and ranked in one go."
    made, left, gold = (summary[name] for name in ("comparisons", "left_out", "gold"))
    ranked = f"{exact(made)} comparisons of {exact(recipe.answers)} answers"
    return f"{ranked}, {exact(left)} prompts left out; mean gold reward {decimals(gold)}."


KIND = StageKind(
    settings=Compare,
    shown=Shown(charts=(), tiles=(), seen=None, state=_state),
    changes=(CHANGES,),
    produce=compare,
    summary_form=_Compared,
)
