"""Precision, recall and F1 of entities: tags that are right and tags that were found in, numbers out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmjax.data.tag_schemes import entities_of, scheme_of


@dataclass(frozen=True)
class EntityCounts:
    """How many entities there are, how many were found, and how many of these are right: words and kind."""

    gold: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        """The share of the entities found that are right; 0 where none was found, as conlleval has it."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """The share of the entities that were found; 0 where there are none, as conlleval has it."""
        return self.right / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where nothing is right."""
        return 2 * self.right / (self.gold + self.found) if self.right else 0.0


Tags = Sequence[Sequence[str]]  # of each sentence


def entity_counts(gold: Tags, found: Tags, scheme: str = "") -> tuple[EntityCounts, dict[str, EntityCounts]]:
    """The counts over all sentences, and those of each kind, in the order of their names.

    Entities are read as `entities_of` reads them: as conlleval, or strictly by `scheme`. Raises ValueError for another
    number of sentences or of words.
    """
    rights: Counter[str] = Counter()
    golds: Counter[str] = Counter()
    founds: Counter[str] = Counter()
    for expected, predicted in zip(gold, found, strict=True):
        if len(expected) != len(predicted):
            raise ValueError(f"{len(predicted)} tags of a sentence of {len(expected)} words")
        a, b = (set(entities_of(tags, scheme)) for tags in (expected, predicted))
        for counter, entities in ((golds, a), (founds, b), (rights, a & b)):
            counter.update(entity.kind for entity in entities)
    kinds = sorted({*golds, *founds})
    total = EntityCounts(golds.total(), founds.total(), rights.total())
    return total, {kind: EntityCounts(golds[kind], founds[kind], rights[kind]) for kind in kinds}


def entity_metrics(gold: Tags, found: Tags) -> dict[str, float]:
    """The numbers of an evaluation, from 0 to 1.

    `accuracy` of the words' tags; for tags that write entities `precision`, `recall` and `f1` as conlleval, `f1_KIND`
    of each kind, and `strict_precision`, `strict_recall`, `strict_f1` by the scheme of the right tags.
    """
    words = sum(map(len, gold))
    same = sum(a == b for pair in zip(gold, found, strict=True) for a, b in zip(*pair, strict=True))
    metrics = {"accuracy": same / words if words else 0.0}
    if scheme := scheme_of(gold):
        total, kinds = entity_counts(gold, found)
        strict, _ = entity_counts(gold, found, scheme)
        metrics |= {"precision": total.precision, "recall": total.recall, "f1": total.f1}
        metrics |= {f"f1_{kind}": counts.f1 for kind, counts in kinds.items()}
        metrics |= {"strict_precision": strict.precision, "strict_recall": strict.recall, "strict_f1": strict.f1}
    return metrics


def tag_record(
    words: Sequence[str],
    tags: Sequence[str],
    probabilities: Sequence[float],
    text: str | None = None,
    between: str = " ",
) -> dict[str, Any]:
    """What a JSONL file says of a sentence: words, tags, their probabilities, and the entities that the tags write.

    Entities have their kind, text, first word and the word behind the last one, characters [begin, end) of `text`,
    which has the words in their order, and the mean probability of their tags. Without a text, it is the words with
    `between` between them.
    """
    text = between.join(words) if text is None else text
    places, end = [], 0
    for word in words:
        begin = text.index(word, end)
        end = begin + len(word)
        places.append((begin, end))
    entities = []
    for kind, first, end in entities_of(tags):
        a, b = places[first][0], places[end - 1][1]
        mean = sum(probabilities[first:end]) / (end - first)
        found = {"kind": kind, "text": text[a:b], "begin": a, "end": b, "words": [first, end], "probability": mean}
        entities.append(found)
    return {
        "text": text,
        "words": list(words),
        "tags": list(tags),
        "probabilities": list(probabilities),
        "entities": entities,
    }
