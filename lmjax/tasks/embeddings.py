"""Texts as vectors whose cosine is their similarity: the mean over real tokens, of length 1.

Reimers and Gurevych 2019, section 3: both texts of an example are read by the same model, and the cosine of their
vectors learns the score by its squared error. There is no head: the trunk is all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import numpy as np

from lmjax.data.batch import LABEL_WEIGHTS, LABELS, Batch, BatchSpec
from lmjax.data.frames import Cut
from lmjax.data.labelled import Labelled
from lmjax.data.labelled_rows import require_labels, require_pairs, scores_of, single_rows
from lmjax.data.ragged_rows import RaggedRows, ragged_fields
from lmjax.errors import require
from lmjax.evaluate.classes import score_measures
from lmjax.fields import above
from lmjax.model.families import model_of
from lmjax.model.transformer import Transformer
from lmjax.objective.labelled import embedding_loss, embeddings
from lmjax.objective.weighted import LossFunction
from lmjax.settings import Finetune
from lmjax.tasks.labelled import LabelledTask, Predictions
from lmjax.tasks.resolved import ResolvedStage
from lmjax.training.loop import Values

VECTORS = "vectors"


@dataclass(frozen=True)
class Embeddings(LabelledTask):
    """The similarity of two texts as the cosine of their vectors. A decoder reads the tokens of a text alone."""

    trunk: ClassVar[tuple[str, ...]] = ()
    framed: ClassVar[bool] = False
    example_type: ClassVar[type] = Labelled
    metrics: ClassVar[tuple[str, ...] | None] = ("pearson", "spearman")

    highest: Annotated[float, above(0)] = 5.0  # the score of texts that mean the same, whose cosine is to be 1
    long: Cut = "head"  # what is kept of a text that is too long

    def check(self) -> None:
        require(not self.labels, "labels", self.labels, "none, as scores have no classes", "leave it out")

    def labels_of(self, examples: Sequence[Labelled]) -> tuple[str, ...]:
        return ()

    def prepared(self) -> LabelledTask:
        return self

    def check_examples(self, examples: Sequence[Labelled]) -> None:
        require_pairs(examples)
        require_labels(examples)

    def spec(self, resolved: ResolvedStage) -> BatchSpec:
        return ragged_fields(resolved.of(Finetune).rows, {LABELS: "float32", LABEL_WEIGHTS: "float32"}, options=2)

    def rows_of(self, examples: Sequence[Labelled], resolved: ResolvedStage) -> RaggedRows:
        tokenizer, length = resolved.tokenizer, resolved.of(Finetune).rows.sequence_length
        assert tokenizer is not None
        frame = None if resolved.model.attention.causal else self.frame(resolved)
        found, options = single_rows(examples, tokenizer, frame, length, self.long)
        labelled = np.array([each.label is not None for each in examples])
        labels = np.zeros(len(examples), np.float32)
        labels[labelled] = scores_of([each for each in examples if each.label is not None])
        fields = {LABELS: labels, LABEL_WEIGHTS: labelled.astype(np.float32)}
        types = resolved.model.positions.segment_types
        return RaggedRows(found.texts, length, fields, options=options, types=types)

    def head(self, resolved: ResolvedStage) -> tuple[int, Any]:
        return 0, "mean"

    def model(self, resolved: ResolvedStage, platform: str) -> Any:
        return model_of(resolved.model, resolved.settings.compute, platform)

    def initial(self, model: Any, language_model: Any, rng: jax.Array) -> Any:
        return language_model

    def loss(self, model: Any, resolved: ResolvedStage, *frozen: Any) -> LossFunction:
        return embedding_loss(model, self.highest)

    def predict(self, model: Any, params: Any, batch: Batch) -> dict[str, Any]:
        trunk: Transformer = model
        return {VECTORS: embeddings(trunk, params, batch)[0]}

    def answers(self, predictions: Predictions, rows: RaggedRows, examples: Sequence[Labelled]) -> list[dict[str, Any]]:
        """The cosine of two texts, or the vector of one."""
        return [
            {"cosine": float(one @ two)} if len(each.texts) == 2 else {"vector": one.tolist()}
            for each, (one, two) in zip(examples, predictions[VECTORS], strict=True)
        ]

    def measured(self, answers: Sequence[dict[str, Any]], examples: Sequence[Labelled]) -> Values:
        return score_measures(np.array([answer["cosine"] for answer in answers]), scores_of(examples))
