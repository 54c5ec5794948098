"""What `lmjax generate` prints: prompts with their continuations, as text, tables or JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmjax.generate.table import print_alternatives
from lmjax.runs.load import load


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
        if completion.context_full:
            whose = "the text" if len(prompts) == 1 else f"prompt {number}"
            print(
                f"{whose} ends after {len(completion.tokens)} tokens, where the model's context of "
                f"{trained.model.settings.context} is full; --beyond-context slide continues",
                file=sys.stderr,
            )
