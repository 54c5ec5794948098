"""Token shards that several machines make together: each a share of every source, and one that merges the shares.

In: a recipe whose tokenizer is trained. Share I of N goes to `shares/I-of-N/` below the folder: token shards of each
source, and the tokenizer. Out, after the merge: the token shards that one machine would have written, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lmjax.data.documents import Documents, share_of
from lmjax.data.merge_shards import merge_shards
from lmjax.data.token_shards import MANIFEST, TokenShards
from lmjax.data.write_shards import check_source, open_text, prepare_shards
from lmjax.errors import UserError, clear_disk_errors, require
from lmjax.fields import require_local
from lmjax.settings import Pretrain, SourceSettings
from lmjax.stages.prepare_data import kept_tokenizer, prepare_data, shards_folder
from lmjax.tokenizers.tokenizer import tokenizer_fingerprint
from lmjax.training.progress import ProgressDisplay

SHARES = "shares"


def prepare_share(
    recipe: Pretrain, folder: Path, shard: tuple[int, int], display: ProgressDisplay, workers: int | None = None
) -> Path:
    """Writes the i-th of n parts of every source's tokens, for `shard` (i, n) counted from 1, and returns their folder.

    Every share reads where the corpus's documents begin, and encodes its own. A source of fewer documents than shares
    is in the first share. The same call continues. Raises UserError for a tokenizer that is not trained, and as
    `prepare_data` does.
    """
    require_local("out", folder)
    share, shares = shard
    own = folder / SHARES / f"{share}-of-{shares}"
    with clear_disk_errors(folder):
        own.mkdir(parents=True, exist_ok=True)
    tokenizer, _ = kept_tokenizer(_with_tokenizer(recipe), own, display)
    for name, settings in _sources(recipe):
        part = share_of(open_text(settings, display.say), share, shares)
        if part is None:
            continue
        with display.counting(f"encoding {settings.path or settings.kind}") as report:
            made = prepare_shards(
                *(part, tokenizer, own / name),
                fingerprint=tokenizer_fingerprint(tokenizer),
                workers=workers,
                report=report,
            )
        display.say(f"share {share}/{shares} of {part.name}: {made.tokens:,} tokens in {len(made):,} documents")
    return own


def merge_shares(
    recipe: Pretrain, folder: Path, given: Sequence[Path], display: ProgressDisplay, workers: int | None = None
) -> Pretrain:
    """Makes one folder of token shards of each source of the shares in `given`, by default those in `folder`.

    `given` are the folders to which shares were written, each with its `shares/`. Digests, tokenizers and the corpus
    are checked, and that no share is missing or there twice. Returns the recipe of `prepare_data`. Raises UserError.
    """
    require_local("out", folder)
    for place in given:
        require_local("merge", place)
    found = _found(given or [folder])
    tokenizer, _ = kept_tokenizer(_with_tokenizer(recipe), folder, display)
    fingerprint = tokenizer_fingerprint(tokenizer)
    merges: dict[Path, list[TokenShards]] = {}
    for name, settings in _sources(recipe):
        target = shards_folder(folder, settings, fingerprint)
        if not (target / MANIFEST).is_file():
            merges[target] = _parts(found, open_text(settings, display.say), name, fingerprint)
    for target, parts in merges.items():
        merged = merge_shards(parts, target)
        display.say(f"{merged.manifest.source_name}: {merged.tokens:,} tokens of {len(parts)} shares in {target}")
    return prepare_data(recipe, folder, display, workers)


def _with_tokenizer(recipe: Pretrain) -> Pretrain:
    """Raises UserError where each share would train the tokenizer anew."""
    trained = recipe.tokenizer.kind == "byte" or bool(recipe.tokenizer.path)
    fix = "train it once with lmjax tokenizer train, and give its folder with --tokenizer.path"
    require(trained, "tokenizer.path", recipe.tokenizer.path, "a trained tokenizer, which all shares use", fix)
    return recipe


def _sources(recipe: Pretrain) -> Iterator[tuple[str, SourceSettings]]:
    """The sources of text, and what each is called in a share; token shards need no preparing."""
    for role, sources in (("train", recipe.data.train), ("validation", recipe.data.validation)):
        for number, settings in enumerate(sources):
            if settings.kind != "shards":
                yield f"{role}-{number}", settings


def _found(given: Sequence[Path]) -> dict[tuple[int, int], Path]:
    """The folders of the shares, by (I, N)."""
    found: dict[tuple[int, int], Path] = {}
    for folder in given:
        for path in sorted((folder / SHARES).glob("*-of-*")):
            name = re.fullmatch(r"(\d{1,6})-of-(\d{1,6})", path.name)
            if name is None:
                continue
            place = (int(name[1]), int(name[2]))
            if place in found:
                fix = "leave one of them out"
                raise UserError(
                    f"--merge: share {place[0]}/{place[1]} is there twice, {found[place]} and {path}; {fix}"
                )
            found[place] = path
    where = ", ".join(map(str, given))
    require(
        bool(found), "--merge", where, f"folders with {SHARES}/I-of-N", "prepare every share with --shard I/N first"
    )
    counts = sorted({shares for _, shares in found})
    fix = f"delete those of the other, or give the folders of one with --merge; they are in {where}"
    require(len(counts) == 1, "--merge", [f"N = {count}" for count in counts], "shares of one N", fix)
    return found


def _parts(found: dict[tuple[int, int], Path], source: Documents, name: str, fingerprint: str) -> list[TokenShards]:
    """The tokens of a source in every share, in order."""
    shares = next(iter(found))[1]
    needed = {share: part for share in range(1, shares + 1) if (part := share_of(source, share, shares)) is not None}
    folders = {share: found[share, shares] / name for share in needed if (share, shares) in found}
    missing = [f"{share}/{shares}" for share in needed if share not in folders or not _whole(folders[share])]
    if missing:
        fix = "run lmjax data prepare with " + " and ".join(f"--shard {share}" for share in missing[:3])
        raise UserError(f"--merge: {source.name} lacks the shares {', '.join(missing)}, or they are unfinished; {fix}")
    parts = []
    for share, part in needed.items():
        shards = TokenShards(folders[share], fingerprint)
        fix = "it is of another corpus, of another recipe or another share: delete it and prepare it again"
        check_source(part, shards.manifest.source, folders[share] / MANIFEST, fix)
        parts.append(shards)
    return parts


def _whole(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()
