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
from lmjax.tasks.registry import task_named

KINDS = {"Sentences": "sequence", "Choices": "choice", "QuestionAnswering": "span", "Tags": "tokens"}
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
