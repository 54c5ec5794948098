"""`lmjax score`: the probability of each text, or a reward model's score of each answer."""

from __future__ import annotations

import argparse
from typing import Any

from lmjax.commands.command import CHECKPOINT, add_command, path_of
from lmjax.commands.texts import add_source, add_stride, source_of


def add(commands: Any) -> None:
    text = "the log-probability of each text under a language model, or a reward model's score of each answer in a file"
    examples = ("lmjax score runs/instructgpt/reward answers.jsonl", "lmjax score runs/quickstart --text 'The array'")
    score = add_command(commands, "score", _score, text, *examples)
    score.add_argument("checkpoint", type=path_of, help=CHECKPOINT)
    text = "texts, by lines or records; of a reward model, prompts and answers in any of the shapes that training takes"
    score.add_argument("file", nargs="?", type=path_of, help=text)
    score.add_argument("--text", action="append", default=[], help="a text instead of a file; may be repeated")
    add_source(score)
    add_stride(score)
    text = "of a language model: show each token with the K likeliest in its place; `lmjax generate` has what follows"
    score.add_argument("--top", type=int, default=0, metavar="K", help=text)
    score.add_argument("--json", action="store_true", help="one object per text or answer")


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
    texts = options.text or open_source(source_of(options, str(options.file), "line", "FILE"))
    shown = {"stride": options.stride, "top": options.top, "as_json": options.json}
    print_probabilities(options.checkpoint, texts, **shown)
    return 0
