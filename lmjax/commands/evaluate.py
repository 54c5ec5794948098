"""`lmjax evaluate`: how well a checkpoint predicts texts, answers sets of questions, and measures up to a suite."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmjax.commands.command import CHECKPOINT, add_command, path_of, require_png
from lmjax.commands.texts import add_source, add_stride, source_of
from lmjax.kinds import QUESTION_SETS

if TYPE_CHECKING:
    from lmjax.settings import MeshSettings

OF_DATA = ("field", "kind", "skip_bad", "documents", "stride", "context", "detokenize")
OF_TASK = ("shots", "seed", "too_long", "show_prompt", "plot", "fine_tuned")
OF_SUITE = ("reward_model",)


def add(commands: Any) -> None:
    examples = ("lmjax evaluate runs/quickstart --data notes.txt", "lmjax evaluate runs/gpt2 --data 'wiki/*.txt'")
    sets = "lmjax evaluate runs/gpt2 --task arc_easy,boolq --task-data sets --shots 0,5 --out answers.jsonl"
    suite = "lmjax evaluate runs/gpt2 --suite hhh --task-data sets --limit 100"
    text = "measure a checkpoint on text (--data), by sets of questions (--task) or by a suite of measures (--suite)"
    evaluate = add_command(commands, "evaluate", _evaluate, text, *examples, sets, suite)
    evaluate.add_argument("checkpoint", type=path_of, help=CHECKPOINT)
    _add_data(evaluate.add_argument_group("text"))
    _add_task(evaluate.add_argument_group("sets of questions"))
    _add_suite(evaluate.add_argument_group("a suite"))
    text = "of --task and --suite: the folder that holds the sets, each in a folder of its own (default: .)"
    evaluate.add_argument("--task-data", type=path_of, default=Path(), metavar="DIR", help=text)
    text = "of --task and --suite: N questions of each set, evenly spread over it"
    evaluate.add_argument("--limit", type=int, metavar="N", help=text)
    text = "of --task and --suite: every answer, as JSON lines"
    evaluate.add_argument("--out", type=path_of, metavar="FILE", help=text)
    evaluate.add_argument("--mesh", help="sizes such as data=4,fsdp=2 (default: all devices along data)")
    evaluate.add_argument("--json", action="store_true", help="a list of objects, one for each row")


def _add_data(group: Any) -> None:
    text = "loss, perplexity and bits per byte of files, folders or globs of text, JSONL, CSV or Parquet: a row each"
    group.add_argument("--data", nargs="+", default=[], metavar="FILE", help=text)
    add_source(group)
    text = "what one document is in plain text (default: file)"
    group.add_argument("--documents", choices=("file", "line", "paragraph"), default="file", help=text)
    add_stride(group)
    text = "at most so many tokens are read at once (default, and at most: the model's context)"
    group.add_argument("--context", type=int, metavar="N", help=text)
    text = "undo the tokenisation of this corpus, and tell the perplexity over the corpus's own words"
    group.add_argument("--detokenize", choices=("wikitext", "ptb"), help=text)


def _add_task(group: Any) -> None:
    text = f"names, with commas: {', '.join(QUESTION_SETS)}; arc and fewclue are several"
    group.add_argument("--task", metavar="NAMES", help=text)
    group.add_argument("--shots", default="0", metavar="N,N", help="solved questions before each (default: 0)")
    group.add_argument("--seed", type=int, default=0, help="which questions are drawn as shots (default: 0)")
    text = "a prompt that is longer than the context loses shots, which are counted (default), or is an error"
    group.add_argument("--too-long", choices=("drop", "error"), default="drop", help=text)
    text = "print the first prompt of each set as the model reads it, and nothing else"
    group.add_argument("--show-prompt", action="store_true", help=text)
    text = "accuracy over the number of shots, a panel for each set"
    group.add_argument("--plot", type=path_of, metavar="FILE.png", help=text)
    text = "the same model trained on the sets, which is asked without shots beside it"
    group.add_argument("--fine-tuned", type=path_of, metavar="CKPT", help=text)


def _add_suite(group: Any) -> None:
    text = "hhh: truthfulness, bias and preferences, from truthfulqa, crows_pairs, winogender, hh_rlhf and oasst_en"
    group.add_argument("--suite", choices=("hhh",), help=text)
    text = "a reward model that orders the rankings, too"
    group.add_argument("--reward-model", type=path_of, metavar="CKPT", help=text)


def _evaluate(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.errors import require
    from lmjax.plan.planner import parse_mesh
    from lmjax.settings import MeshSettings

    given = [name for name in ("data", "task", "suite") if getattr(options, name)]
    found = " ".join(f"--{name}" for name in given) or "none"
    require(len(given) == 1, "lmjax evaluate", found, "--data, --task or --suite, and one of them alone", "give one")
    mesh = MeshSettings() if options.mesh is None else parse_mesh(options.mesh)
    call = {"data": _texts, "task": _tasks, "suite": _suite}[given[0]]
    return call(options, mesh)


def _texts(options: argparse.Namespace, mesh: MeshSettings) -> int:
    from lmjax.runs.evaluate import Reader, print_evaluation

    _require_absent(options, (*OF_TASK, *OF_SUITE, "limit", "out", "task_data"), "no such option with --data")
    sources = [source_of(options, path, options.documents, "--data") for path in options.data]
    reader = Reader(options.checkpoint, mesh, options.stride, context=options.context)
    print_evaluation(reader, sources, corpus=options.detokenize, as_json=options.json)
    return 0


def _tasks(options: argparse.Namespace, mesh: MeshSettings) -> int:
    from lmjax.errors import require
    from lmjax.evaluate.sets import sets_of
    from lmjax.runs.question_sets import Asked, print_marks, print_prompts

    words = options.shots.split(",")
    require(
        all(re.fullmatch("[0-9]{1,9}", word) for word in words),
        "--shots",
        options.shots,
        "numbers such as 0,1,8",
        "write them so",
    )
    _require_absent(options, (*OF_DATA, *OF_SUITE), "no such option with --task")
    asked = Asked(
        sets_of(options.task), options.task_data, tuple(map(int, words)), options.limit, options.seed, options.too_long
    )
    if options.show_prompt:
        _require_absent(options, ("out", "plot", "fine_tuned", "json"), "nothing beside --show-prompt")
        print_prompts(options.checkpoint, asked, mesh=mesh)
        return 0
    require_png(options.plot)
    files = {"fine_tuned": options.fine_tuned, "out": options.out, "plot": options.plot}
    print_marks(options.checkpoint, asked, mesh=mesh, as_json=options.json, **files)
    return 0


def _suite(options: argparse.Namespace, mesh: MeshSettings) -> int:
    from lmjax.runs.hhh import Suite, print_measures

    _require_absent(options, (*OF_DATA, *OF_TASK), "no such option with --suite")
    shown = {"reward_model": options.reward_model, "out": options.out, "as_json": options.json}
    print_measures(options.checkpoint, Suite(options.task_data, options.limit), mesh=mesh, **shown)
    return 0


def _require_absent(options: argparse.Namespace, names: Sequence[str], expected: str) -> None:
    """Raises UserError for an option that says something of what is not done."""
    from lmjax.errors import require

    for name in names:
        value = getattr(options, name)
        found = str(value) if isinstance(value, Path) else value
        absent = value == options.parser.get_default(name)
        require(absent, "--" + name.replace("_", "-"), found, expected, "leave it out")
