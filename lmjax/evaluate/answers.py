"""What a language model answers: the log-probabilities of a question's choices, and the accuracies that follow.

In: questions with their prompts, a tokenizer and a `Likelihood`. Out: an `Answer` for each, and means with standard
errors. A prompt and a choice are encoded together, and cut after as many tokens as the prompt alone has: the blank
between them belongs to the choice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lmjax.errors import UserError, shortened
from lmjax.evaluate.endings import Ending
from lmjax.evaluate.likelihood import Likelihood, TokenProbs
from lmjax.evaluate.questions import Question
from lmjax.tokenizers.tokenizer import Tokenizer

PROMPTS_AT_ONCE = 256


class Choice(NamedTuple):
    """What is scored of a choice after its prompt: nats, tokens, bytes; and whether its tokens are the likeliest.

    That is NaN where it was not asked of the `Likelihood` (top = 0).
    """

    log_prob: float
    tokens: int
    bytes: int
    greedy: float = math.nan  # 1 or 0: all of them,
    greedy_last: float = math.nan  # the last one,
    greedy_filtered: float = False  # and all where stop words are not predicted


@dataclass(frozen=True)
class Answer:
    """The choices of a question; their log-probabilities after its bare context, where it has one; what was cut."""

    question: Question
    choices: tuple[Choice, ...]
    bare: tuple[float, ...]
    shots: int  # that the prompt has
    cut: bool  # whether the prompt lost its beginning, since it is longer than the context even without shots

    def rights(self) -> dict[str, float]:
        """1 or 0 for each way to choose. Of choices that are equal the first is taken."""
        own = np.array([choice.log_prob for choice in self.choices])
        ways = {
            "accuracy": own,
            "per_token": own / [choice.tokens for choice in self.choices],
            "per_byte": own / [choice.bytes for choice in self.choices],
        }
        if self.bare:
            ways["unconditional"] = own - self.bare
        return {name: float(scores.argmax() == self.question.gold) for name, scores in ways.items()}

    @property
    def tie(self) -> bool:
        """Whether the likeliest choice has an equal."""
        scores = sorted(choice.log_prob for choice in self.choices)
        return len(scores) > 1 and scores[-1] == scores[-2]

    @property
    def loss(self) -> float | None:
        """Nats of the word that is asked for; None of several choices."""
        return -self.choices[0].log_prob if len(self.choices) == 1 else None

    @property
    def guessed(self) -> float | None:
        """The accuracy of guessing; None of one choice."""
        return 1 / len(self.choices) if len(self.choices) > 1 else None

    def word(self) -> dict[str, float]:
        """Of a question for a last word: whether all its tokens are the likeliest, and whether its last one is.

        "filtered" is whether all are where no stop word is predicted (Radford et al. 2019, section 3.3).
        """
        (choice,) = self.choices
        rights = {"last_word": choice.greedy, "last_token": choice.greedy_last, "filtered": choice.greedy_filtered}
        return {name: float(right) for name, right in rights.items()}

    def marks(self) -> dict[str, float]:
        """1 or 0 by the name of each way to choose, or of each protocol for a last word."""
        return self.rights() if len(self.choices) > 1 else self.word()

    def record(self) -> dict[str, Any]:
        """What a JSONL file says of it."""
        return self.question.record() | {
            "log_probs": [choice.log_prob for choice in self.choices],
            "tokens": [choice.tokens for choice in self.choices],
            "unconditional": self.bare,
        }


class Examiner:
    """Puts questions to a model.

    For questions for a last word, `likelihood` tells the likeliest token (top = 1), and one more for each stop word.
    """

    def __init__(
        self, likelihood: Likelihood, tokenizer: Tokenizer, context: int, stop_words: Sequence[int] = ()
    ) -> None:
        self._likelihood, self._tokenizer, self._context = likelihood, tokenizer, context
        self._begin, self._stop_words = beginning(tokenizer), stop_words

    def answers(self, asked: Iterable[tuple[Question, Sequence[str]]]) -> Iterator[Answer]:
        """The answer to each question, in their order; of its prompts the first that fits the context is used.

        Raises UserError for a choice that adds no token to its prompt.
        """
        remaining = iter(asked)
        while some := list(itertools.islice(remaining, PROMPTS_AT_ONCE)):
            chosen = [self._fitting(question, prompts) for question, prompts in some]
            bare = [self._rows(question.bare, question) if question.bare else [] for question, _ in some]
            groups = [
                group for (own, *_), without in zip(chosen, bare, strict=True) for group in (own, without) if group
            ]
            found = self._likelihood.after(groups)
            for (question, _), (own, shots, cut), without in zip(some, chosen, bare, strict=True):
                scored = [question.end or choice for choice in question.choices]
                choices = [self._choice(*each) for each in zip(scored, own, next(found), strict=True)]
                unconditional = tuple(float(one.log_probs.sum()) for one in next(found)) if without else ()
                yield Answer(question, tuple(choices), unconditional, shots, cut)

    def _fitting(self, question: Question, prompts: Sequence[str]) -> tuple[list[Ending], int, bool]:
        """The rows of the first prompt that fits, how many shots it has, and whether even the last had to be cut."""
        for left, prompt in enumerate(prompts):
            rows = self._rows(prompt, question)
            if all(len(ids) <= self._context + 1 for ids, _ in rows):
                return rows, len(prompts) - 1 - left, False
        return [Ending(ids[-self._context - 1 :], count) for ids, count in rows], 0, True

    def _rows(self, prompt: str, question: Question) -> list[Ending]:
        """For each choice the tokens of prompt and choice, and how many of them are scored."""
        cuts = [(prompt + choice.removesuffix(question.end or choice), prompt + choice) for choice in question.choices]
        texts = list(dict.fromkeys(itertools.chain(*cuts)))
        encoded = dict(zip(texts, self._tokenizer.encode_batch(texts), strict=True))
        rows = []
        for choice, (before, ids) in zip(question.choices, ((encoded[a], encoded[b]) for a, b in cuts), strict=True):
            begun = np.concatenate([self._begin, ids]).astype(np.int64)
            count = len(ids) - len(before)
            if not 0 < count < len(begun) or count > self._context:
                what = f"the choice {shortened(choice)} after {shortened(prompt[-40:])} has {count} tokens of its own"
                raise UserError(f"{what}: expected 1 to the context of {self._context}, after at least one other")
            rows.append(Ending(begun, count))
        return rows

    def _choice(self, text: str, ending: Ending, found: TokenProbs) -> Choice:
        top, own = found.top_ids, ending.ids[-ending.asked :]
        nats, size = float(found.log_probs.sum()), len(text.encode())
        if not top.shape[1]:
            return Choice(nats, len(own), size)
        likeliest, stopped = top[:, 0] == own, np.isin(top, self._stop_words)
        allowed = top[np.arange(len(own)), stopped.argmin(axis=1)]  # the likeliest that is no stop word
        return Choice(nats, len(own), size, bool(likeliest.all()), bool(likeliest[-1]), bool((allowed == own).all()))


def beginning(tokenizer: Tokenizer) -> list[int]:
    """What comes before every text: what the tokenizer itself puts there; of lmjax's own, the end of the one before."""
    return added_before(tokenizer) if tokenizer.kind == "huggingface" else [tokenizer.eos_id]


def added_before(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer itself puts before every text, without the end that it puts behind."""
    with_specials = getattr(tokenizer, "encode_with_specials", None)
    ids = with_specials("") if with_specials else []
    behind = ids[-1:] == [tokenizer.eos_id] != [getattr(tokenizer, "bos_id", None)]
    return ids[:-1] if behind else ids
