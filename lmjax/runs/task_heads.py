"""The head of a task in a checkpoint, as a Hugging Face folder of BERT keeps it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.checkpoints.checkpoint import Checkpoint
from lmjax.checkpoints.initial import parameters_at
from lmjax.interop.linears import TaskHead
from lmjax.model.heads import HEAD, TRUNK
from lmjax.settings import Finetune, PretrainMasked, Stage
from lmjax.tasks.choices import Choices
from lmjax.tasks.labelled import LabelledTask
from lmjax.tasks.question_answering import QuestionAnswering
from lmjax.tasks.registry import task_named
from lmjax.tasks.sentences import Sentences
from lmjax.tasks.tags import Tags

KINDS = {"Sentences": "sequence", "Choices": "choice", "QuestionAnswering": "span", "Tags": "tokens"}
SWAG_OPTIONS = 4  # of an example, which a folder does not say; `lmjax predict --options` names others
WIDTHS = {"next_sentence": 2, "choice": 1, "span": 2}  # the numbers of a head; those of others are their labels


def head_of(checkpoint: Checkpoint, recipe: Stage) -> tuple[TaskHead | None, str]:
    """The head of an encoder's task, and what to say of one that no folder keeps, or ""."""
    kind, labels = _task_of(recipe, checkpoint)
    model = recipe.model
    if kind is None or model is None:
        return None, ""
    if model.attention.causal:
        return None, "the task's head is left out: only BERT's folders keep one"
    if kind in ("sequence", "choice", "next_sentence") and not model.head.pooler:
        return None, "the task's head is left out: BERT's reads the pooler's output, which this model has not"
    outputs = WIDTHS.get(kind, len(labels) or 1)
    shapes = {"kernel": (model.width, outputs), "bias": (outputs,)}
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where) for name, shape in shapes.items()}
    found: Any = parameters_at(checkpoint, ("params", HEAD), abstract)
    return TaskHead(kind, jax.tree.map(np.asarray, found), labels), ""


def task_of_head(head: TaskHead, problem: str, row: int) -> LabelledTask | None:
    """The task whose head a folder holds, without training data; None where lmjax has no such task.

    `problem` is config.json's problem_type, `row` the tokens of a row, of which a question and a stride have a quarter
    at most. Classes without names are called as transformers calls them.
    """
    outputs = head.params["bias"].size
    labels = head.labels or tuple(f"LABEL_{number}" for number in range(outputs))
    if head.kind == "sequence":
        if problem == "multi_label_classification" or (problem == "regression" and outputs > 1):
            return None
        return Sentences(scores=True) if outputs == 1 else Sentences(labels=labels)
    if head.kind == "choice":
        return Choices(options=SWAG_OPTIONS)
    part = max(1, row // 4)
    if head.kind == "tokens":
        return Tags(labels=labels, stride=min(Tags.stride, part))
    if head.kind != "span":
        return None
    question, stride = min(QuestionAnswering.question_length, part), min(QuestionAnswering.stride, part)
    return QuestionAnswering(question_length=question, stride=stride)


def with_head(params: Any, head: TaskHead) -> Any:
    """The parameters of a model and its head as a task has them."""
    return {TRUNK: params, HEAD: head.params}


def _task_of(recipe: Stage, checkpoint: Checkpoint) -> tuple[str | None, tuple[str, ...]]:
    """The kind of the head and the names of its classes."""
    if recipe.kind == PretrainMasked.kind:
        return ("next_sentence" if getattr(recipe, "pairs", False) else None), ()
    if recipe.kind != Finetune.kind:
        return None, ()
    task: Any = task_named(getattr(recipe, "task", None), f"{checkpoint.path}: recipe")
    return KINDS.get(type(task).__name__), tuple(getattr(task, "labels", ()))
