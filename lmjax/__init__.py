"""lmjax: a JAX/Flax, TPU-first training stack for language models.

`run(recipe)` trains, `load(checkpoint)` gives back what was trained; the other names are the parts of a loop of one's
own. All are imported when they are first used, so that `import lmjax` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmjax.version import __version__

if TYPE_CHECKING:
    from lmjax import settings
    from lmjax.errors import UserError
    from lmjax.model.families import model_of
    from lmjax.objective.next_token import language_loss
    from lmjax.objective.weighted import Weighted
    from lmjax.optim.train_state import TrainState
    from lmjax.parallel.placement import init_state, jit_step, placed_batch
    from lmjax.runs.load import Trained, load
    from lmjax.runs.own_loop import checkpointer, mesh, token_batches
    from lmjax.runs.run import Result, run
    from lmjax.settings.recipe_values import recipe
    from lmjax.tasks.task import Task
    from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer
    from lmjax.training.step import make_train_step

_HOMES = {
    # recipes and what they leave
    "run": "lmjax.runs.run",
    "recipe": "lmjax.settings.recipe_values",
    "settings": "lmjax",
    "load": "lmjax.runs.load",
    "Result": "lmjax.runs.run",
    "Trained": "lmjax.runs.load",
    "Task": "lmjax.tasks.task",
    "UserError": "lmjax.errors",
    # a loop of one's own
    "mesh": "lmjax.runs.own_loop",
    "load_tokenizer": "lmjax.tokenizers.tokenizer",
    "build_tokenizer": "lmjax.tokenizers.tokenizer",
    "token_batches": "lmjax.runs.own_loop",
    "placed_batch": "lmjax.parallel.placement",
    "model_of": "lmjax.model.families",
    "language_loss": "lmjax.objective.next_token",
    "Weighted": "lmjax.objective.weighted",
    "make_train_step": "lmjax.training.step",
    "init_state": "lmjax.parallel.placement",
    "jit_step": "lmjax.parallel.placement",
    "TrainState": "lmjax.optim.train_state",
    "checkpointer": "lmjax.runs.own_loop",
}

__all__ = [
    "Result",
    "Task",
    "TrainState",
    "Trained",
    "UserError",
    "Weighted",
    "__version__",
    "build_tokenizer",
    "checkpointer",
    "init_state",
    "jit_step",
    "language_loss",
    "load",
    "load_tokenizer",
    "make_train_step",
    "mesh",
    "model_of",
    "placed_batch",
    "recipe",
    "run",
    "settings",
    "token_batches",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lmjax' has no attribute {name!r}")
    import importlib

    if _HOMES[name] == __name__:
        return importlib.import_module(f"lmjax.{name}")
    return getattr(importlib.import_module(_HOMES[name]), name)
