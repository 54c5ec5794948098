"""From a recipe to what a stage trains on: its tokenizer and its token shards, made once.

The tokenizer is kept in the workdir, the shards in the cache that several runs share, or else in the workdir, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmjax.checkpoints.checkpoint import checkpoints_in
from lmjax.checkpoints.initial import InitialCheckpoint
from lmjax.data.token_cache import TokenCache, is_there, publish_tokenizer, token_shards, tokenizer_entry
from lmjax.data.token_shards import TokenShards
from lmjax.data.training_text import MOST_LONG_WORDS, training_text, with_few_long_words
from lmjax.errors import UserError, require
from lmjax.fields import require_local
from lmjax.kinds import unused_fields
from lmjax.parallel.processes import is_first
from lmjax.settings import Pretrain, SourceSettings
from lmjax.tokenizers.tokenizer import Tokenizer, build_tokenizer, load_tokenizer, tokenizer_fingerprint
from lmjax.training.progress import ProgressDisplay


@dataclass(frozen=True)
class Prepared:
    """A recipe's tokenizer, where it is kept, and its data in tokens."""

    tokenizer: Tokenizer
    tokenizer_folder: Path
    train: list[TokenShards]
    validation: list[TokenShards]


def prepare(
    recipe: Pretrain,
    workdir: Path,
    display: ProgressDisplay,
    cache: TokenCache | None = None,
    workers: int | None = None,
    start: InitialCheckpoint | None = None,
) -> Prepared:
    """Makes, or finds in `workdir` or in the cache, the recipe's tokenizer and token shards; `display` shows it.

    With an initial checkpoint the tokenizer is that one's.

    Raises UserError for bad input, and when the vocabulary has more entries than the model's table has rows.
    """
    if start is None:
        tokenizer, folder = kept_tokenizer(recipe, workdir, display, cache)
    else:
        folder, tokenizer = start.tokenizer_folder, start.tokenizer
    rows = recipe.model.vocab_size if start is None else start.settings.vocab_size
    fix = "raise it, or leave it out to take the tokenizer's size"
    expected = f"at least the tokenizer's {tokenizer.vocab_size} entries"
    require(rows is None or tokenizer.vocab_size <= rows, "model.vocab_size", rows, expected, fix)
    fingerprint = tokenizer_fingerprint(tokenizer)

    def shards(source: SourceSettings) -> TokenShards:
        place = shards_folder(workdir, source, fingerprint)
        with display.counting(f"encoding {source.path or source.kind}") as report:
            return token_shards(
                source,
                tokenizer,
                place,
                cache,
                fingerprint=fingerprint,
                say=display.say,
                workers=workers,
                report=report,
            )

    train = [shards(source) for source in recipe.data.train]
    return Prepared(tokenizer, folder, train, [shards(source) for source in recipe.data.validation])


def train_tokenizer(
    recipe: Pretrain, folder: Path, display: ProgressDisplay, cache: TokenCache | None = None
) -> Tokenizer:
    """Trains the recipe's tokenizer, loads it, or finds it in the cache; and saves it in `folder`."""
    require_local("out", folder)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    settings = recipe.tokenizer
    texts: list[str] = []
    entry: Path | None = None
    title = f"loading the {settings.kind} tokenizer"
    if sources := _trained_on(recipe):
        texts, _ = found = training_text(sources, settings.training_bytes)
        title = f"training the {settings.kind} tokenizer"
        entry = None if cache is None else tokenizer_entry(cache, settings, texts)
        if entry is not None and is_there(entry):
            with _writing(folder):
                shutil.copytree(entry, folder, dirs_exist_ok=True)
            display.say(f"the {settings.kind} tokenizer, trained on {found.told}, is from the cache {entry.parents[1]}")
            return load_tokenizer(folder)
        display.say(f"{title} on {found.told}")
        if settings.kind == "sentencepiece" and settings.sentencepiece_model == "unigram":
            texts, long = with_few_long_words(texts)
            if long > MOST_LONG_WORDS:
                display.say(
                    f"of {long:,} words of more than 1,024 signs {MOST_LONG_WORDS} are used: unigram is slow there"
                )
    elif settings.path:
        display.say(title)
    with display.waiting(title):
        tokenizer = build_tokenizer(settings, texts)
    with _writing(folder):
        tokenizer.save(folder)
    if cache is not None and entry is not None:
        publish_tokenizer(cache, folder, entry, display.say)
    return tokenizer


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}; choose another folder") from error


def prepare_data(recipe: Pretrain, folder: Path, display: ProgressDisplay, workers: int | None = None) -> Pretrain:
    """Writes the tokenizer and every source's shards below `folder`.

    Returns the recipe that trains from them: the same batches, without the text.
    """
    require_local("out", folder)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    prepared = prepare(recipe, folder, display, workers=workers)
    return _from_shards(recipe, prepared)


def _from_shards(recipe: Pretrain, prepared: Prepared) -> Pretrain:
    def read(sources: Sequence[SourceSettings], opened: Sequence[TokenShards]) -> tuple[SourceSettings, ...]:
        return tuple(map(_of_shards, sources, opened))

    tokenizer = _with(recipe.tokenizer, path=str(prepared.tokenizer_folder), user_symbols=())  # which its files hold
    train, validation = read(recipe.data.train, prepared.train), read(recipe.data.validation, prepared.validation)
    data = dataclasses.replace(recipe.data, train=train, validation=validation)
    return dataclasses.replace(recipe, tokenizer=tokenizer, data=data)


def _of_shards(source: SourceSettings, shards: TokenShards) -> SourceSettings:
    """The source of a source's shards, which hold the part of it that is read."""
    if source.kind == "shards":
        return source
    return _with(source, kind="shards", path=str(shards.folder), begin=0.0, end=1.0)


def _with(settings: Any, **changed: Any) -> Any:
    """The settings with other values of fields, and those that they no longer use at their defaults."""
    kinds = {name: value for name, value in changed.items() if name in ("kind", "path")}
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    unused = {name: defaults[name] for name in unused_fields(settings, **kinds)}
    return dataclasses.replace(settings, **(unused | changed))


def shards_folder(workdir: Path, source: SourceSettings, fingerprint: str) -> Path:
    """Where the token shards of a source are kept in a workdir."""
    own = dataclasses.replace(source, weight=1.0)  # of which the tokens do not depend; folders were named so
    return workdir / "tokens" / f"{source.kind}-{_digest(own, fingerprint)}"


def kept_tokenizer(
    recipe: Pretrain, workdir: Path, display: ProgressDisplay, cache: TokenCache | None = None
) -> tuple[Tokenizer, Path]:
    """The tokenizer of the workdir's weights where there are any, else the recipe's, and the folder that keeps it."""
    folder = workdir / f"tokenizer-{_digest(recipe.tokenizer, *_trained_on(recipe))}"
    if (is_first() or not folder.is_dir()) and _unpacked(folder):
        return load_tokenizer(folder), folder
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        train_tokenizer(recipe, partial, display, cache)
        partial.replace(folder)
    return load_tokenizer(folder), folder


def _unpacked(folder: Path) -> bool:
    """Whether the workdir has a checkpoint with a tokenizer; `folder` then holds that and no other."""
    for checkpoint in checkpoints_in(folder.parent):
        with contextlib.suppress(UserError):  # damaged: whoever restores it says so
            if checkpoint.extras()["tokenizer"]:
                partial = folder.with_name(folder.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)
                checkpoint.unpack_tokenizer(partial)
                shutil.rmtree(folder, ignore_errors=True)
                partial.replace(folder)
                return True
    return False


def _trained_on(recipe: Pretrain) -> tuple[Any, ...]:
    trains = recipe.tokenizer.kind != "byte" and not recipe.tokenizer.path
    sources = recipe.data.train if trains else ()
    alone = len(sources) == 1  # older versions named folders with the weight 1.0 of a single source
    return tuple(dataclasses.replace(source, weight=1.0) for source in sources) if alone else sources


def _digest(*parts: Any) -> str:
    plain = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in parts]  # type: ignore[arg-type]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
