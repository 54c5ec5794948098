"""lmjax's own fine-tuning tasks, by the names under which recipe.json keeps them.

Only these are made again from a saved recipe, to predict with a checkpoint: no name in a file loads any other code.
"""

from __future__ import annotations

import importlib

from lmjax.errors import UserError
from lmjax.settings.recipe_files import decoded_part
from lmjax.settings.stage import SavedTask, TaskSettings
from lmjax.tasks.task import Task

MODULES = {  # imported when a task of the kind is first asked for
    "Sentences": "lmjax.tasks.sentences",
    "Choices": "lmjax.tasks.choices",
    "Embeddings": "lmjax.tasks.embeddings",
    "QuestionAnswering": "lmjax.tasks.question_answering",
    "Tags": "lmjax.tasks.tags",
    "TextToText": "lmjax.tasks.text_to_text",
}


def task_named(task: TaskSettings | None, where: str) -> Task:
    """The task of a recipe, also of a saved one where it is lmjax's own.

    Raises UserError where only its name is known, as of a recipe's own task.
    """
    made = known_task(task, where)
    if made is None:
        name = task.plain()["task"] if task is not None else "None"
        raise UserError(
            f"{where}: expected an object of a class that extends Task, found {name!r}; run the recipe file that "
            "defines it"
        )
    return made


def known_task(task: TaskSettings | None, where: str) -> Task | None:
    """As `task_named`; None where only the name of a task is known."""
    if not isinstance(task, SavedTask):
        return task if isinstance(task, Task) else None
    module, _, kind = task.name.partition(":")
    if MODULES.get(kind) != module:
        return None
    made = decoded_part(getattr(importlib.import_module(module), kind), dict(task.values), where, "task")
    assert isinstance(made, Task)
    return made
