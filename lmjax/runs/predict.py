"""What a fine-tuned task says of texts, for `lmjax predict`: lines of JSON for a file, tables for texts.

In: a checkpoint of a fine-tuning stage, and a file or texts. Out: classes, scores, choices, answers or tags, a line for
each example in the order of the file, written as they are predicted. A file is read twice: bad input is refused before
anything is predicted.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmjax.checkpoints.initial import InitialCheckpoint, open_initial
from lmjax.data.labelled import BadExampleError
from lmjax.data.labelled_sets import FORMS
from lmjax.data.open_files import suffix_of, utf8_of
from lmjax.errors import FieldError, UserError, field_error, nearest, require
from lmjax.files import decode_text
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.start_jax import prepare_jax
from lmjax.settings import Finetune, MeshSettings
from lmjax.settings.labelled import LabelledSettings
from lmjax.tasks.labelled import LabelledTask, Predictor
from lmjax.tasks.registry import MODULES, task_named
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Session, TaskData, TaskRun
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import read_metrics
from lmjax.training.stop import StopRequest

AT_ONCE = 512  # examples
THRESHOLD, TUNED = "null_threshold", "tuned"


@dataclass(frozen=True)
class FineTuned:
    """A task with trained parameters."""

    task: LabelledTask
    run: TaskRun
    params: Any

    def answers(self, examples: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """The answer to each example, in their order.

        Raises UserError, with file and line, for one without rows, and for parameters that predict no numbers.
        """
        predictor, remaining = Predictor(self.task, self.run), iter(examples)
        while some := list(itertools.islice(remaining, AT_ONCE)):
            rows = self.task.rows_of(some, self.run.resolved)
            predictions, _ = predictor.read(self.params, rows)
            for name, array in predictions.items():
                numbers, fix = not np.isnan(array).any(), "training diverged: take an older checkpoint"
                require(numbers, f"the checkpoint's {name} of {some[0].where}", math.nan, "numbers", fix)
            yield from self.task.answers(predictions, rows, some)


def open_task(checkpoint: Path | str, fields: Mapping[str, Any] | None = None, field: str = "CKPT") -> FineTuned:
    """The task of a checkpoint, with other values of some of its fields; `null_threshold` may be TUNED.

    Raises UserError for a checkpoint of another stage, or of a task that is not lmjax's own.
    """
    prepare_jax()
    with tempfile.TemporaryDirectory() as folder:
        start = open_initial(str(checkpoint), Path(folder), field)
        task = _task_of(start, checkpoint, field)
        known = {each.name for each in dataclasses.fields(task)}
        for name in fields or {}:
            option = f"--{name.replace('_', '-')}"
            expected = f"an option that the checkpoint's task, {type(task).__name__}, has"
            require(name in known, option, (fields or {})[name], expected, "leave it out")
        task = dataclasses.replace(task, **_tuned(start, fields or {}))
        mesh = make_mesh(MeshSettings(), jax.devices()[:1])
        resolved = _resolved(start, task, Path(folder))
        program = task.build(resolved, mesh, 1)
        params = start.parameters(program.abstract.params)
    session = Session(StopRequest(), ProgressDisplay(silent=True))
    run = TaskRun(resolved, mesh, program, (), TaskData([], []), cast(Any, None), session)
    return FineTuned(task, run, params)


def _task_of(start: InitialCheckpoint, checkpoint: Path | str, field: str) -> LabelledTask:
    recipe, own = start.recipe, ", ".join(MODULES)
    other = "lmjax score scores answers with a reward model" if recipe.scores else "lmjax generate continues texts"
    expected = f"a checkpoint of a fine-tuned task ({own}), found one of the stage {type(recipe).__name__}"
    require(hasattr(recipe, "task"), field, str(checkpoint), expected, f"name one; {other}")
    task = task_named(cast(Finetune, recipe).task, f"{field} = {str(checkpoint)!r}: its task")
    assert isinstance(task, LabelledTask)
    return task


def _tuned(start: InitialCheckpoint, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with the null threshold that the checkpoint's own evaluation found best where it is TUNED."""
    if fields.get(THRESHOLD) != TUNED:
        return dict(fields)
    name, step = "validation_best_f1_threshold", start.checkpoint.step
    lines = read_metrics(start.checkpoint.path.parents[2]) if len(start.checkpoint.path.parents) > 2 else []
    found = next((line[name] for line in lines if line["step"] == step and name in line), None)
    expected = f"a checkpoint in its workdir whose step, {step}, was evaluated on questions that may have no answer"
    require(found is not None, "--null-threshold", TUNED, expected, "give a number")
    return {**fields, THRESHOLD: float(cast(float, found))}


def _resolved(start: InitialCheckpoint, task: LabelledTask, folder: Path) -> ResolvedStage:
    recipe = cast(Finetune, start.recipe)
    model, length = start.settings, recipe.rows.sequence_length
    # The kernel that was named for training may not run here; rows of fewer columns cost less.
    attention = dataclasses.replace(model.attention, implementation="auto")
    edges = recipe.rows.buckets or tuple(edge for edge in (length // 4, length // 2) if edge > 4)
    settings = dataclasses.replace(
        recipe,
        task=task,
        model=dataclasses.replace(model, attention=attention),
        compute=dataclasses.replace(recipe.compute, remat="none"),
        rows=dataclasses.replace(recipe.rows, buckets=edges),
        mesh=MeshSettings(),
    )
    entries, tokenizer = start.tokenizer.vocab_size, start.tokenizer
    return ResolvedStage(recipe, settings, folder, entries=entries, tokenizer=tokenizer)


def examples_of(
    task: LabelledTask,
    path: Path,
    form: str = "",
    fields: tuple[str, ...] = (),
    bad: list[BadExampleError] | None = None,
) -> Iterator:
    """The examples of a file without their labels: a line each of plain text, else as the reader `form` reads it.

    `fields` are the columns of the texts; () those of the task's training data. Bad records are added to `bad`; where
    that is None, the first is raised.
    """
    where = str(path)
    if not form and suffix_of(path) == ".txt":
        for number, line in enumerate(decode_text(bytes(utf8_of(path)[:]), path).split("\n"), start=1):
            if line.strip():
                yield task.example((line.removesuffix("\r"),), f"{where}:{number}")
        return
    name = form or task.inputs
    require(name in FORMS, "--form", form, "a known form", nearest(name, FORMS))
    named = not fields or name == "records"
    require(named, "--fields", ",".join(fields), f"none, as the form {name!r} knows its columns", "leave it out")
    own = task.train[0].fields if task.train and not form else ()
    settings = LabelledSettings(where, form=form, fields=fields or own)
    for each in FORMS[name](path, settings):
        if isinstance(each, task.example_type):
            yield task.unlabelled(each)
        elif not isinstance(each, BadExampleError):
            expected = f"a form of {task.example_type.__name__}, which the checkpoint's task reads"
            raise field_error("--form", name, expected, f"leave it out, which is {task.inputs}")
        elif bad is None:
            raise UserError(f"{str(each).rpartition('; fix it')[0]}; fix it, or give --skip-bad")
        else:
            bad.append(each)


def print_predictions(
    tuned: FineTuned, path: Path, *, form: str = "", fields: tuple[str, ...] = (), skip_bad: bool = False
) -> None:
    """Prints a line of JSON for each example of a file. Progress, and what is skipped, go to standard error.

    Raises UserError for bad input, before anything is printed.
    """
    bad: list[BadExampleError] | None = [] if skip_bad else None
    try:
        total = sum(1 for _ in examples_of(tuned.task, path, form, fields, bad))
    except FieldError as error:
        raise FieldError(f"--{error.field.removeprefix('--')}", error.rest) from None
    require(total > 0, "--input", str(path), "a file with examples", "name another")
    for skipped in bad or ():
        print(f"skipped: {str(skipped).rpartition('; fix it')[0]}", file=sys.stderr)
    display = ProgressDisplay(console=Console(stderr=True))
    examples, places = itertools.tee(examples_of(tuned.task, path, form, fields, [] if skip_bad else None))
    with display.counting("predicting") as show:
        for number, (answer, example) in enumerate(zip(tuned.answers(examples), places, strict=True), start=1):
            print(json.dumps({"where": example.where} | answer, ensure_ascii=False))
            if number % AT_ONCE == 0 or number == total:
                sys.stdout.flush()
                show(number, total)


def print_tables(tuned: FineTuned, texts: Sequence[str], *, as_json: bool = False) -> None:
    """Prints what is predicted of one example of these texts. Raises UserError where the task takes others."""
    example = tuned.task.example(texts, "--text")
    (answer,) = tuned.answers([example])
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    heads, *lines = tuned.task.table(answer)
    table = Table(*heads, header_style="bold", pad_edge=False)
    for line in lines:
        table.add_row(*(Text(_visible(cell)) for cell in line))
    Console().print(table)


def _visible(cell: str) -> str:
    return cell if cell.isprintable() else repr(cell)[1:-1]
