"""Sets of questions put to a checkpoint, for `lmjax evaluate --task`: marks, with standard errors, by shots.

In: a checkpoint, names of sets, the folder that holds them. Out: a line for each set and number of shots; on request a
JSONL file with every answer. Or the first prompt of each set, as the model reads it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lmjax.errors import UserError, nearest, require
from lmjax.evaluate.answers import Answer, Examiner
from lmjax.evaluate.likelihood import Likelihood
from lmjax.evaluate.means import Mean, mean_of
from lmjax.evaluate.open_answers import OpenAnswer, Writer
from lmjax.evaluate.questions import QuestionSet, Rows, spread
from lmjax.evaluate.sets import SETS
from lmjax.evaluate.stop_words import stop_word_ids
from lmjax.evaluate.validation import perplexity_of
from lmjax.files import new_file, write_json_lines
from lmjax.report.shots import Mark, write_shots
from lmjax.runs.evaluate import Reader
from lmjax.settings import MeshSettings

Answered = Answer | OpenAnswer


@dataclass(frozen=True)
class Asked:
    """Which questions are put: `limit` of each set in `folder`, evenly spread, with shots drawn by the seed.

    A prompt that is longer than the context loses shots, then its beginning; or, with "error", raises UserError.
    """

    sets: tuple[str, ...]
    folder: Path
    shots: tuple[int, ...] = (0,)
    limit: int | None = None
    seed: int = 0
    too_long: Literal["drop", "error"] = "drop"

    def __post_init__(self) -> None:
        for name in self.sets:
            require(name in SETS, "--task", name, f"one of {', '.join(SETS)}", nearest(name, SETS))
        require(self.seed >= 0, "--seed", self.seed, "a number from 0", "use another")
        require(min(self.shots) >= 0, "--shots", min(self.shots), "numbers from 0", "use 0 for none")
        require(self.limit is None or self.limit > 0, "--limit", self.limit, "a number above 0", "leave it out for all")

    def of(self, name: str) -> Put:
        """The set of that name. Raises UserError where its files are none."""
        own = SETS[name]
        rows = own.rows(self.folder)
        pool = own.rows(self.folder, pool=True) if own.pool and any(self.shots) else rows
        return Put(name, own, rows, pool, spread(rows.questions, self.limit), self.seed)


class Put(NamedTuple):
    """A set that is put to a model: its rows, those of its pool of shots, and the questions of them that are put."""

    name: str
    own: QuestionSet
    rows: Rows
    pool: Rows
    questions: Sequence[Any]
    seed: int

    def asked(self, shots: int) -> Iterator[tuple[Any, list[str]]]:
        """Each question with its prompts."""
        for number, question in enumerate(self.questions):
            rng = np.random.default_rng((self.seed, number))
            yield question, self.own.prompts(question, self.pool.questions, shots, rng)

    @property
    def in_pool(self) -> int:
        """The questions that another file, the pool, holds, too."""
        held = set() if self.pool is self.rows else {each.context for each in self.pool.questions}
        return sum(question.context in held for question in self.questions)


@dataclass(frozen=True)
class Marks:
    """How the questions of a set were answered."""

    task: str
    shots: int
    questions: int
    left_out: int  # records that are no question,
    pool_left_out: int  # and those of another file, the pool
    in_pool: int  # questions that the pool holds, too, and that are no shots of themselves
    fewer_shots: int  # prompts that lost shots, since they were longer than the context
    cut: int  # prompts that lost their beginning, too
    ties: int  # questions whose likeliest choice has an equal
    means: dict[str, Mean]
    groups: dict[str, dict[str, float]]  # of each group of questions their number and means
    perplexity: float | None = None  # of the word that is asked for
    guessed: float | None = None  # the accuracy of guessing, where there are choices
    fine_tuned: bool = False  # whether it is the model that was trained on the set

    def plain(self) -> dict[str, Any]:
        means = {name: mean.value for name, mean in self.means.items()}
        errors = {f"{name}_error": mean.error if self.questions > 1 else None for name, mean in self.means.items()}
        counts = ("left_out", "pool_left_out", "in_pool", "fewer_shots", "cut", "ties")
        optional = {"perplexity": self.perplexity, "groups": self.groups or None, "guessed": self.guessed}
        optional |= {"fine_tuned": True} if self.fine_tuned else {}
        names = {name: getattr(self, name) for name in ("task", "shots", "questions", *counts)}
        return names | means | errors | {name: value for name, value in optional.items() if value is not None}


def examine(reader: Reader, asked: Asked) -> Iterator[tuple[Marks, list[Answered]]]:
    """The marks of each set for each number of shots, and the answers.

    Raises UserError for files that are no sets, and for a prompt that is too long where that is an error.
    """
    for name in asked.sets:
        put = asked.of(name)
        examiner = examiner_of(reader, put.own)
        for shots in asked.shots:
            answers: list[Answered] = []
            for answer in examiner.answers(put.asked(shots)):
                _check_length(answer, put, shots, asked)
                answers.append(answer)
            yield _marks(put, shots, answers), answers


def examiner_of(reader: Reader, own: QuestionSet) -> Examiner | Writer:
    """What puts the questions of a set to the reader's model."""
    trained, tokenizer, model = reader.trained, reader.trained.tokenizer, reader.trained.model
    if own.writing is not None:
        return Writer(model, trained.params, tokenizer, own.writing)
    if not own.word:
        return Examiner(reader.likelihood, tokenizer, model.settings.context)
    stop_words = stop_word_ids(tokenizer)
    arguments = (model, trained.params, reader.mesh)
    likelihood = Likelihood(*arguments, entries=tokenizer.vocab_size, top=1 + len(stop_words))
    return Examiner(likelihood, tokenizer, model.settings.context, stop_words)


def _check_length(answer: Answered, put: Put, shots: int, asked: Asked) -> None:
    if asked.too_long == "error" and (answer.cut or answer.shots < shots):
        what = f"{put.name}, {shots} shots, the question {answer.question.context[:60]!r}"
        raise UserError(
            f"{what}: its prompt is longer than the model's context; ask for fewer shots, or --too-long drop"
        )


def _marks(put: Put, shots: int, answers: Sequence[Answered]) -> Marks:
    rights = [answer.marks() for answer in answers]
    groups: dict[str, list[dict[str, float]]] = {}
    for answer, own in zip(answers, rights, strict=True):
        groups.setdefault(answer.question.group, []).append(own)
    losses = [answer.loss for answer in answers if answer.loss is not None]
    guessed = [answer.guessed for answer in answers if answer.guessed is not None]
    return Marks(
        *(put.name, shots, len(answers), len(put.rows.left_out)),
        pool_left_out=0 if put.pool is put.rows else len(put.pool.left_out),
        in_pool=put.in_pool,
        fewer_shots=sum(answer.shots < shots for answer in answers),
        cut=sum(answer.cut for answer in answers),
        ties=sum(answer.tie for answer in answers),
        means=_means(rights),
        groups={name: _group(own) for name, own in groups.items() if name},
        perplexity=perplexity_of(float(np.mean(losses))) if losses else None,
        guessed=float(np.mean(guessed)) if guessed else None,
    )


def _means(rights: Sequence[dict[str, float]]) -> dict[str, Mean]:
    return {way: mean_of([each[way] for each in rights]) for way in rights[0]}


def _group(rights: Sequence[dict[str, float]]) -> dict[str, float]:
    return {"questions": len(rights)} | {way: mean.value for way, mean in _means(rights).items()}


def print_marks(
    checkpoint: Path,
    asked: Asked,
    *,
    mesh: MeshSettings,
    fine_tuned: Path | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    as_json: bool = False,
) -> None:
    """Prints a line for each set and number of shots, and writes every answer to `out`, a JSONL file.

    `fine_tuned` is a model that was trained on the sets: it is asked without shots, and stands beside the other. `plot`
    is a PNG file of both.
    """
    found = []
    with new_file(out) as lines:
        for marks, answers in _both(checkpoint, fine_tuned, asked, mesh):
            found.append(marks)
            if not as_json:
                print(shown(marks), flush=True)
            write_json_lines(lines, records(marks, answers))
    if as_json:
        print(json.dumps([marks.plain() for marks in found], indent=2))
    if plot is not None:
        write_shots(plot, [drawn(marks) for marks in found])


def _both(
    checkpoint: Path, fine_tuned: Path | None, asked: Asked, mesh: MeshSettings
) -> Iterator[tuple[Marks, list[Answered]]]:
    reader = Reader(checkpoint, mesh)
    print(reader.about(), file=sys.stderr)
    yield from examine(reader, asked)
    if fine_tuned is not None:
        reader = Reader(fine_tuned, mesh)
        print(f"fine-tuned: {reader.about()}", file=sys.stderr)
        for marks, answers in examine(reader, replace(asked, shots=(0,))):
            yield replace(marks, fine_tuned=True), answers


def drawn(marks: Marks) -> Mark:
    """What the plot has of marks: the first measure of the set."""
    measure, mean = next(iter(marks.means.items()))
    place = (marks.task, measure.replace("_", " "), marks.shots)
    return Mark(*place, mean.value, mean.error, marks.guessed, marks.fine_tuned)


def print_prompts(checkpoint: Path, asked: Asked, *, mesh: MeshSettings) -> None:
    """Prints, for each set and number of shots, the first prompt as the model reads it, and what may follow it."""
    reader = Reader(checkpoint, mesh)
    for name in asked.sets:
        put = asked.of(name)
        examiner = examiner_of(reader, put.own)
        for shots in asked.shots:
            question, prompts = next(put.asked(shots))
            (answer,) = examiner.answers([(question, prompts)])
            _check_length(answer, put, shots, asked)
            cut = ", of which the model reads the end" if answer.cut else ""
            print(f"{name}, {answer.shots} shots{cut}:\n{prompts[shots - answer.shots]}")
            after = {name: value for name, value in question.record().items() if name != "context"}
            print(json.dumps(after, ensure_ascii=False), end="\n\n")


def shown(marks: Marks) -> str:
    """A line of the table: marks with their standard errors, and counts of what was unusual."""
    each = (f"{name} {mean.value:.4f} \N{PLUS-MINUS SIGN} {mean.error:.4f}" for name, mean in marks.means.items())
    means = "  ".join(each)
    word = "" if marks.perplexity is None else f"  perplexity {marks.perplexity:.2f}"
    counts = {
        "left out": marks.left_out,
        "left out of the pool": marks.pool_left_out,
        "in the pool, too": marks.in_pool,
        "with fewer shots": marks.fewer_shots,
        "cut": marks.cut,
        "ties": marks.ties,
    }
    unusual = "".join(f"  {count} {name}" for name, count in counts.items() if count)
    shots = "fine-tuned" if marks.fine_tuned else f"{marks.shots:>4} shots"
    return f"{marks.task:20} {shots:10}  {marks.questions:>6,} questions  {means}{word}{unusual}"


def records(marks: Marks, answers: Sequence[Answered]) -> Iterator[dict[str, Any]]:
    """A question's line of the JSONL file; "shots_left" is how many of its shots the context holds."""
    for number, answer in enumerate(answers):
        place = {"task": marks.task, "shots": marks.shots, "number": number, "group": answer.question.group}
        place |= {"fine_tuned": True} if marks.fine_tuned else {}
        yield place | answer.record() | {"shots_left": answer.shots, "cut": answer.cut} | answer.marks()
