"""Answers that a language model writes, greedily, after the prompts of open questions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmjax.errors import require
from lmjax.evaluate.answers import beginning
from lmjax.evaluate.questions import OpenQuestion, Writing
from lmjax.generate.decode import continued
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.language_model import LanguageModel
from lmjax.tokenizers.tokenizer import Tokenizer

PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class OpenAnswer:
    """What is written after an open question, and how it is marked."""

    question: OpenQuestion
    text: str
    marked: dict[str, float]
    shots: int  # that the prompt has
    cut: bool  # whether the prompt lost its beginning, since it is longer than the context even without shots
    tie = False
    loss = None
    guessed = None

    def marks(self) -> dict[str, float]:
        """Numbers from 0 to 1, by name."""
        return self.marked

    def record(self) -> dict[str, Any]:
        """What a JSONL file says of it."""
        return self.question.record() | {"answer": self.text}


class Writer:
    """Lets a model write answers."""

    def __init__(self, model: LanguageModel, params: Any, tokenizer: Tokenizer, writing: Writing) -> None:
        """Raises UserError for an answer that leaves no room for a prompt in the context."""
        self._model, self._params, self._tokenizer, self._mark = model, params, tokenizer, writing.mark
        self._settings = SamplingSettings(max_tokens=writing.tokens, temperature=0, stop=writing.stop)
        self._begin, self._room = beginning(tokenizer), model.settings.context - writing.tokens
        expected = f"more than the {writing.tokens} that an answer of this set may have"
        require(self._room > 0, "the model's context", model.settings.context, expected, "use another set or model")

    def answers(self, asked: Iterable[tuple[OpenQuestion, Sequence[str]]]) -> Iterator[OpenAnswer]:
        """The answer to each question, in their order; of its prompts the first that leaves room for it is used."""
        remaining = iter(asked)
        while some := list(itertools.islice(remaining, PROMPTS_AT_ONCE)):
            chosen = [self._fitting(prompts) for _, prompts in some]
            prompts = [ids for ids, _, _ in chosen]
            found = continued(self._model, self._params, self._tokenizer, prompts, self._settings)
            for (question, _), (_, shots, cut), one in zip(some, chosen, found, strict=True):
                text = one.text.strip()
                yield OpenAnswer(question, text, self._mark(text, question.references), shots, cut)

    def _fitting(self, prompts: Sequence[str]) -> tuple[list[int], int, bool]:
        """The tokens of the first prompt that fits, its shots, and whether even the last had to be cut."""
        for left, ids in enumerate(self._tokenizer.encode_batch(prompts)):
            whole = [*self._begin, *ids.tolist()]
            if len(whole) <= self._room:
                return whole, len(prompts) - 1 - left, False
        return whole[-self._room :], 0, True
