"""What fine-tuning tasks on labelled examples share: sources, labels, the frame of a text, and metrics of examples.

A task says how its examples become rows, which head reads them, and what is predicted. An example may have several
rows, such as windows of a long text: `answers` merges what was predicted of them.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from lmjax.data.batch import Batch
from lmjax.data.buckets import BucketLoader, RaggedLengths, evaluation_batches
from lmjax.data.frames import Frame, decoder_frame, encoder_frame
from lmjax.data.labelled import Examples, Labelled, UnfitExampleError
from lmjax.data.labelled_sets import read_examples
from lmjax.data.loader import RowLoader
from lmjax.errors import require
from lmjax.evaluate.samples import EvaluationLines
from lmjax.evaluate.validation import Sums, added_up, values_of_sources
from lmjax.fields import Settings, placed
from lmjax.model.families import model_of
from lmjax.model.heads import TRUNK, TaskModel
from lmjax.optim.train_state import TrainState
from lmjax.parallel.placement import place_batch
from lmjax.settings import ModelSettings
from lmjax.settings.labelled import LabelledSettings
from lmjax.settings.stage import TrainingStage
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Evaluate, Session, Task, TaskData, TaskRun
from lmjax.training.loop import Values

NEW_TOKENS = 3  # Start, Delimiter and Extract, behind the table of a decoder (Radford et al. 2018, section 3.3)

Predictions = dict[str, np.ndarray]  # [R, ...] of all rows


@dataclass(frozen=True)
class LabelledTask(Task, Settings):
    """A task on labelled examples. Subclasses say what is learned of them.

    labels: the names of the classes or tags, in the order of the head's outputs; () takes those of the training data.
    """

    trunk: ClassVar[tuple[str, ...]] = (TRUNK,)
    filled: ClassVar[tuple[str, ...]] = ("labels",)
    example_type: ClassVar[type] = object  # what the form of a source gives
    framed: ClassVar[bool] = True  # whether a decoder reads its rows between tokens of their own

    train: tuple[LabelledSettings, ...] = ()
    validation: tuple[LabelledSettings, ...] = ()
    labels: tuple[str, ...] = ()

    @abstractmethod
    def labels_of(self, examples: Sequence[Any]) -> tuple[str, ...]:
        """The labels that occur in examples; () for a task without classes."""

    @abstractmethod
    def rows_of(self, examples: Sequence[Any], resolved: ResolvedStage) -> RaggedLengths:
        """The rows of examples. Raises UserError, with file and line, for one that has none."""

    @abstractmethod
    def head(self, resolved: ResolvedStage) -> tuple[int, Any]:
        """The outputs of `TaskModel`, and what it reads."""

    @abstractmethod
    def predict(self, model: TaskModel, params: Any, batch: Batch) -> dict[str, Any]:
        """What is predicted of each row, [B, ...] each, computed on the devices."""

    @abstractmethod
    def answers(self, predictions: Predictions, rows: Any, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """The prediction of each example, as JSON has it, from those of its rows."""

    @abstractmethod
    def measured(self, answers: Sequence[dict[str, Any]], examples: Sequence[Any]) -> Values:
        """The metrics of labelled examples, by the names in `metrics`."""

    def check_examples(self, examples: Sequence[Any]) -> None:
        """Raises UserError, with file and line, for an example from which nothing can be learned or measured."""

    @property
    def inputs(self) -> str:
        """The form of files that are to be predicted, in lmjax/data/labelled_sets, where none is named."""
        return "records"

    def example(self, texts: Sequence[str], where: str) -> Any:
        """An example without a label, of texts as a person gives them. Raises UserError for another number of texts."""
        require(1 <= len(texts) <= 2, where, list(texts), "one text, or two", "leave the others out")
        return Labelled(tuple(texts), None, where)

    def unlabelled(self, example: Any) -> Any:
        """The example without its label."""
        return dataclasses.replace(example, label=None)

    def table(self, answer: dict[str, Any]) -> list[tuple[str, ...]]:
        """An answer as a table of its heads and rows, the likeliest first."""
        shares = answer.get("probabilities")
        if isinstance(shares, dict):
            ranked = sorted(shares.items(), key=lambda item: -item[1])
            return [("label", "probability"), *((name, f"{share:.1%}") for name, share in ranked)]
        return [("what", "value"), *((name, f"{value}") for name, value in answer.items())]

    def warnings(self, train: Sequence[Any], validation: Sequence[Any]) -> list[str]:
        """What a user should know of the data before training."""
        return []

    def prepared(self) -> LabelledTask:
        """The same task, whose labels are those of its training data unless it names them. Raises UserError."""
        if self.labels:
            return self
        found = [each for source in self._read("train") for each in source.items]
        return dataclasses.replace(self, labels=self.labels_of(found))

    def adapted(self, model: ModelSettings, rows: int) -> ModelSettings:
        one_stack, fix = model.encoder_layers is None, "use the text-to-text task of encoder-decoders"
        require(one_stack, "start", "an encoder-decoder", "a checkpoint of an encoder or a decoder", fix)
        learned = model.positions.kind == "learned"
        context = max(model.context, rows) if learned else model.context
        vocabulary = model.vocab_size and model.vocab_size + self.added_rows(model)
        return dataclasses.replace(model, context=context, vocab_size=vocabulary)

    def added_rows(self, model: ModelSettings) -> int:
        return NEW_TOKENS if self.framed and model.attention.causal else 0

    def frame(self, resolved: ResolvedStage) -> Frame:
        """The tokens around a text. Raises UserError where an encoder's tokenizer has none."""
        model = resolved.model
        if model.attention.causal:
            return decoder_frame((model.vocab_size or 0) - NEW_TOKENS)
        assert resolved.tokenizer is not None
        return encoder_frame(resolved.tokenizer)

    def model(self, resolved: ResolvedStage, platform: str) -> TaskModel:
        outputs, reads = self.head(resolved)
        return TaskModel(model_of(resolved.model, resolved.settings.compute, platform), outputs, reads)

    def initial(self, model: TaskModel, language_model: Any, rng: jax.Array) -> Any:
        return model.on_trunk(language_model, rng)

    def open(self, resolved: ResolvedStage, session: Session) -> TaskData:
        sources = {field: self._read(field) for field in ("train", "validation")}
        for field, read in sources.items():
            for settings, source in zip(getattr(self, field), read, strict=True):
                if settings.on_bad_record == "skip":
                    self._leave_unfit_out(source, resolved)
        for field, read in sources.items():
            for number, source in enumerate(read):
                for reason, count in source.skipped.items():
                    session.display.say(f"task.{field}[{number}]: {count:,} records skipped: {reason}")
        train, validation = ([source.items for source in read] for read in sources.values())
        self.check_examples([*_joined(train), *_joined(validation)])
        for line in self.warnings(_joined(train), _joined(validation)):
            session.display.say(f"warning: {line}")
        rows = [self.rows_of(items, resolved) for items in train]

        def shares(loader: RowLoader | BucketLoader, steps: int) -> list[str]:
            pairs = zip(train, rows, strict=True)
            counts = ", ".join(f"{len(items):,} examples in {len(own):,} rows" for items, own in pairs)
            lines = [f"{counts}; {max(loader.epochs_at(steps)):.2f} epochs"]
            return [*lines, loader.described()] if isinstance(loader, BucketLoader) else lines

        return TaskData(
            train=rows,
            weights=[None] * len(rows),
            validation=[self.rows_of(items, resolved) for items in validation],
            names=source_names(self.validation),
            epoch_rows=sum(map(len, rows)),
            shares=shares,
            examples=validation,
        )

    def _leave_unfit_out(self, source: Examples, resolved: ResolvedStage) -> None:
        """Moves the examples that have no rows to those that are skipped. Raises UserError where none is left."""
        try:
            self.rows_of(source.items, resolved)
        except UnfitExampleError as error:
            kept, last = [], error
            for each in source.items:
                try:
                    self.rows_of([each], resolved)
                    kept.append(each)
                except UnfitExampleError as unfit:
                    source.skipped[unfit.reason], last = source.skipped.get(unfit.reason, 0) + 1, unfit
            if not kept:
                raise last from None
            source.items = kept

    def _read(self, field: Literal["train", "validation"]) -> list[Examples]:
        sources, read = getattr(self, field), []
        # The task of a model that was imported has no sources: it predicts, and can be given some to train on.
        require(field != "train" or bool(sources), "task.train", (), "at least one source", "add a LabelledSettings")
        for number, source in enumerate(sources):
            with placed(f"task.{field}[{number}]"):
                found = read_examples(source)
                kinds = sorted({type(each).__name__ for each in found.items if not isinstance(each, self.example_type)})
                expected = f"a form of {self.example_type.__name__}, it gives {' and '.join(kinds)}"
                require(not kinds, "form", source.form, expected, "name the form of the set, or use another task")
                read.append(found)
        return read

    def evaluation(self, run: TaskRun) -> Evaluate:
        """The loss, and the metrics of whole examples; of several sources those of each, too."""
        stage = run.resolved.of(TrainingStage)
        most, fix = stage.evaluation.batches, "leave it out, and give validation sources begin and end"
        require(most is None, "evaluation.batches", most, "none: a metric is one of all examples", fix)
        predictor = Predictor(self, run)

        def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
            found = []
            for rows, examples in zip(run.data.validation, run.data.examples, strict=True):
                predictions, sums = predictor.read(state.params, rows)
                answers = self.answers(predictions, rows, examples)
                found.append((sums, answers, examples))
            return values_of_sources(run.data.names, found, self._values) if found else {}

        return evaluate

    def _values(self, found: Sequence[tuple[Sums, Sequence[dict[str, Any]], Sequence[Any]]]) -> Values:
        answers = [answer for _, own, _ in found for answer in own]
        measured = self.measured(answers, [example for *_, own in found for example in own])
        metrics = {f"validation_{name}": value for name, value in measured.items()}
        return self.summary(added_up(sums for sums, *_ in found)) | metrics


class Predictor:
    """Reads rows in buckets: what a task predicts of them, and its loss, by one compiled function a bucket."""

    def __init__(self, task: LabelledTask, run: TaskRun) -> None:
        self._run, model = run, run.program.model
        loss_fn = task.loss(model, run.resolved)

        def read(params: Any, batch: Batch) -> tuple[Sums, dict[str, Any]]:
            loss, metrics = loss_fn(params, batch, None)
            return {"loss": loss} | metrics, task.predict(model, params, batch)

        self._read = run.compiled(read)
        abstract = jax.eval_shape(read, run.program.abstract.params, dict(run.program.batch))
        self._shapes = {name: leaf.shape[1:] for name, leaf in abstract[1].items()}

    def read(self, params: Any, rows: Any) -> tuple[Predictions, Sums]:
        """The predictions of all rows, [R, ...], padded with 0 to the full row's columns; and the sums of the loss.

        Raises Interrupted where a stop is asked for.
        """
        out: Predictions = {}
        return out, added_up(self._batches(params, rows, out))

    def _batches(self, params: Any, rows: Any, out: Predictions) -> Iterator[Sums]:
        run, loading = self._run, self._run.stage.loading
        length, size, spec = loading.sequence_length, loading.batch_size, run.program.spec
        for numbers, batch in evaluation_batches(rows, run.stage.buckets, length, size, spec):
            run.session.stop.check()
            placed = place_batch(_part_of(batch), size, run.mesh, run.program.axes)
            sums, predicted = jax.device_get(self._read(params, placed))
            for name, array in predicted.items():
                whole = out.setdefault(name, np.zeros((len(rows), *self._shapes[name]), array.dtype))
                inside: Any = (numbers, *(slice(0, columns) for columns in array.shape[1:]))
                whole[inside] = array[: len(numbers)]
            yield sums


def _part_of(batch: Batch) -> Any:
    return lambda rows: {name: array[rows] for name, array in batch.items()}


def source_names(sources: Sequence[LabelledSettings]) -> list[str]:
    """A name for each source: its file's, with a number where several are called the same."""
    stems = [source.path.rsplit("/", 1)[-1].split(".")[0] for source in sources]
    return [f"{stem}_{number}" if stems.count(stem) > 1 else stem for number, stem in enumerate(stems)]


def _joined(parts: Sequence[Sequence[Any]]) -> list[Any]:
    return [each for part in parts for each in part]
