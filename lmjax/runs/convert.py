"""Models in and out of Hugging Face folders: a folder becomes a checkpoint of lmjax's own, and a checkpoint a folder.

Both write to a new place, whole or not at all, and return what was done, in sentences for the terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.bucket import located
from lmjax.checkpoints.checkpoint import Checkpointer
from lmjax.checkpoints.initial import found_checkpoint
from lmjax.errors import UserError, shortened
from lmjax.fields import require_local
from lmjax.files import write_whole
from lmjax.generate.chat import StageTurns
from lmjax.interop.chat_template import (
    ChatTemplate,
    read_chat_template,
    reads_alike,
    write_own_template,
    write_stage_template,
)
from lmjax.interop.hf_tokenizer import WANTED, read_tokenizer, write_tokenizer
from lmjax.interop.huggingface import HuggingFaceModel, read_model, write_model
from lmjax.optim.train_state import TrainState
from lmjax.parallel.start_jax import prepare_jax
from lmjax.run_files import RECIPE_FILE
from lmjax.runs.load import NoTokenizer, Trained, load
from lmjax.runs.task_heads import head_of, task_of_head, with_head
from lmjax.settings import (
    CheckpointSettings,
    DataSettings,
    Finetune,
    Pretrain,
    PretrainMasked,
    PretrainSpans,
    RowSettings,
    TokenizerSettings,
    TrainingStage,
)
from lmjax.settings.recipe_files import to_json
from lmjax.tasks.labelled import LabelledTask
from lmjax.tokenizers.huggingface_config import PIPELINE
from lmjax.tokenizers.tokenizer import Tokenizer

STAGE = "imported"  # the folder below checkpoints/
LONGEST_ROW, BUCKETS = 512, (32, 64, 128, 256)  # tokens of the rows in which an imported task predicts


def import_folder(folder: Path | str, out: Path | str) -> str:
    """Writes the model of a Hugging Face folder as a checkpoint below `out`, which `lmjax.load(out)` reads.

    A folder without a tokenizer that lmjax has gives a checkpoint without one: it can be applied to token ids. Raises
    UserError for what cannot be followed, for a vocabulary larger than the model's table, and where `out` is not empty.
    """
    require_local("folder", folder)
    require_local("out", out)
    prepare_jax()
    folder, out = Path(folder), Path(out)
    model = read_model(folder)
    tokenizer, reason = read_tokenizer(folder, model.settings.vocab_size)
    template = read_chat_template(folder)
    if tokenizer is not None:
        _check_fits(folder, model, tokenizer)
    row = min(model.settings.context, LONGEST_ROW)
    task = task_of_head(model.head, model.config.problem, row) if model.head and tokenizer else None
    recipe = _recipe(model, tokenizer) if task is None else _recipe_of_task(model, task, row)
    with _whole(out) as partial:
        with (
            tempfile.TemporaryDirectory() as files,
            _checkpointer(partial, recipe, tokenizer, Path(files), template) as writer,
        ):
            held = task is not None or _follows(model)
            params = with_head(model.params, model.head) if model.head and held else model.params
            writer.save(TrainState(jnp.zeros((), jnp.int32), params, {}), 0, {})
        write_whole(partial / RECIPE_FILE, to_json(recipe))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    lines = [f"{out}: {model.config.model_type}, {parameters:,} parameters, {_described(tokenizer)}"]
    if task is not None:
        named = f" of {', '.join(task.labels)}" if task.labels else ""
        lines.append(f"its task: {type(task).__name__}{named}; lmjax predict {shlex.quote(str(out))} --text ...")
    if tokenizer is None:
        lines.append(f"{reason}; to generate text, put {WANTED} beside config.json and import again")
    if model.head is not None and not held:
        fresh = "a task that starts from here begins with a fresh one (lmjax.interop.huggingface.read_model reads it)"
        lines.append(f"the head of the task, {model.head.kind!r}, is no part of the checkpoint: {fresh}")
    return "\n".join(lines + _remarks(model, tokenizer))


def export_folder(checkpoint: Path | str, out: Path | str, *, keep_rows: bool = False) -> str:
    """Writes the newest checkpoint of a workdir, or the one named, as a Hugging Face folder `out`.

    Rows of the table beyond the tokenizer's entries, which lmjax never gives any probability, are left out; with
    `keep_rows` they are written, and other libraries give them some. The head of a BERT's task is written, too. Raises
    UserError for a model that is of no type that lmjax writes, for parameters that are not finite, and where `out` is
    not empty.
    """
    require_local("out", out)
    trained, out = load(checkpoint), Path(out)
    head, left_out = head_of(found_checkpoint(located(checkpoint)), trained.recipe)
    absent = isinstance(trained.tokenizer, NoTokenizer)
    eos_id = None if absent else trained.tokenizer.eos_id
    settings, params, lines = trained.model.settings, trained.params, [left_out] if left_out else []
    rows = settings.vocab_size or 0
    entries = rows if absent else trained.tokenizer.vocab_size
    if entries < rows:
        beyond = f"rows {entries:,} to {rows - 1:,} of the table, which no token has"
        if keep_rows:
            lines.append(f"{beyond}, are written: other libraries do not mask them and may draw their ids")
        else:
            lines.append(f"{beyond}, are left out; --keep-rows keeps them")
            settings = dataclasses.replace(settings, vocab_size=entries)
            params = params | {
                name: params[name][:entries] for name in ("tokens", "head", "head_bias") if name in params
            }
    with _whole(out) as partial:
        model_type = write_model(partial, settings, params, eos_id=eos_id, head=head)
        kind = "none" if absent else write_tokenizer(partial, trained.tokenizer, settings.context)
        lines += _write_template(partial, trained)
    return "\n".join([f"{out}: {model_type} of step {trained.step}; tokenizer: {kind}", *lines])


def _write_template(folder: Path, trained: Trained) -> list[str]:
    """Writes the model's chat template, if it has one, and returns what there is to say of it."""
    turns = trained.turns
    if isinstance(turns, ChatTemplate):
        return ["chat template: that of the imported model"] if write_own_template(folder, turns) else []
    if not isinstance(turns, StageTurns):
        return []
    if not write_stage_template(folder, turns.template):
        return ["chat template: none, as there is no tokenizer_config.json to hold it"]
    lines = [f"chat template: that of the stage {trained.recipe.name!r}"]
    if not reads_alike(turns.template, trained.tokenizer):
        lines.append(
            "chat template: read as one text, an answer's first tokens differ from those trained on, as the tokenizer "
            "joins them with the prompt's last; begin dialogue.template.answer with a blank to avoid it"
        )
    return lines


def _recipe(model: HuggingFaceModel, tokenizer: Tokenizer | None) -> TrainingStage:
    """The recipe of an imported model: its shape and tokenizer; the folder does not say how it was trained."""
    settings = model.settings
    kinds: Any = {"llama": "sentencepiece", "t5": "sentencepiece", "bert": "wordpiece"}
    kind = kinds.get(model.config.model_type, "bpe")
    entries = settings.vocab_size or 0
    if tokenizer is not None:
        kind, entries = tokenizer.kind, tokenizer.vocab_size
    length = min(DataSettings().sequence_length, settings.context)
    common: Any = {
        "name": model.config.model_type,
        "tokenizer": TokenizerSettings() if kind == "byte" else TokenizerSettings(kind=kind, vocab_size=entries),
        "data": DataSettings(sequence_length=length),
        "model": settings,
    }
    if settings.encoder_layers is not None:
        return PretrainSpans(**common)
    return Pretrain(**common) if settings.attention.causal else PretrainMasked(**common, pairs=_follows(model))


def _recipe_of_task(model: HuggingFaceModel, task: LabelledTask, row: int) -> Finetune:
    """The recipe of an imported model with the head of a task, which predicts in rows of so many tokens or fewer."""
    rows = RowSettings(sequence_length=row, buckets=tuple(edge for edge in BUCKETS if edge < row))
    return Finetune(name=model.config.model_type, model=model.settings, task=task, rows=rows)


def _follows(model: HuggingFaceModel) -> bool:
    """Whether the folder has the head that tells whether a text follows another."""
    return model.head is not None and model.head.kind == "next_sentence"


def _checkpointer(
    out: Path, recipe: TrainingStage, tokenizer: Tokenizer | None, files: Path, template: ChatTemplate | None
) -> Checkpointer:
    if tokenizer is not None:
        tokenizer.save(files)
        if template is not None:
            template.save(files)
    return Checkpointer(
        out / "checkpoints" / STAGE,
        CheckpointSettings(),
        recipe_json=to_json(recipe),
        tokenizer_folder=files,
        report=print,
    )


def _check_fits(folder: Path, model: HuggingFaceModel, tokenizer: Tokenizer) -> None:
    rows = model.settings.vocab_size or 0
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} entries: expected at most the {rows} rows of "
            "config.json's vocab_size; take the tokenizer's files away if they are not this model's"
        )


def _described(tokenizer: Tokenizer | None) -> str:
    return f"a {tokenizer.kind} tokenizer of {tokenizer.vocab_size:,} entries" if tokenizer else "no tokenizer"


def _remarks(model: HuggingFaceModel, tokenizer: Tokenizer | None) -> list[str]:
    """Fields of config.json that were not read, and where texts begin or end otherwise than it says."""
    config = model.config
    unread = ((shortened(name)[1:-1], "private" if name.startswith("_") else "null") for name in config.unread)
    lines = [f"config.json: {name}, a {kind} field, was not read" for name, kind in unread]
    if tokenizer is not None and config.eos_id is not None and config.eos_id != tokenizer.eos_id:
        lines.append(f"config.json: eos_token_id = {config.eos_id}; lmjax ends a text with {tokenizer.eos_id}")
    if config.bos_id is not None and config.bos_id != config.eos_id:
        lines.append(f"config.json: bos_token_id = {config.bos_id}; lmjax puts no token before a prompt")
    lines += [f"{PIPELINE}: {remark}" for remark in getattr(tokenizer, "remarks", [])]
    return lines


@contextlib.contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `out` at the end, or goes away if that is not reached."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: expected a new or an empty folder; choose another, or remove it")
    out = out.resolve()  # which has a name, as "." has not
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}; choose another place") from error
