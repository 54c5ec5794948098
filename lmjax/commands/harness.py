"""`lmjax harness`: tasks of lm-eval, the language model evaluation harness."""

from __future__ import annotations

import argparse
from typing import Any

from lmjax.commands.command import CHECKPOINT, add_command, path_of


def add(commands: Any) -> None:
    examples = (
        "lmjax harness runs/quickstart --tasks mine --include-path tasks --limit 100",
        "lmjax harness runs/smollm2 --tasks hellaswag,arc_easy --shots 5 --out samples.jsonl",
    )
    text = "put tasks of lm-eval, the language model evaluation harness, to a checkpoint"
    harness = add_command(commands, "harness", _harness, text, *examples)
    harness.add_argument("checkpoint", type=path_of, help=CHECKPOINT)
    text = "names or patterns of tasks, with commas; lm-eval downloads the data of its own"
    harness.add_argument("--tasks", required=True, metavar="NAMES", help=text)
    text = "a folder with YAML files of further tasks"
    harness.add_argument("--include-path", type=path_of, metavar="DIR", help=text)
    text = "solved examples before each document (default: as many as the task says)"
    harness.add_argument("--shots", type=int, metavar="N", help=text)
    harness.add_argument("--limit", type=int, metavar="N", help="only the first N documents of each task")
    text = "write every context as a conversation, by the checkpoint's template"
    harness.add_argument("--apply-chat-template", action="store_true", help=text)
    text = "every document with its requests, answers and metrics, as JSON lines"
    harness.add_argument("--out", type=path_of, metavar="FILE", help=text)
    harness.add_argument("--mesh", help="sizes such as data=4,fsdp=2 (default: all devices along data)")
    harness.add_argument("--json", action="store_true", help="lm-eval's results as one object")


def _harness(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.plan.planner import parse_mesh
    from lmjax.runs.harness import HarnessTasks, print_harness
    from lmjax.settings import MeshSettings

    mesh = MeshSettings() if options.mesh is None else parse_mesh(options.mesh)
    names = tuple(options.tasks.split(","))
    how = (options.include_path, options.shots, options.limit, options.apply_chat_template)
    print_harness(options.checkpoint, HarnessTasks(names, *how), mesh=mesh, out=options.out, as_json=options.json)
    return 0
