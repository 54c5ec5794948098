"""Text to text: an encoder-decoder writes the label, the answer or any other text for its input (T5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax

from lmjax.data.batch import BatchSpec
from lmjax.data.labelled import BadExampleError
from lmjax.data.labelled_sets import read_examples
from lmjax.data.seq2seq_rows import seq2seq_fields
from lmjax.data.text_to_text import NO_ANSWER, Pair, as_text, encoded
from lmjax.errors import require
from lmjax.evaluate.samples import EvaluationLines
from lmjax.evaluate.text_marks import mark_squad
from lmjax.evaluate.validation import Sums, values_of_sources
from lmjax.fields import PositiveInt, Settings, placed
from lmjax.generate.beam import BeamSettings, searched
from lmjax.generate.decode import continued
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.transformer import Transformer
from lmjax.objective.next_token import language_loss
from lmjax.objective.weighted import LossFunction
from lmjax.optim.train_state import TrainState
from lmjax.settings import Finetune, ModelSettings
from lmjax.settings.text_to_text import TextToTextSettings
from lmjax.tasks.cross_entropy import loss_and_accuracy, terms_of
from lmjax.tasks.labelled import source_names
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Evaluate, Session, Task, TaskData, TaskRun
from lmjax.training.loop import Values

INPUTS_AT_ONCE = 64  # for which texts are written together


@dataclass(frozen=True)
class TextToText(Task, Settings):
    """Learns the targets of examples. Rows hold several examples; rows.sequence_length is that of the inputs."""

    metrics: ClassVar[tuple[str, ...] | None] = ("exact_match", "f1")

    train: tuple[TextToTextSettings, ...] = ()
    validation: tuple[TextToTextSettings, ...] = ()
    target_length: PositiveInt = 32  # tokens of the targets of a row, and the most that are written
    beams: PositiveInt = 1  # of the search for what is written; 1 takes the likeliest token each time
    length_penalty: float = 1.0  # of a search with beams

    def check(self) -> None:
        require(bool(self.train), "train", (), "at least one source", "add a TextToTextSettings")

    def adapted(self, model: ModelSettings, rows: int) -> ModelSettings:
        both, fix = model.encoder_layers is not None, "use a checkpoint of an encoder-decoder, or another task"
        require(both, "start", "a model of one stack", "an encoder-decoder, which reads and writes text", fix)
        return model

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        return seq2seq_fields(resolved.of(Finetune).rows.batch_size, self._shape(resolved))

    def open(self, resolved: ResolvedStage, session: Session) -> TaskData:
        stage, tokenizer = resolved.of(Finetune), resolved.tokenizer
        assert tokenizer is not None
        fix = "leave it out: rows are packed"
        require(not stage.rows.buckets, "rows.buckets", stage.rows.buckets, "none for text to text", fix)
        train, validation = (self._read(field, session) for field in ("train", "validation"))
        rows = []
        for number, pairs in enumerate((*train, *validation)):
            tokens = encoded(pairs, tokenizer, self._shape(resolved))
            rows.append(tokens.rows(self._shape(resolved)))
            if tokens.cut:
                field = f"train[{number}]" if number < len(train) else f"validation[{number - len(train)}]"
                session.display.say(f"task.{field}: {tokens.cut:,} texts were cut to rows.sequence_length")
        learned = sum(map(len, train))
        own = rows[: len(train)]
        return TaskData(
            train=own,
            weights=[None] * len(own),
            validation=rows[len(train) :],
            names=source_names([source.source for source in self.validation]),
            epoch_rows=sum(map(len, own)),
            shares=lambda loader, steps: [f"{learned:,} examples in {sum(map(len, own)):,} rows"],
            examples=validation,
        )

    def loss(self, model: Transformer, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        return language_loss(model, **terms_of(resolved))

    def summary(self, sums: Sums) -> Values:
        return loss_and_accuracy(sums)

    def evaluation(self, run: TaskRun) -> Evaluate:
        """The loss, and how the texts that are written for the inputs compare with the targets."""
        loss, tokenizer = Task.evaluation(self, run), run.resolved.tokenizer
        assert tokenizer is not None
        if jax.process_count() > 1:
            run.session.display.say(
                "exact match and F1 are measured by one process alone: of several, only the loss is"
            )
            return loss
        sources = [
            ([text.tolist() for text in encoded(pairs, tokenizer, self._shape(run.resolved)).inputs], pairs)
            for pairs in run.data.examples
        ]

        def evaluate(state: TrainState, done: int, lines: EvaluationLines) -> Values:
            marks = [self._marks(run, state.params, *source) for source in sources]
            return loss(state, done, lines) | values_of_sources(run.data.names, marks, _means)

        return evaluate

    def _marks(
        self, run: TaskRun, params: Any, ids: Sequence[list[int]], pairs: Sequence[Pair]
    ) -> list[dict[str, float]]:
        """Of each example, how what is written for its inputs, whose tokens are `ids`, compares with its targets."""
        texts: dict[int, str] = {}
        for numbers in _batches(ids):
            run.session.stop.check()
            written = self._written(run, params, [ids[number] for number in numbers])
            texts |= dict(zip(numbers, written, strict=True))
        return [marked(texts[number], pair.targets) for number, pair in enumerate(pairs)]

    def _written(self, run: TaskRun, params: Any, ids: list[list[int]]) -> list[str]:
        model, tokenizer, most = run.program.model, run.resolved.tokenizer, self.target_length
        assert tokenizer is not None
        if self.beams > 1:
            settings = BeamSettings(self.beams, most, self.length_penalty)
            return [best[0].text for best in searched(model, params, tokenizer, ids, settings)]
        greedy = SamplingSettings(max_tokens=most, temperature=0.0)
        return [one.text for one in continued(model, params, tokenizer, ids, greedy)]

    def _read(self, field: Literal["train", "validation"], session: Session) -> list[list[Pair]]:
        found = []
        for number, source in enumerate(getattr(self, field)):
            with placed(f"task.{field}[{number}]"):
                examples = read_examples(source.source)
                pairs, skipped = _pairs(examples.items, source)
            for reason, count in (examples.skipped | skipped).items():
                session.display.say(f"task.{field}[{number}]: {count:,} records skipped: {reason}")
            found.append(pairs)
        return found

    def _shape(self, resolved: ResolvedStage) -> tuple[int, int]:
        return resolved.of(Finetune).rows.sequence_length, self.target_length


def _batches(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The numbers of inputs that are read together, the longest first; the last of several is filled up with one."""
    order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
    for begin in range(0, len(order), INPUTS_AT_ONCE):
        numbers = order[begin : begin + INPUTS_AT_ONCE]
        yield numbers + numbers[-1:] * (min(INPUTS_AT_ONCE, len(order)) - len(numbers))


def marked(text: str, targets: Sequence[str]) -> dict[str, float]:
    """Whether a text is one of the targets but for blanks around it, and the F1 of their words as SQuAD counts it."""
    exact = float(text.strip() in {target.strip() for target in targets})
    answers = [target for target in targets if target != NO_ANSWER]
    return {"validation_exact_match": exact, "validation_f1": mark_squad(text, answers)["f1"]}


def _means(sources: Sequence[Sequence[dict[str, float]]]) -> Values:
    """The mean of each mark over the examples of all sources."""
    marks = [mark for source in sources for mark in source]
    names = marks[0] if marks else {}
    return {name: sum(mark[name] for mark in marks) / len(marks) for name in names}


def _pairs(examples: Sequence[Any], source: TextToTextSettings) -> tuple[list[Pair], dict[str, int]]:
    """The examples as texts, and how many were skipped for each reason. Raises BadExampleError unless they may be."""
    pairs: list[Pair] = []
    skipped: dict[str, int] = {}
    for example in examples:
        try:
            pairs.append(as_text(example, source))
        except BadExampleError as error:
            if source.source.on_bad_record == "error":
                raise
            skipped[error.reason] = skipped.get(error.reason, 0) + 1
    return pairs, skipped
