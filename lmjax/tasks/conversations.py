"""What the tasks that read conversations share: rows of a stage's sources, and pretraining text mixed in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from lmjax.checkpoints.initial import source_beside
from lmjax.data.conversation_files import Kind
from lmjax.data.conversation_rows import open_sources
from lmjax.data.conversations import Record
from lmjax.data.loader import RowLoader
from lmjax.data.packing import Rows
from lmjax.data.source_shares import lines_of, source_names
from lmjax.data.token_cache import token_shards
from lmjax.data.token_shards import TokenShards
from lmjax.errors import require
from lmjax.parallel.processes import first_before_others
from lmjax.settings import DialogueSettings, DialogueSourceSettings, DialogueStage, SourceSettings
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Session, TaskData
from lmjax.tokenizers.tokenizer import tokenizer_fingerprint
from lmjax.training.progress import ProgressDisplay


def dialogue_stage(resolved: ResolvedStage) -> DialogueStage:
    """The stage's settings. Raises UserError where there is nothing to train on, or to tell the best checkpoints by."""
    stage = resolved.of(DialogueStage)
    train = stage.dialogue.train
    require(bool(train), "dialogue.train", train, "at least one source", "add a DialogueSourceSettings")
    stage.check_best()
    return stage


def open_conversations(
    sources: Sequence[DialogueSourceSettings], kind: Kind, resolved: ResolvedStage, display: ProgressDisplay
) -> tuple[list[Rows], list[list[Record]]]:
    """The rows of each source and the records that they came from; says what was read, cut and left out.

    A path may begin with the name of another stage: its folder is beside this one's.
    """
    assert resolved.tokenizer is not None
    dialogue: DialogueSettings = resolved.settings.dialogue  # type: ignore[attr-defined]
    beside = [source_beside(source, resolved.folder) for source in sources]
    rows, counts, records = open_sources(beside, dialogue, resolved.tokenizer, kind)
    for source, count in zip(sources, counts, strict=True):
        display.say(f"{source.name}: {count} ({kind}s)")
        for warning in count.warnings:
            display.say(f"warning: {source.name}: {warning}")
    return rows, records


def conversation_data(resolved: ResolvedStage, kind: Kind, display: ProgressDisplay) -> TaskData:
    """The training and validation rows of a stage, mixed by their weights, or else by their rows."""
    dialogue = dialogue_stage(resolved).dialogue
    rows, _ = open_conversations(dialogue.train, kind, resolved, display)
    validation, _ = open_conversations(dialogue.validation, kind, resolved, display)
    return TaskData(
        train=rows,
        weights=[source.weight for source in dialogue.train],
        validation=validation,
        names=source_names(dialogue.validation),
        epoch_rows=sum(map(len, rows)),
        shares=shares_of(dialogue.train),
    )


def shares_of(sources: Sequence[DialogueSourceSettings]) -> Callable[[RowLoader, int], list[str]]:
    """How much of each source of dialogue so many steps read; they come first among those of the loader."""
    count = len(sources)

    def shares(loader: RowLoader, steps: int) -> list[str]:
        return lines_of(sources, loader.rows_per_epoch[:count], loader.epochs_at(steps)[:count], "rows")

    return shares


def mix_shares(
    sources: Sequence[SourceSettings], texts: Sequence[TokenShards], loader: RowLoader, steps: int
) -> list[str]:
    """How much of each pretraining text so many steps read; they come last among the sources of the loader."""
    epochs = loader.epochs_at(steps)
    epochs = epochs[len(epochs) - len(sources) :]
    return [f"mix: {line}" for line in lines_of(sources, [shards.tokens for shards in texts], epochs, "tokens")]


def open_mix(resolved: ResolvedStage, session: Session) -> list[TokenShards]:
    """The pretraining text of a stage in its tokens, from the cache that several stages share, or from its workdir."""
    assert resolved.tokenizer is not None
    fingerprint = tokenizer_fingerprint(resolved.tokenizer)
    opened = []
    with first_before_others("mixed"):
        for number, source in enumerate(resolved.settings.texts()["mix"]):
            known = hashlib.sha256(f"{source}\0{fingerprint}".encode()).hexdigest()[:12]
            place: Path = resolved.folder / "tokens" / f"mix-{number}-{known}"
            say = session.display.say
            opened.append(
                token_shards(source, resolved.tokenizer, place, session.cache, fingerprint=fingerprint, say=say)
            )
    return opened
