"""Does a model prefer what people prefer? Ranked responses compared by their log-likelihood, or by given scores.

In: rankings (lmjax/data/conversation_files.py), turns in the model's own format, and a function from tokens to their
log-probabilities. Out: the share of pairs of one prompt, of different ranks, that are in people's order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.data.conversations import Record
from lmjax.errors import UserError
from lmjax.evaluate.likelihood import Likelihood
from lmjax.evaluate.means import mean_over_groups
from lmjax.evaluate.measures import Measure, Part, preferred
from lmjax.generate.chat import TurnFormat
from lmjax.generate.decode import prompt_ids
from lmjax.tokenizers.tokenizer import Tokenizer

Response = tuple[np.ndarray, int]  # the tokens of prompt and response, and how many of them are the response's


def response_tokens(record: Record, turns: TurnFormat, tokenizer: Tokenizer) -> list[Response]:
    """The prompt with each of the answers.

    The end of an answer is not counted, so that a model which was never taught to end is measured alike. After a prompt
    of plain text a response begins with a blank, and both are encoded as one text, as in `Examiner`.
    """
    prompt = turns.prompt(record.turns, tokenizer)
    before, after = turns.around
    if isinstance(prompt, str):
        begun = prompt_ids(tokenizer, prompt)
        blank = "" if prompt[-1:].isspace() else " "
        whole = tokenizer.encode_batch([prompt + blank + answer for answer in record.answers])
        return [(np.asarray(ids, np.int64), len(ids) - len(begun)) for ids in whole]
    own = tokenizer.encode_batch([before + answer + after for answer in record.answers])
    return [(np.concatenate([prompt, ids]).astype(np.int64), len(ids)) for ids in own]


def orders(scores: Sequence[float], ranks: Sequence[int]) -> list[float]:
    """For each pair of different ranks 1 where the one of the lower rank scores higher, half for a tie, and 0."""
    pairs = itertools.combinations(sorted(zip(ranks, scores, strict=True), key=lambda pair: pair[0]), 2)
    return [preferred(better, worse) for (rank, better), (other, worse) in pairs if rank < other]


def by_likelihood(
    name: str, records: Sequence[Record], likelihood: Likelihood, turns: TurnFormat, tokenizer: Tokenizer
) -> Part:
    """Accuracies by log P(response | prompt), as a sum and per token. Records are rankings.

    A prompt that is longer than the context is read through windows (`Likelihood`). A ranking with a response that adds
    no token is left out. Raises UserError where none is left.
    """
    encoded = [response_tokens(record, turns, tokenizer) for record in records]
    used = [n for n, rows in enumerate(encoded) if all(0 < count < len(ids) for ids, count in rows)]
    found = likelihood.of(ids for n in used for ids, _ in encoded[n])
    examples = []
    for n in used:
        tokens = [count for _, count in encoded[n]]
        sums = [float(next(found).log_probs[-count:].sum()) for count in tokens]
        per_token = [log_prob / count for log_prob, count in zip(sums, tokens, strict=True)]
        scores = {"log_prob": sums, "log_prob_per_token": per_token}
        examples.append(_example(records[n], records[n].ranks, scores) | {"tokens": tokens})
    return _part(name, examples, ("log_prob", "log_prob_per_token"), {"left out": len(records) - len(used)})


def by_scores(name: str, records: Sequence[Record], scored: Iterable[tuple[Sequence[float], Sequence[int]]]) -> Part:
    """The accuracy of a reward model: for each record the scores of its answers, as far as they are read, and ranks."""
    pairs = zip(records, scored, strict=True)
    return _part(name, [_example(record, ranks, {"reward": scores}) for record, (scores, ranks) in pairs], ("reward",))


def _example(record: Record, ranks: Sequence[int], scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {"prompt": record.turns[-1].text, "responses": record.answers, "ranks": ranks, **scores}


def _part(name: str, examples: Sequence[dict[str, Any]], ways: Sequence[str], counts: Mapping[str, int] = {}) -> Part:
    """Of examples with `ranks` and, under the name of each way to score, scores."""
    measures, ties = [], {}
    for way in ways:
        groups = [own for each in examples if (own := orders(each[way], each["ranks"]))]
        if not groups:
            raise UserError(f"{name}: no two responses of different ranks are left; give other files")
        measures.append(Measure(name, way, "all", mean_over_groups(groups), sum(map(len, groups))))
        ties[f"ties by {way}"] = sum(own.count(0.5) for own in groups)
    return Part(tuple(measures), examples, {"rankings": len(examples), **counts, **ties})
