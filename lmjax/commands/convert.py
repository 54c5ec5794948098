"""Between checkpoints and Hugging Face folders: `lmjax import-hf` and `lmjax export-hf`."""

from __future__ import annotations

import argparse
from typing import Any

from lmjax.commands.command import CHECKPOINT, add_command, path_of


def add(commands: Any) -> None:
    reader = add_command(
        commands, "import-hf", _import_hf, "a Hugging Face folder becomes a checkpoint", "lmjax import-hf gpt2/ out/"
    )
    reader.add_argument("folder", type=path_of, help="with config.json, weights as safetensors, and a tokenizer")
    reader.add_argument("out", type=path_of, help="the workdir to write: a new or an empty folder")
    writer = add_command(
        commands,
        "export-hf",
        _export_hf,
        "a checkpoint becomes a Hugging Face folder",
        "lmjax export-hf runs/gpt2 out/",
    )
    writer.add_argument("checkpoint", type=path_of, help=CHECKPOINT)
    writer.add_argument("out", type=path_of, help="the folder to write: a new or an empty one")
    text = "write the rows of the table that no token has, too; other libraries give them probability"
    writer.add_argument("--keep-rows", action="store_true", help=text)


def _import_hf(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.runs.convert import import_folder

    print(import_folder(options.folder, options.out))
    return 0


def _export_hf(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.runs.convert import export_folder

    print(export_folder(options.checkpoint, options.out, keep_rows=options.keep_rows))
    return 0
