"""From a recipe to what a stage trains on: its tokenizer and its token shards, made once and kept in the workdir."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.data.shards import TokenShards, open_shards
from lmjax.data.sources import open_source
from lmjax.data.tokenizer import Tokenizer, build_tokenizer, load_tokenizer, tokenizer_fingerprint
from lmjax.errors import require
from lmjax.fields import require_local
from lmjax.recipe import Recipe
from lmjax.settings import SourceSettings
from lmjax.training.progress import ProgressDisplay


@dataclass(frozen=True)
class Prepared:
    """A recipe's tokenizer, where it is kept, and its data in tokens."""

    tokenizer: Tokenizer
    tokenizer_folder: Path
    train: list[TokenShards]
    validation: list[TokenShards]


def prepare(recipe: Recipe, workdir: Path, display: ProgressDisplay, workers: int | None = None) -> Prepared:
    """Makes, or finds in `workdir`, the recipe's tokenizer and token shards; `display` shows what is going on.

    Raises UserError for bad input, and when the vocabulary has more entries than the model's table has rows.
    """
    folder = workdir / f"tokenizer-{_digest(recipe.tokenizer, *_trained_on(recipe))}"
    tokenizer = _kept_tokenizer(recipe, folder, display)
    rows = recipe.model.vocab_size
    fix = "raise it, or leave it out to take the tokenizer's size"
    expected = f"at least the tokenizer's {tokenizer.vocab_size} entries"
    require(rows is None or tokenizer.vocab_size <= rows, "model.vocab_size", rows, expected, fix)
    fingerprint = tokenizer_fingerprint(tokenizer)

    def shards(source: SourceSettings) -> TokenShards:
        place = workdir / "tokens" / f"{source.kind}-{_digest(source, fingerprint)}"
        with display.counting(f"encoding {source.path or source.kind}") as report:
            opened = open_shards(
                source, tokenizer, place, fingerprint=fingerprint, workers=workers, report=report, say=display.say
            )
        note = f", {opened.manifest.skipped:,} bad records skipped" if opened.manifest.skipped else ""
        display.say(f"{opened.manifest.source_name}: {opened.tokens:,} tokens in {len(opened):,} documents{note}")
        return opened

    train = [shards(source) for source in recipe.data.train]
    return Prepared(tokenizer, folder, train, [shards(source) for source in recipe.data.validation])


def train_tokenizer(recipe: Recipe, folder: Path) -> Tokenizer:
    """Trains (or loads) the recipe's tokenizer and saves it in `folder`."""
    require_local("out", folder)
    tokenizer = build_tokenizer(recipe.tokenizer, _texts(recipe))
    tokenizer.save(folder)
    return tokenizer


def prepare_data(recipe: Recipe, folder: Path, display: ProgressDisplay, workers: int | None = None) -> list[str]:
    """Writes the tokenizer and every source's shards below `folder`.

    Returns the overrides with which the recipe trains from them: the same batches, without the text.
    """
    require_local("out", folder)
    folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(recipe, folder, display, workers)
    overrides = ["--tokenizer.path", str(prepared.tokenizer_folder)]
    if recipe.tokenizer.user_symbols:
        overrides.append("--tokenizer.user-symbols")  # none beyond those that the saved tokenizer holds
    roles = (("train", recipe.data.train, prepared.train), ("validation", recipe.data.validation, prepared.validation))
    for role, sources, opened in roles:
        for number, (source, shards) in enumerate(zip(sources, opened, strict=True)):
            field = f"--data.{role}.{number}"
            overrides += [f"{field}.kind", "shards", f"{field}.path", str(shards.folder)]
            if source.kind != "shards" and (source.begin, source.end) != (0.0, 1.0):  # the shards hold that part only
                overrides += [f"{field}.begin", "0", f"{field}.end", "1"]
    return overrides


def _kept_tokenizer(recipe: Recipe, folder: Path, display: ProgressDisplay) -> Tokenizer:
    if not folder.is_dir():
        if recipe.tokenizer.kind != "byte":
            display.say(f"{'loading' if recipe.tokenizer.path else 'training'} the {recipe.tokenizer.kind} tokenizer")
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
