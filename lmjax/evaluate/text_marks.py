"""How a written answer is marked: numbers from 0 to 1, by the text and the answers that are right."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

UNANSWERABLE = "unanswerable"  # what stands for the answer of a question that has none

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def mark_squad(text: str, references: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of words: of the references the best (Rajpurkar et al. 2018, as the official script).

    Words are in lower case, without punctuation and articles. Without a reference only an empty answer, or the word
    "unanswerable", is right.
    """
    found = normalised(text)
    found = [] if found == [UNANSWERABLE] else found
    golds = [words for words in map(normalised, references) if words] or [[]]
    exact = max(float(found == words) for words in golds)
    return {"exact": exact, "f1": max(f1_of(found, words) for words in golds)}


def normalised(text: str) -> list[str]:
    """The words of an answer, as the official script of SQuAD compares them."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def f1_of(found: Sequence[str], words: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words that are counted; where one text has none, whether both do."""
    if not found or not words:
        return float(found == words)
    return _harmonic((Counter(found) & Counter(words)).total(), found, words)


def mark_number(text: str, references: Sequence[str]) -> dict[str, float]:
    """Whether the number after #### is right (Cobbe et al. 2021), and whether the last number is."""
    _, marked, after = text.rpartition("####")
    stated = _NUMBER.match(after.strip().lstrip("$")) if marked else None
    last = _NUMBER.findall(text)
    rights = {_value(number) for reference in references for number in _NUMBER.findall(reference)}
    return {
        "exact": float(stated is not None and _value(stated[0]) in rights),
        "last_number": float(bool(last) and _value(last[-1]) in rights),
    }


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def mark_overlap(text: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1 and ROUGE-L, each as F1, of words in lower case (Lin 2004): of the references the best."""
    found = re.findall(r"\w+", text.lower())
    golds = [re.findall(r"\w+", reference.lower()) for reference in references]
    longest = (_harmonic(longest_common(found, words), found, words) for words in golds)
    return {"rouge_1": max(f1_of(found, words) for words in golds), "rouge_l": max(longest)}


def longest_common(found: Sequence[str], words: Sequence[str]) -> int:
    """The length of the longest sequence of words that both have in this order, with or without others between."""
    lengths = [0] * (len(words) + 1)  # of what has been read of `found`, and so many of `words`
    for word in found:
        before = lengths
        lengths = [0]
        for at, other in enumerate(words):
            lengths.append(before[at] + 1 if word == other else max(before[at + 1], lengths[at]))
    return lengths[-1]


def _harmonic(common: int, found: Sequence[str], words: Sequence[str]) -> float:
    return 2 * common / (len(found) + len(words)) if common else 0.0
