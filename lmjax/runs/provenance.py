"""What a stage is made from beside its recipe, by digest: to know whether it is still what it was when the stage began.

In: a stage and its folder. Out: the digests of what the stages before it ended with, and of the files that it reads.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from lmjax.checkpoints.initial import place_of, source_beside
from lmjax.data.conversation_files import SUFFIXES
from lmjax.data.open_files import list_files
from lmjax.data.text_sources import checksum
from lmjax.errors import UserError, clear_disk_errors, is_bucket
from lmjax.files import read_json_if_there, write_whole
from lmjax.parallel.processes import is_first
from lmjax.run_files import PROVENANCE_FILE, SUMMARY_FILE
from lmjax.runs.workdir import begun
from lmjax.settings import DialogueSourceSettings, Stage


def provenance(stage: Stage, own: Path) -> dict[str, str]:
    """The digest of each: trained stages by their names, files by their paths. Files that are not there have ""."""
    found: dict[str, str] = {}
    for source in stage.sources().values():
        summary = place_of(source, own) / SUMMARY_FILE
        with clear_disk_errors(summary.parent):
            found |= {source: _of_summary(summary)} if summary.is_file() else {}
    for sources in stage.dialogues().values():
        found |= {source.path: _of_files(source_beside(source, own)) for source in sources if source.path}
    files = {function: Path(function.rpartition(":")[0]) for function in stage.functions().values()}
    return found | {str(path): checksum(path) for path in files.values() if path.is_file()}


def changes(stage: Stage, own: Path) -> list[str]:
    """What is another than when the stage began, in words; nothing where it has not begun."""
    there = (own / PROVENANCE_FILE).exists() and begun(own) is not None
    return _changes(stage, own, provenance(stage, own)) if there else []


def _changes(stage: Stage, own: Path, now: dict[str, str]) -> list[str]:
    before = read_json_if_there(own / PROVENANCE_FILE, dict[str, str], "delete the file") or {}
    stages = set(stage.sources().values())
    other = [name for name, digest in before.items() if now.get(name) not in ("", digest)]
    return [f"{name} {'was trained again' if name in stages else 'changed'}" for name in other]


def claim_provenance(stage: Stage, own: Path, force: bool) -> None:
    """Writes down what the stage is made from. Raises UserError where that is another than when it began."""
    now = provenance(stage, own)
    other = _changes(stage, own, now)
    if other and not force and begun(own) is not None:
        raise UserError(
            f"{own}: {' and '.join(other)} since this run began; choose another --workdir, or resume with it by --force"
        )
    if is_first():
        write_whole(own / PROVENANCE_FILE, json.dumps(now, indent=2))


def _of_summary(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if is_bucket(path) else checksum(path)


def _of_files(source: DialogueSourceSettings) -> str:
    try:
        return " ".join(checksum(path) for path in list_files(source.path, SUFFIXES))
    except UserError:  # to be told by whoever reads them: a stage that is done does not
        return ""
