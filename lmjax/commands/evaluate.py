"""`lmjax evaluate`: how well a checkpoint predicts texts. `lmjax score`: the probability of each, or a reward."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmjax.commands.command import add_command, path_of

if TYPE_CHECKING:
    from lmjax.settings import MeshSettings


def add(commands: Any) -> None:
    examples = ("lmjax evaluate runs/quickstart --data notes.txt", "lmjax evaluate runs/gpt2 --suite hhh --limit 100")
    text = "loss, perplexity and bits per byte of a checkpoint on text"
    evaluate = add_command(commands, "evaluate", _evaluate, text, *examples)
    evaluate.add_argument("checkpoint", type=path_of, help="a workdir, a stage's checkpoints or one step's folder")
    text = "files, folders or globs of text, JSONL, CSV or Parquet; each is a row of the table"
    evaluate.add_argument("--data", nargs="+", default=[], metavar="FILE", help=text)
    text = "instead: sets of questions, with commas: hellaswag, piqa, arc_easy, copa, lambada"
    evaluate.add_argument("--task", metavar="NAMES", help=text)
    text = "of --task and --suite: the folder that holds the sets, each in its own folder (default: .)"
    evaluate.add_argument("--task-data", type=path_of, default=Path(), metavar="DIR", help=text)
    evaluate.add_argument("--shots", default="0", metavar="N,N", help="solved questions before each (default: 0)")
    evaluate.add_argument("--limit", type=int, metavar="N", help="N questions of each set (of --task the first ones)")
    evaluate.add_argument("--seed", type=int, default=0, help="which questions are drawn as shots (default: 0)")
    evaluate.add_argument(
        "--out", type=path_of, metavar="FILE", help="with --task or --suite: every answer, as JSON lines"
    )
    _add_suite(evaluate)
    _add_source(evaluate)
    text = "what one document is in plain text (default: file)"
    evaluate.add_argument("--documents", choices=("file", "line", "paragraph"), default="file", help=text)
    _add_stride(evaluate)
    evaluate.add_argument("--mesh", help="sizes such as data=4,fsdp=2 (default: all devices along data)")
    evaluate.add_argument("--json", action="store_true", help="a list of objects, one for each row")

    text = "the log-probability of each text under a language model, or a reward model's score of each answer in a file"
    examples = ("lmjax score runs/instructgpt/reward answers.jsonl", "lmjax score runs/quickstart --text 'The array'")
    score = add_command(commands, "score", _score, text, *examples)
    score.add_argument("checkpoint", type=path_of, help="a workdir, a stage's checkpoints or one step's folder")
    text = "texts, by lines or records; of a reward model, prompts and answers in any of the shapes that training takes"
    score.add_argument("file", nargs="?", type=path_of, help=text)
    score.add_argument("--text", action="append", default=[], help="a text instead of a file; may be repeated")
    _add_source(score)
    _add_stride(score)
    text = "of a language model: show each token with the K likeliest in its place"
    score.add_argument("--top", type=int, default=0, metavar="K", help=text)
    score.add_argument("--json", action="store_true", help="one object per text or answer")


def _add_suite(command: argparse.ArgumentParser) -> None:
    text = "instead: truthfulness, bias and preferences, from truthfulqa, crows_pairs, winogender, hh_rlhf and oasst_en"
    command.add_argument("--suite", choices=("hhh",), help=text)
    text = "with --suite: a reward model that orders the rankings, too"
    command.add_argument("--reward-model", type=path_of, metavar="CKPT", help=text)


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("--field", default="text", help="the field of a record that holds the text (default: text)")
    text = "what the files are, where their names do not tell"
    command.add_argument("--kind", choices=("text", "jsonl", "csv", "parquet"), help=text)
    command.add_argument("--skip-bad", action="store_true", help="leave bad records out, and say so")


def _add_stride(command: argparse.ArgumentParser) -> None:
    text = "tokens by which the windows of a text beyond the context move on (default: half the context)"
    command.add_argument("--stride", type=int, metavar="N", help=text)


def _evaluate(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.errors import require
    from lmjax.plan.planner import parse_mesh
    from lmjax.runs.evaluate import print_evaluation
    from lmjax.settings import MeshSettings

    mesh = MeshSettings() if options.mesh is None else parse_mesh(options.mesh)
    if options.suite is not None:
        return _suite(options, mesh)
    one = (options.task is None) == bool(options.data)
    require(one, "--data", options.data[:1], "--data or --task, and not both", "give one of them")
    if options.task is not None:
        return _tasks(options, mesh)
    sources = [_source(options, path, options.documents) for path in options.data]
    print_evaluation(options.checkpoint, sources, mesh=mesh, stride=options.stride, as_json=options.json)
    return 0


def _tasks(options: argparse.Namespace, mesh: MeshSettings) -> int:
    from lmjax.errors import require
    from lmjax.runs.question_sets import Asked, print_marks

    words = options.shots.split(",")
    require(all(word.isdecimal() for word in words), "--shots", options.shots, "numbers such as 0,1,8", "write them so")
    require(options.stride is None, "--stride", options.stride, "--data with it", "leave it out")
    names = tuple(options.task.split(","))
    asked = Asked(names, options.task_data, tuple(map(int, words)), options.limit, options.seed)
    print_marks(options.checkpoint, asked, mesh=mesh, out=options.out, as_json=options.json)
    return 0


def _suite(options: argparse.Namespace, mesh: MeshSettings) -> int:
    from lmjax.errors import require
    from lmjax.runs.hhh import Suite, print_measures

    others = {"--data": options.data, "--task": options.task, "--stride": options.stride}
    for name, value in others.items():
        require(not value, name, value, "none with --suite", "leave it out, or --suite")
    require(
        options.shots == "0", "--shots", options.shots, "none with --suite, whose prompts are given", "leave it out"
    )
    shown = {"reward_model": options.reward_model, "out": options.out, "as_json": options.json}
    print_measures(options.checkpoint, Suite(options.task_data, options.limit), mesh=mesh, **shown)
    return 0


def _score(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.data.sources import open_source
    from lmjax.errors import require
    from lmjax.runs.evaluate import print_probabilities
    from lmjax.runs.score import is_reward_model, print_scores

    one = (options.file is None) == bool(options.text)
    require(one, "FILE", options.file and str(options.file), "a file, or --text, and not both", "give one of them")
    if is_reward_model(options.checkpoint):
        expected = "a file of prompts and answers for a reward model"
        require(not options.text, "--text", options.text[:1], expected, "write them into a JSONL file")
        print_scores(options.checkpoint, options.file, as_json=options.json, skip_bad=options.skip_bad)
        return 0
    texts = options.text or open_source(_source(options, str(options.file), "line"))
    shown = {"stride": options.stride, "top": options.top, "as_json": options.json}
    print_probabilities(options.checkpoint, texts, **shown)
    return 0


def _source(options: argparse.Namespace, path: str, documents: Any) -> Any:
    """A source of the options that its kind uses: --documents of plain text, --field of records."""
    from lmjax.fields import placed
    from lmjax.kinds import source_kind
    from lmjax.settings import SourceSettings

    bad: Literal["skip", "error"] = "skip" if options.skip_bad else "error"
    with placed("--data" if options.command == "evaluate" else "FILE"):
        kind: Any = options.kind or source_kind(path, "embedded")
        how: dict[str, Any] = {"documents": documents} if kind == "text" else {"field": options.field}
        return SourceSettings(kind=kind, path=path, on_bad_record=bad, **how)
