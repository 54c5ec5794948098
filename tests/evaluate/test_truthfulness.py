"""TruthfulQA: the answers of a cell, the prompts, and MC1 and MC2 of known log-probabilities."""

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate.answers import Examiner
from lmjax.evaluate.likelihood import TokenProbs
from lmjax.evaluate.truthfulness import (
    FORMS,
    INSTRUCTION,
    SOLVED,
    Asked,
    fitting,
    prompts,
    read_truthfulqa,
    split_answers,
    truth,
    truthfulness,
)
from lmjax.tokenizers.byte import ByteTokenizer

HEADER = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers\n"


class Bytes:
    """A likelihood to which a token has the log-probability of minus its id / 100, wherever it stands."""

    def of(self, sequences):
        for ids in sequences:
            own = -np.asarray(ids[1:], float) / 100
            yield TokenProbs(own, np.zeros((len(own), 1), int), np.zeros((len(own), 1)))

    def after(self, groups):
        for group in groups:
            found = self.of(ids for ids, _ in group)
            yield [TokenProbs(*(part[-asked:] for part in one)) for (_, asked), one in zip(group, found, strict=True)]


def table(folder, text, header=HEADER):
    path = folder / "part.csv"
    path.write_text(header + text, encoding="utf-8")
    return [path]


def test_answers_stand_between_semicolons_and_end_with_one_period():
    assert split_answers(" No; So. ;; It is ") == ["No.", "So.", "It is."]
    assert split_answers(" ; ") == []


def test_a_best_answer_is_one_of_the_correct_ones_and_a_question_without_incorrect_ones_is_left_out(tmp_path):
    text = 'A,B,Why?,No,"So; No.",Yes; It is\nA,B,Who?,I,Me,You\nA,B,What?,It,It, ;\n'
    found = read_truthfulqa(table(tmp_path, text))
    assert found.questions == [
        Asked("Why?", ("So.", "No.", "Yes.", "It is."), 2, 1),
        Asked("Who?", ("I.", "Me.", "You."), 2, 0),
    ]
    assert found.left_out == [f"{tmp_path / 'part.csv'}:4: nothing in 'Incorrect Answers'"]


def test_a_column_more_a_mark_before_the_header_and_a_cell_of_several_lines_are_read(tmp_path):
    text = '"Where\nto?",No,No,Yes,http\n'
    (one,) = read_truthfulqa(
        table(tmp_path, text, "\ufeffQuestion,Best Answer,Correct Answers,Incorrect Answers,Source\n")
    ).questions
    assert one == Asked("Where\nto?", ("No.", "Yes."), 1, 0)


def test_a_question_with_an_answer_beyond_the_context_is_left_out(tmp_path):
    found = read_truthfulqa(table(tmp_path, f"A,B,Why?,No,No,{'x' * 20}\nA,B,Who?,I,I,You\n"))
    some = fitting(found, ByteTokenizer(), 22)
    assert [one.question for one in some.questions] == ["Who?"]
    assert some.left_out == ["Why?: an answer of 22 tokens, for a context of 22"]
    assert fitting(found, ByteTokenizer(), 23) == found
    with pytest.raises(UserError, match="truthfulqa: no question is left of 2"):
        fitting(found, ByteTokenizer(), 4)


@pytest.mark.parametrize(
    ("header", "text", "message"),
    [
        (
            "Question,Best Answer,Correct\n",
            "a,b,c\n",
            r"part\.csv:2: no column 'Correct Answers' and 'Incorrect Answers' among 'Question'",
        ),
        (HEADER, "", r"part\.csv: it has no row; expected a header with Question, "),
        (HEADER, "A,B,C\n", r"part\.csv:2: expected 6 cells as in the header, found 3"),
        (HEADER, "A,B,What?,It,It,\n", r"no question is left of 1; .*:2: nothing in 'Incorrect Answers'"),
    ],
)
def test_another_table_is_said_to_be_one(tmp_path, header, text, message):
    with pytest.raises(UserError, match=message):
        read_truthfulqa(table(tmp_path, text, header))


def test_the_prompts_are_the_papers_and_lose_solved_questions_but_not_the_instruction():
    alone = "Q: Why?\nA:"
    assert prompts("Why?", "question alone") == [alone]
    primed = prompts("Why?", "QA prompt")
    assert len(primed) == 7 and primed[-1] == alone
    assert primed[0].startswith(
        "Q: What is human life expectancy in the United States?\nA: Human life expectancy in the"
    )
    assert primed[0].endswith("A: The 1992 Olympics were held in Barcelona, Spain.\n\nQ: Why?\nA:")
    instructed = prompts("Why?", "instruction and QA prompt")
    assert instructed[0] == f"{INSTRUCTION}\n\n{primed[0]}"
    assert instructed[-1] == f"{INSTRUCTION}\n\n{alone}"


def test_mc1_asks_whether_the_best_answer_beats_every_incorrect_one_and_mc2_for_the_mass_of_the_correct():
    log_probs = np.log([0.1, 0.3, 0.2, 0.05])
    assert truth(log_probs, 2, 0) == (0.0, pytest.approx(0.4 / 0.65))  # 0.3 is correct, but not the best answer
    assert truth(log_probs, 2, 1) == (1.0, pytest.approx(0.4 / 0.65))
    assert truth(log_probs - 5000.0, 2, 1) == (1.0, pytest.approx(0.4 / 0.65))  # exp of them is 0


def test_a_tie_is_no_truth_and_a_correct_answer_alone_against_one_is_compared():
    assert truth([-2.0, -2.0], 1, 0) == (0.0, 0.5)
    assert truth([-2.0, -2.0 - np.log(3)], 1, 0) == (1.0, pytest.approx(0.75))


def test_each_form_of_prompt_has_its_means_and_counts_what_was_cut(tmp_path):
    found = read_truthfulqa(table(tmp_path, "A,B,Why?,No,No; So.,Yes; It is\nA,B,Who?,yy,yy,No\nA,B,Who?,No,No,oN\n"))
    parts = list(truthfulness(found, Examiner(Bytes(), ByteTokenizer(), 128)))
    scores = [[-sum(f" {choice}".encode()) / 100 for choice in one.choices] for one in found.questions]
    mc1 = [float(own[one.gold] > max(own[one.correct :])) for own, one in zip(scores, found.questions, strict=True)]
    mass = [np.exp(own) for own in scores]
    mc2 = [own[: one.correct].sum() / own.sum() for own, one in zip(mass, found.questions, strict=True)]
    assert mc1 == [1.0, 0.0, 0.0]  # the last is a tie: the same letters
    for form, part in zip(FORMS, parts, strict=True):
        one, two = part.measures
        assert (one.set, one.measure, one.of, one.examples) == ("truthfulqa", "mc1", form, 3)
        assert one.mean == pytest.approx((1 / 3, np.std(mc1, ddof=1) / np.sqrt(3)))
        assert two.mean == pytest.approx((np.mean(mc2), np.std(mc2, ddof=1) / np.sqrt(3)))
        assert part.counts["ties"] == 1
        assert [each["mc2"] for each in part.examples] == pytest.approx(mc2)
    room = [part.counts["with a shorter prompt"] for part in parts]
    assert room == [0, 3, 3]  # the last solved question has 85 bytes
    shots = parts[1].examples[0]["shots"]
    assert 0 < shots < len(SOLVED)
    assert [part.counts["cut"] for part in parts] == [0, 0, 3]  # the instruction has more than 128 bytes
