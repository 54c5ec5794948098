"""Exact match and F1 of answers: by hand, by an independent reading of the scripts, and by their stored outputs."""

# ruff: noqa: RUF001  (Chinese punctuation is meant)

import json
import string

import numpy as np
import pytest

from lmjax.evaluate.squad import best_threshold, cmrc_2018, question_metrics, squad_1, squad_2


@pytest.mark.parametrize(
    ("text", "references", "exact", "f1"),
    [
        ("the Chicago Bears.", ["Chicago Bears", "Bears"], 1, 1),
        ("in March, 1941", ["1941", "March 1941"], 0, 0.8),  # 2 of 3 words, both of 2; the first gives 1 of 3 and of 1
        ("March March", ["March"], 0, 2 / 3),  # words are counted
        ("x", ["y"], 0, 0),
    ],
)
def test_both_versions_of_squad_take_the_best_reference(text, references, exact, f1):
    assert squad_1(text, references) == squad_2(text, references) == (exact, pytest.approx(f1))


def test_the_versions_differ_where_no_word_is_left():
    assert squad_1("A.", ["the"]) == (1, 0)  # the script of 1.1 counts common words, and there are none
    assert squad_2("A.", ["the"]) == (1, 1)
    assert squad_2("", ["the", "x"]) == (0, 0)  # a reference without a word does not make "" right beside another
    assert squad_1("", ["the", "x"]) == (1, 0)
    assert squad_2("", []) == squad_2("the", []) == (1, 1)
    assert squad_2("x", []) == (0, 0)


@pytest.mark.parametrize(
    ("text", "references", "exact", "f1"),
    [
        ("眉州眉山人", ["眉州眉山人。"], 1, 1),  # the list of punctuation has the full stop
        ("眉山人", ["眉州眉山人"], 0, 2 * 3 / (3 + 5)),
        ("眉州山人", ["眉州眉山人"], 0, 2 * 2 / (4 + 5)),  # the longest run is 眉州, or 山人
        ("Henry A. Walsh", ["henry a. walsh先生"], 0, 2 * 3 / (3 + 5)),  # words count as one, characters one by one
        ("1,234.5人", ["1,234.5 人"], 0, 1),  # a blank is in the text, and in no word
        ("wi-fi", ["WiFi"], 1, 1),
        ("（NFL）", ["(NFL)"], 0, 2 * 1 / (1 + 3)),  # of the brackets, only the wide ones are left out
        ("", ["眉州"], 0, 0),
        ("。", ["！"], 1, 0),
        ("眉州", ["杭州", "眉州"], 1, 1),
    ],
)
def test_cmrc_counts_the_longest_common_run(text, references, exact, f1):
    assert cmrc_2018(text, references) == (exact, pytest.approx(f1))


def test_an_evaluation_counts_questions_without_answers_apart_and_below_the_threshold_alone():
    texts, references = ["Rome", "Paris", "x", ""], [["Rome"], ["Paris France"], [], []]
    found = question_metrics(texts, references, "squad_2", [-1.0, 2.0, -3.0, 0.5], threshold=0.0)
    assert found == {
        "exact": 0.5,  # Rome, and no answer
        "f1": 0.5,  # Paris is not given: its null score is above the threshold
        "HasAns_exact": 0.5,
        "HasAns_f1": 0.5,
        "NoAns_exact": 0.5,
        "NoAns_f1": 0.5,
        "best_exact": 0.5,  # no answer at all, 2 of 4, which no other threshold surpasses
        "best_exact_threshold": -4.0,
        "best_f1": pytest.approx((1 + 2 / 3 + 1) / 4),  # all answers but that of the third question
        "best_f1_threshold": 3.0,  # above all scores
    }
    assert question_metrics(texts[:1], references[:1], "squad_1") == {"exact": 1.0, "f1": 1.0}


def test_the_best_threshold_is_that_of_trying_all_and_takes_equal_scores_together():
    rng = np.random.default_rng(3)
    for _ in range(200):
        count = rng.integers(1, 12)
        scores = rng.integers(-4, 5, count) / 2.0
        has, marks, answered = rng.random(count) < 0.6, rng.random(count), rng.random(count) < 0.8
        marks = np.where(has, marks, ~answered)
        tried = {
            threshold: np.where(scores > threshold, ~has, marks).mean() for threshold in (scores.min() - 1, *scores)
        }
        best, threshold = best_threshold(marks, scores, has, answered)
        assert best == pytest.approx(max(tried.values()), abs=1e-12)
        lowest = min(each for each, mean in tried.items() if mean >= best - 1e-12)
        above = min(scores[scores > lowest], default=lowest + 2)
        assert threshold == (lowest if lowest < scores.min() else (lowest + above) / 2)


def stored(number, passage, answers):
    """The stored prediction of a question: an answer, a cut of one or of the passage, or none, by its number alone."""
    first, last = (answers or [passage[:9]])[0], (answers or [passage[9:30]])[-1]
    cut = passage[number % 50 : number % 50 + 25]
    whole = f"The {first.upper()}!", first[: len(first) // 2 + 1], cut, "", f"{first} {passage[:12]}"
    return "" if not answers and number % 3 == 0 else (first, last, *whole)[number % 7]


def rows_of(path):
    """The questions of a file, read without the project: references and stored predictions."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    rows = [(row, paragraph["context"]) for paragraph in paragraphs for row in paragraph["qas"]]
    references = [[answer["text"] for answer in row["answers"]] for row, _ in rows]
    return [stored(number, rows[number][1], references[number]) for number in range(len(rows))], references


# What evaluate-v2.0.py, evaluate-v1.1.py and cmrc2018_evaluate.py say of the stored predictions, in percent.
OFFICIAL = {
    "squad_v2/squad2_dev.json": (
        "squad_2",
        {
            "exact": 47.305075876504446,
            "f1": 51.62718289538604,
            "HasAns_exact": 26.455624646693046,
            "HasAns_f1": 35.793721326266336,
            "NoAns_exact": 65.27033609352168,
            "NoAns_f1": 65.27033609352168,
            "best_exact": 53.81998953427525,
            "best_f1": 53.906063411557916,
        },
    ),
    "squad_v1_en/xquad_en_dev.json": ("squad_1", {"exact": 43.524096385542165, "f1": 58.601053265764776}),
    "cmrc2018/cmrc2018_dev_a.json": ("cmrc", {"exact": 30.387205387205388, "f1": 61.274861637572585}),
}


@pytest.mark.data
@pytest.mark.parametrize("name", OFFICIAL)
def test_stored_predictions_score_as_the_official_scripts_say(shared_data, name):
    folder, file = name.split("/")
    marks, official = OFFICIAL[name]
    texts, references = rows_of(shared_data(folder) / file)
    if marks == "squad_2":
        nulls = [round(((number * 7919) % 10007) / 10007 - 0.4, 6) for number in range(len(texts))]
        found = question_metrics(texts, references, marks, nulls, threshold=0.2)
        for threshold, of_script in (("best_exact_threshold", -0.391406), ("best_f1_threshold", -0.390507)):
            following = min(null for null in nulls if null > of_script)
            assert found.pop(threshold) == pytest.approx((of_script + following) / 2, abs=1e-12)
    else:
        found = question_metrics(texts, references, marks)
    assert {key: 100 * value for key, value in found.items()} == pytest.approx(official, abs=1e-9)


def plainly(text, references):
    """SQuAD 2.0's marks by its definitions, written anew: each word of the prediction is used up once."""
    kept = [
        [w for w in "".join(c for c in t.lower() if c not in string.punctuation).split() if w not in ("a", "an", "the")]
        for t in (text, *references)
    ]
    found, golds = kept[0], [words for words in kept[1:] if words] or [[]]
    exact = f1 = 0.0
    for words in golds:
        left, common = list(words), 0
        for word in found:
            if word in left:
                left.remove(word)
                common += 1
        exact = max(exact, float(found == words))
        both = len(found) and len(words)
        f1 = max(f1, 2 * common / (len(found) + len(words)) if both else float(not found and not words))
    return exact, f1


def test_marks_are_those_of_the_definitions_on_random_words():
    rng = np.random.default_rng(0)
    words = ["the", "A", "Rome,", "rome", "(x)", "-", "U.S.", "y"]
    for _ in range(500):
        text, *references = (" ".join(rng.choice(words, rng.integers(0, 5))) for _ in range(rng.integers(1, 4)))
        assert squad_2(text, references) == pytest.approx(plainly(text, references)), (text, references)
