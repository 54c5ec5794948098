"""`lmjax predict`: what a fine-tuned task says of the examples of a file, or of one example."""

from __future__ import annotations

import argparse
from typing import Any

from lmjax.commands.command import CHECKPOINT, add_command, path_of


def add(commands: Any) -> None:
    text = "the classes, scores, choices, answers or entities that a fine-tuned checkpoint finds, in lines of JSON"
    examples = (
        "lmjax predict runs/sst2 --input reviews.jsonl > predictions.jsonl",
        "lmjax predict runs/squad --text 'Where is Rome?' --text 'Rome is in Italy.'",
    )
    predict = add_command(commands, "predict", _predict, text, *examples)
    predict.add_argument("checkpoint", type=path_of, help=CHECKPOINT)
    text = "records as the task's own training data have them, without labels (question and passage; words, or text; "
    text += "context and options; one or two texts), or lines of plain text"
    predict.add_argument("--input", type=path_of, metavar="FILE", help=text)
    text = "what FILE is, of the published forms that fine-tuning reads, such as squad or conll"
    predict.add_argument("--form", default="", metavar="NAME", help=text)
    text = "of records: the column of the text, or the columns of both (default: as the task's training data have them)"
    predict.add_argument("--fields", type=_names, default=(), metavar="NAME[,NAME]", help=text)
    text = "a text instead of a file, of which a table is printed; given again: a pair's second text, a passage behind "
    text += "its question, options behind their context"
    predict.add_argument("--text", action="append", default=[], metavar="TEXT", help=text)
    text = (
        "of questions: how much better the score of no answer must be than the best answer's, or 'tuned', which takes "
    )
    text += "what was best in the checkpoint's evaluation on validation data (default: the task's)"
    predict.add_argument("--null-threshold", type=_threshold, metavar="X", help=text)
    predict.add_argument("--n-best", type=int, metavar="N", help="of questions: how many answers are given")
    text = "tokens between the begins of two windows of a text that is too long for a row (default: the task's)"
    predict.add_argument("--stride", type=int, metavar="N", help=text)
    text = "of choices: the most options of an example (default: as many as the training data had)"
    predict.add_argument("--options", type=int, metavar="K", help=text)
    predict.add_argument("--skip-bad", action="store_true", help="leave bad records out, and say so")
    predict.add_argument("--json", action="store_true", help="of --text, too, a line of JSON")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _threshold(text: str) -> float | str:
    return text if text == "tuned" else float(text)


def _predict(options: argparse.Namespace, _: list[str]) -> int:
    from lmjax.errors import require
    from lmjax.runs.predict import open_task, print_predictions, print_tables

    one = (options.input is None) == bool(options.text)
    require(one, "--input", options.input and str(options.input), "a file, or --text, and not both", "give one of them")
    named = {name: getattr(options, name) for name in ("null_threshold", "n_best", "stride", "options")}
    tuned = open_task(options.checkpoint, {name: value for name, value in named.items() if value is not None})
    if options.text:
        print_tables(tuned, options.text, as_json=options.json)
    else:
        source: Any = {"form": options.form, "fields": options.fields}
        print_predictions(tuned, options.input, **source, skip_bad=options.skip_bad)
    return 0
