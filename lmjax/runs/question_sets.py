"""Sets of questions put to a checkpoint, for `lmjax evaluate --task`: accuracies, with standard errors, by shots.

In: a checkpoint, names of sets, the folder that holds them. Out: a line for each set and number of shots; on request a
JSONL file with every question's choices.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.errors import clear_disk_errors, nearest, require
from lmjax.evaluate.answers import Answer, Examiner, Mean, mean_of
from lmjax.evaluate.questions import SETS, QuestionSet, with_shots
from lmjax.evaluate.validation import perplexity_of
from lmjax.runs.evaluate import Reader
from lmjax.settings import MeshSettings


@dataclass(frozen=True)
class Asked:
    """Which questions are put: of these sets in `folder`, `limit` of each, with so many shots drawn by the seed."""

    sets: tuple[str, ...]
    folder: Path
    shots: tuple[int, ...] = (0,)
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.sets:
            require(name in SETS, "--task", name, f"one of {', '.join(SETS)}", nearest(name, SETS))
        require(min(self.shots) >= 0, "--shots", min(self.shots), "numbers from 0", "use 0 for none")
        require(self.limit is None or self.limit > 0, "--limit", self.limit, "a number above 0", "leave it out for all")


@dataclass(frozen=True)
class Marks:
    """How the questions of a set were answered."""

    task: str
    shots: int
    questions: int
    left_out: int  # records that are no question
    fewer_shots: int  # prompts that lost shots, since they were longer than the context
    cut: int  # prompts that lost their beginning, too
    ties: int  # questions whose likeliest choice has an equal
    means: dict[str, Mean]
    perplexity: float | None = None  # of the word that is asked for

    def plain(self) -> dict[str, Any]:
        means = {name: mean.value for name, mean in self.means.items()}
        errors = {f"{name}_error": mean.error if self.questions > 1 else None for name, mean in self.means.items()}
        names = ("task", "shots", "questions", "left_out", "fewer_shots", "cut", "ties")
        word = {} if self.perplexity is None else {"perplexity": self.perplexity}
        return {name: getattr(self, name) for name in names} | means | errors | word


def examine(reader: Reader, asked: Asked) -> Iterator[tuple[Marks, list[Answer]]]:
    """The marks of each set for each number of shots, and the answers. Raises UserError for files that are no sets."""
    examiner = Examiner(reader.likelihood, reader.trained.tokenizer, reader.trained.model.settings.context)
    for name in asked.sets:
        own = SETS[name]
        rows = own.rows(asked.folder)
        pool = own.rows(asked.folder, pool=True).questions if own.pool and any(asked.shots) else rows.questions
        some = rows.questions[: asked.limit]
        for shots in asked.shots:
            draws = (np.random.default_rng((asked.seed, at)) for at in range(len(some)))
            prompts = (with_shots(one, pool, shots, rng) for one, rng in zip(some, draws, strict=True))
            answers = list(examiner.answers(zip(some, prompts, strict=True)))
            yield _marks(name, own, shots, len(rows.left_out), answers), answers


def _marks(name: str, own: QuestionSet, shots: int, left_out: int, answers: Sequence[Answer]) -> Marks:
    rights = [answer.word() if own.word else answer.rights() for answer in answers]
    means = {way: mean_of([each[way] for each in rights]) for way in rights[0]}
    losses = [-answer.choices[0].log_prob for answer in answers]
    return Marks(
        *(name, shots, len(answers), left_out),
        fewer_shots=sum(answer.shots < shots for answer in answers),
        cut=sum(answer.cut for answer in answers),
        ties=sum(answer.tie for answer in answers),
        means=means,
        perplexity=perplexity_of(float(np.mean(losses))) if own.word else None,
    )


def print_marks(
    checkpoint: Path, asked: Asked, *, mesh: MeshSettings, out: Path | None = None, as_json: bool = False
) -> None:
    """Prints a line for each set and number of shots, and writes every answer to `out`, a JSONL file."""
    reader = Reader(checkpoint, mesh, top=1)
    print(reader.about(), file=sys.stderr)
    found = []
    with clear_disk_errors(out or Path()), out.open("x", encoding="utf-8") if out else nullcontext() as lines:
        for marks, answers in examine(reader, asked):
            found.append(marks)
            if not as_json:
                print(shown(marks), flush=True)
            if lines:
                lines.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in records(marks, answers))
    if as_json:
        print(json.dumps([marks.plain() for marks in found], indent=2))


def shown(marks: Marks) -> str:
    each = (f"{name} {mean.value:.4f} \N{PLUS-MINUS SIGN} {mean.error:.4f}" for name, mean in marks.means.items())
    means = "  ".join(each)
    word = "" if marks.perplexity is None else f"  perplexity {marks.perplexity:.2f}"
    counts = {"left out": marks.left_out, "with fewer shots": marks.fewer_shots, "cut": marks.cut, "ties": marks.ties}
    told = "".join(f"  {count} {name}" for name, count in counts.items() if count)
    return f"{marks.task:12} {marks.shots:>2} shots  {marks.questions:>6,} questions  {means}{word}{told}"


def records(marks: Marks, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """A question's line of the JSONL file."""
    for number, answer in enumerate(answers):
        yield {
            "task": marks.task,
            "shots": answer.shots,
            "number": number,
            "context": answer.question.context,
            "choices": answer.question.choices,
            "gold": answer.question.gold,
            "log_probs": [choice.log_prob for choice in answer.choices],
            "tokens": [choice.tokens for choice in answer.choices],
            "unconditional": answer.bare,
            "cut": answer.cut,
        } | (answer.word() if SETS[marks.task].word else answer.rights())
