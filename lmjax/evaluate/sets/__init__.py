"""The sets of questions by name, and families of sets. A module has the readers of related published files."""

from __future__ import annotations

from lmjax.evaluate.questions import QuestionSet
from lmjax.evaluate.sets import completions, examinations, fewclue, judgements, last_words, pronouns, written

SETS: dict[str, QuestionSet] = {
    **completions.SETS,
    **examinations.SETS,
    **last_words.SETS,
    **pronouns.SETS,
    **judgements.SETS,
    **written.SETS,
    **fewclue.SETS,
}

FAMILIES = {"arc": ("arc_easy", "arc_challenge"), "fewclue": tuple(fewclue.SETS)}


def sets_of(names: str) -> tuple[str, ...]:
    """The names of the sets that are named, with commas; a family is all of its sets."""
    return tuple(own for name in names.split(",") for own in FAMILIES.get(name, (name,)))
