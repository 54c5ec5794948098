"""What `lmjax generate` prints: prompts with their continuations, as text, tables or JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax.generate.decode import Completion
from lmjax.generate.table import print_alternatives
from lmjax.runs.load import Trained, load


def print_completions(checkpoint: Path, prompts: Sequence[str], *, as_json: bool, **sampling: Any) -> None:
    """Prints a continuation of each prompt; those that the model's context ended are named on standard error."""
    trained = load(checkpoint)
    completions = trained.generate(prompts, **sampling)
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), 1):
        if as_json:
            print(json.dumps({"prompt": prompt, **dataclasses.asdict(completion)}, ensure_ascii=False))
        else:
            print(prompt + completion.text)
            if sampling.get("top"):
                texts = trained.token_texts(completion.tokens)
                print_alternatives(texts, completion.log_probs, completion.alternatives)
        _tell_context(trained, completion, number if len(prompts) > 1 else None, slide=True)


def print_beams(checkpoint: Path, prompts: Sequence[str], *, as_json: bool, **settings: Any) -> None:
    """Prints the texts that a beam search finds for each prompt: the best, or, of several, each after its score."""
    trained = load(checkpoint)
    found = trained.beam_search(prompts, **settings)
    for number, (prompt, completions) in enumerate(zip(prompts, found, strict=True), 1):
        if as_json:
            texts = [dataclasses.asdict(completion) for completion in completions]
            print(json.dumps({"prompt": prompt, "completions": texts}, ensure_ascii=False))
        else:
            for completion in completions:
                score = f"{completion.score:.4f}  " if settings.get("n_best", 1) > 1 else ""
                print(score + prompt + completion.text)
        _tell_context(trained, completions[0], number if len(prompts) > 1 else None, slide=False)


def _tell_context(trained: Trained, completion: Completion, number: int | None, *, slide: bool) -> None:
    """Names on standard error a text that the model's context ended."""
    if completion.context_full:
        decoder = trained.model.settings.encoder_layers is None
        fix = "shorten the prompt" if decoder else "its model writes no longer ones"
        fix = "--beyond-context slide continues" if decoder and slide else fix
        whose = "the text" if number is None else f"prompt {number}"
        print(
            f"{whose} ends after {len(completion.tokens)} tokens, where the model's context of "
            f"{trained.model.settings.context} is full; {fix}",
            file=sys.stderr,
        )
