"""What a stage reads that is not there: all of it at once, each in words with its field.

In: a stage, and the names of stages that make theirs later. Out: messages; none where nothing is missing. Nothing is
read but names, except a function's file, which is run to find the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from lmjax.checkpoints.initial import named_checkpoint, source_beside
from lmjax.data.conversation_files import SUFFIXES
from lmjax.data.labelled_sets import SUFFIXES as LABELLED_SUFFIXES
from lmjax.data.open_files import list_files
from lmjax.data.token_shards import MANIFEST
from lmjax.errors import UserError, require
from lmjax.fields import placed
from lmjax.files import user_path
from lmjax.kinds import endings_of
from lmjax.rl.reward_function import load_function
from lmjax.settings import Stage, TokenizerSettings, TrainingStage
from lmjax.settings.rl import is_function
from lmjax.tokenizers.published import require_tokenizer
from lmjax.training.trackers import require_trackers


def missing(stage: Stage, made_later: set[str], folder: Path) -> list[UserError]:
    """An error for each function, file and checkpoint that is not there; `folder` is the stage's workdir."""
    found: dict[str, UserError] = {}
    for check in _checks(stage, made_later, folder):
        try:
            check()
        except UserError as error:
            found.setdefault(str(error), error)
    return list(found.values())


def _checks(stage: Stage, made_later: set[str], folder: Path) -> Iterator[Callable[[], object]]:
    tokenizer = getattr(stage, "tokenizer", None)
    if isinstance(tokenizer, TokenizerSettings) and tokenizer.path and not stage.start:
        yield partial(require_tokenizer, tokenizer)
    if isinstance(stage, TrainingStage):
        yield partial(require_trackers, stage.log.trackers)
    for field, function in stage.functions().items():
        yield partial(load_function, function, field)
    for field, source in stage.checkpoints().items():
        if source not in made_later and not is_function(source):
            yield partial(named_checkpoint, source, folder, field)
    for field, path, suffixes in _files(stage, folder):
        if Path(path).parts[0] not in made_later:
            yield partial(_require_files, field, path, suffixes)


def _files(stage: Stage, folder: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    """The field and the path of every file, folder and glob that it reads, and the endings of files in a folder."""
    for field, texts in stage.texts().items():
        for number, text in enumerate(texts):
            endings = endings_of(text.kind)
            if endings or text.kind == "shards":
                yield f"{field}[{number}]", text.path, endings
    for field, dialogues in stage.dialogues().items():
        for number, dialogue in enumerate(dialogues):
            if dialogue.path:
                yield f"{field}[{number}]", source_beside(dialogue, folder).path, SUFFIXES
    for field, labelled in stage.labelled().items():
        for number, one in enumerate(labelled):
            yield f"{field}[{number}]", one.path, LABELLED_SUFFIXES


def _require_files(field: str, path: str, suffixes: Sequence[str]) -> None:
    if suffixes:
        with placed(field):
            list_files(path, suffixes)
        return
    there = (user_path(path) / MANIFEST).is_file()
    require(
        there, f"{field}.path", path, "token shards, which lmjax data prepare writes", "prepare them, or name others"
    )
