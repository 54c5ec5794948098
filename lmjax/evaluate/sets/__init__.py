"""The sets of questions, by name: a module for each family, with the readers of its published files."""

from __future__ import annotations

from lmjax.evaluate.questions import QuestionSet
from lmjax.evaluate.sets import endings, examinations, fewclue, judgements, last_words, pronouns, written

SETS: dict[str, QuestionSet] = {
    **endings.SETS,
    **examinations.SETS,
    **last_words.SETS,
    **pronouns.SETS,
    **judgements.SETS,
    **written.SETS,
    **fewclue.SETS,
}
