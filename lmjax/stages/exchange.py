"""Models in and out of Hugging Face folders: a folder becomes a checkpoint of lmjax's own, and a checkpoint a folder.

Both write to a new place, whole or not at all, and return what was done, in sentences for the terminal.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.data.tokenizer import Tokenizer
from lmjax.errors import UserError
from lmjax.fields import require_local
from lmjax.files import write_whole
from lmjax.interop.hf import HuggingFaceModel, read_model, write_model
from lmjax.interop.hf_tokenizer import WANTED, read_tokenizer, write_tokenizer
from lmjax.parallel.platform import prepare_jax
from lmjax.recipe import Pretrain, to_json
from lmjax.settings import CheckpointSettings, DataSettings, TokenizerSettings
from lmjax.stages.load import NoTokenizer, load
from lmjax.stages.workdir import RECIPE_FILE
from lmjax.training.checkpoint import Checkpointer
from lmjax.training.state import TrainState

STAGE = "imported"  # the folder below checkpoints/


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
    tokenizer, reason = read_tokenizer(folder)
    if tokenizer is not None:
        _check_fits(folder, model, tokenizer)
    recipe = _recipe(model, tokenizer)
    with _whole(out) as partial:
        with tempfile.TemporaryDirectory() as files, _checkpointer(partial, recipe, tokenizer, Path(files)) as writer:
            writer.save(TrainState(jnp.zeros((), jnp.int32), model.params, {}), 0, {})
        write_whole(partial / RECIPE_FILE, to_json(recipe))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    lines = [f"{out}: {model.config.model_type}, {parameters:,} parameters, {_described(tokenizer)}"]
    if tokenizer is None:
        lines.append(f"{reason}; to generate text, put {WANTED} beside config.json and import again")
    return "\n".join(lines + _remarks(model, tokenizer))


def export_folder(checkpoint: Path | str, out: Path | str) -> str:
    """Writes the newest checkpoint of a workdir, or the one named, as a Hugging Face folder `out`.

    Raises UserError for a model that is neither a GPT-1, a GPT-2 nor a Llama, and where `out` is not empty.
    """
    require_local("out", out)
    trained, out = load(checkpoint), Path(out)
    absent = isinstance(trained.tokenizer, NoTokenizer)
    eos_id = None if absent else trained.tokenizer.eos_id
    with _whole(out) as partial:
        model_type = write_model(partial, trained.model.settings, trained.params, eos_id=eos_id)
        context = trained.model.settings.context
        kind = "none" if absent else write_tokenizer(partial, trained.tokenizer, context)
    return f"{out}: {model_type} of step {trained.step}; tokenizer: {kind}"


def _recipe(model: HuggingFaceModel, tokenizer: Tokenizer | None) -> Pretrain:
    """The recipe of an imported model: its shape and tokenizer; what it was trained on and how, nobody says."""
    settings = model.settings
    kind: Any = "sentencepiece" if model.config.model_type == "llama" else "bpe"
    entries = settings.vocab_size or 0
    if tokenizer is not None:
        kind, entries = tokenizer.kind, tokenizer.vocab_size
    length = min(DataSettings().sequence_length, settings.context)
    return Pretrain(
        name=model.config.model_type,
        tokenizer=TokenizerSettings(kind=kind, vocab_size=entries),
        data=DataSettings(sequence_length=length),
        model=settings,
    )


def _checkpointer(out: Path, recipe: Pretrain, tokenizer: Tokenizer | None, files: Path) -> Checkpointer:
    if tokenizer is not None:
        tokenizer.save(files)
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
    """Where texts begin or end otherwise than config.json says."""
    lines = []
    config = model.config
    if tokenizer is not None and config.eos_id is not None and config.eos_id != tokenizer.eos_id:
        lines.append(f"config.json: eos_token_id = {config.eos_id}; lmjax ends a text with {tokenizer.eos_id}")
    if config.bos_id is not None and config.bos_id != config.eos_id:
        lines.append(f"config.json: bos_token_id = {config.bos_id}; lmjax puts no token before a prompt")
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
