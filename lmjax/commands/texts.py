"""Texts as commands take them: files of any kind, and windows over long ones."""

from __future__ import annotations

import argparse
from typing import Any, Literal


def add_source(command: Any) -> None:
    command.add_argument("--field", default="text", help="the field of a record that holds the text (default: text)")
    text = "what the files are, where their names do not tell"
    command.add_argument("--kind", choices=("text", "jsonl", "csv", "parquet"), help=text)
    command.add_argument("--skip-bad", action="store_true", help="leave bad records out, and say so")


def add_stride(command: Any) -> None:
    text = "tokens by which the windows of a text beyond the context move on (default: half the context)"
    command.add_argument("--stride", type=int, metavar="N", help=text)


def source_of(options: argparse.Namespace, path: str, documents: Any, place: str) -> Any:
    """A source of the options that its kind uses: `documents` of plain text, --field of records."""
    from lmjax.fields import placed
    from lmjax.kinds import source_kind
    from lmjax.settings import SourceSettings

    bad: Literal["skip", "error"] = "skip" if options.skip_bad else "error"
    with placed(place):
        kind: Any = options.kind or source_kind(path, "embedded")
        how: dict[str, Any] = {"documents": documents} if kind == "text" else {"field": options.field}
        return SourceSettings(kind=kind, path=path, on_bad_record=bad, **how)
