"""From a recipe to what a stage trains on: its tokenizer and its token shards, made once and kept in the workdir."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.data.shards import TokenShards, open_shards
from lmjax.data.sources import open_source
from lmjax.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer, tokenizer_fingerprint
from lmjax.errors import UserError
from lmjax.recipe import Recipe
from lmjax.settings import SourceSettings

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A recipe's tokenizer, where it is kept, and its data in tokens."""

    tokenizer: Tokenizer
    tokenizer_folder: Path
    train: list[TokenShards]
    validation: list[TokenShards]


def prepare(recipe: Recipe, workdir: Path, say: Say, workers: int | None = None) -> Prepared:
    """Makes, or finds in `workdir`, the recipe's tokenizer and token shards; `say` is told what is going on.

    Raises UserError for bad input, and when the vocabulary has more entries than the model's table has rows.
    """
    folder = workdir / f"tokenizer-{_digest(recipe.tokenizer, *_trained_on(recipe))}"
    tokenizer = _kept_tokenizer(recipe, folder, say)
    rows = recipe.model.vocab_size
    if rows is not None and tokenizer.vocab_size > rows:
        raise UserError(
            f"model.vocab_size = {rows}: expected at least the tokenizer's {tokenizer.vocab_size} entries; "
            "raise it, or leave it out to take the tokenizer's size"
        )
    fingerprint = tokenizer_fingerprint(tokenizer)

    def shards(source: SourceSettings) -> TokenShards:
        place = workdir / "tokens" / f"{source.kind}-{_digest(source, fingerprint)}"
        opened = open_shards(source, tokenizer, place, fingerprint=fingerprint, workers=workers)
        note = f", {opened.manifest.skipped:,} bad records skipped" if opened.manifest.skipped else ""
        say(f"{opened.manifest.source_name}: {opened.tokens:,} tokens in {len(opened):,} documents{note}")
        return opened

    train = [shards(source) for source in recipe.data.train]
    return Prepared(tokenizer, folder, train, [shards(source) for source in recipe.data.validation])


def train_tokenizer(recipe: Recipe, folder: Path) -> Tokenizer:
    """Trains (or loads) the recipe's tokenizer and saves it in `folder`."""
    tokenizer = build_tokenizer(recipe.tokenizer, _texts(recipe))
    tokenizer.save(folder)
    return tokenizer


def prepare_data(recipe: Recipe, folder: Path, say: Say, workers: int | None = None) -> list[str]:
    """Writes the tokenizer and every source's shards below `folder`; returns lines that say what is where.

    A recipe then trains from them with sources of kind "shards" and the tokenizer's folder as its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(recipe, folder, say, workers)
    lines = [f"tokenizer: {prepared.tokenizer_folder}"]
    for role, opened in (("train", prepared.train), ("validation", prepared.validation)):
        lines += [f"{role}: {shards.name}: {shards.tokens:,} tokens, {len(shards):,} documents" for shards in opened]
    return lines


def _kept_tokenizer(recipe: Recipe, folder: Path, say: Say) -> Tokenizer:
    if not folder.is_dir():
        say(f"{'loading' if recipe.tokenizer.path else 'training'} the {recipe.tokenizer.kind} tokenizer")
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        train_tokenizer(recipe, partial)
        partial.replace(folder)
    return load_tokenizer(folder)


def _trained_on(recipe: Recipe) -> tuple[Any, ...]:
    trains = recipe.tokenizer.kind != "byte" and not recipe.tokenizer.path
    return recipe.data.train if trains else ()


def _texts(recipe: Recipe) -> Iterator[str]:
    for settings in recipe.data.train:
        source = open_source(settings)
        for i in range(len(source)):
            texts, _ = source.read(i, i + 1)
            yield from texts


def _digest(*parts: Any) -> str:
    plain = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in parts]  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
