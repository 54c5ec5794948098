"""A field that changes what a conversation means is read or refused by its name, never dropped; shapes of odd sets."""

import json

import pytest

from lmjax.data.conversation_files import read_records
from lmjax.data.conversations import Record, Turn
from lmjax.errors import UserError
from lmjax.settings import DialogueSourceSettings

HH = "\n\nHuman: q\n\nAssistant:"
S, Q, A = Turn("system", "S"), Turn("user", "q"), Turn("assistant", "a")
ASKED = {"role": "user", "content": "q"}
SAID, OTHER = ({"role": "assistant", "content": text} for text in ("a", "b"))
EARLIER = (Turn("user", "old q"), Turn("assistant", "old a"))


@pytest.fixture
def read(tmp_path):
    """A function that writes rows as JSON lines and reads them as a kind."""

    def call(rows, kind, **settings):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_records(DialogueSourceSettings(path=str(path), **settings), kind)

    return call


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"system": "S", "chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]}, (S, Q)),
        ({"system": "S", "chosen": HH + " a", "rejected": HH + " b"}, (S, Q)),
        ({**PAIR, "system_prompt": "S"}, (S, Q)),
        ({**PAIR, "system_message": "S", "system_prompt": None}, (S, Q)),
        ({**PAIR, "history": [["old q", "old a"]], "system": "S"}, (S, *EARLIER, Q)),
        ({**PAIR, "history": [{"from": "human", "value": "old q"}, {"from": "gpt", "value": "old a"}]}, (*EARLIER, Q)),
        ({"question": "q", "context": "c", "chosen": "a", "rejected": "b"}, (Turn("user", "q\n\nc"),)),
        ({**PAIR, "input": "i"}, (Turn("user", "q\n\ni"),)),
        ({"input": "q", "chosen": "a", "rejected": "b"}, (Q,)),
        ({"instruction": "", "input": "q", "chosen": "a", "rejected": "b"}, (Q,)),
        ({"prompt": " ", "question": "q", "chosen": "a", "rejected": "b"}, (Q,)),
        ({"prompt": "q", "chosen": HH + " a", "rejected": HH + " b"}, (Q,)),
        ({"prompt": HH, "chosen": " a", "rejected": " b"}, (Q,)),
        ({"prompt": HH, "response": " a", "chosen": " a", "rejected": " b"}, (Q,)),
        ({"prompt": HH[2:], "chosen": " a", "rejected": " b"}, (Q,)),
        ({"chosen": HH[2:] + " a", "rejected": HH[2:] + " b"}, (Q,)),
        ({"prompt": "q", "messages": [ASKED, SAID], "chosen": [ASKED, SAID], "rejected": [ASKED, OTHER]}, (Q,)),
        ({"prompt": "q", "chosen": [SAID], "rejected": [OTHER]}, (Q,)),
        ({"prompt": [{"role": "system", "content": "S"}, ASKED], "chosen": [SAID], "rejected": [OTHER]}, (S, Q)),
        (
            {"prompt": "old q", "chosen": [{"role": "assistant", "content": "old a"}, ASKED, SAID], "rejected": None},
            (*EARLIER, Q),
        ),
        (
            {
                "prompt": [{"role": t.role, "content": t.text} for t in (*EARLIER, Q)],
                "chosen": [ASKED, SAID],
                "rejected": [ASKED, OTHER],
            },
            (*EARLIER, Q),
        ),
    ],
)
def test_what_stands_before_an_answer_is_read_wherever_the_record_has_it(read, row, prompt):
    if row["rejected"] is None:
        row = {**row, "rejected": [*row["chosen"][:-1], OTHER]}
    assert read([row], "ranking").records == [Record(prompt, ("a", "b"), (0, 1))]
    assert read([row], "demonstration").records == [Record((*prompt, A))]
    assert read([row], "prompt").records == [Record(prompt)]
    assert read([row], "response").records == [Record(prompt, ("a",)), Record(prompt, ("b",))]


def test_empty_lists_in_cells_are_nothing_in_a_history_and_an_answer_in_an_answer(read):
    row = {"instruction": "q", "output": "[]", "history": "[]", "tools": "[]"}
    assert read([row], "demonstration").records == [Record((Q, Turn("assistant", "[]")))]
    with pytest.raises(UserError, match="field 'response' = 'a' has no place beside"):
        read([{**row, "response": "a"}], "demonstration")


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        ({"role": "Assistant", "content": "a"}, A),
        ({"role": "model", "content": "a"}, A),
        ({"from": "GPT", "value": "a"}, A),
        ({"role": "assistant", "content": [{"type": "text", "text": "a"}]}, A),
        ({"role": "assistant", "content": ["a", {"text": "b"}]}, Turn("assistant", "ab")),
        ({"role": "assistant", "content": "a", "weight": 1, "tool_calls": [], "name": None}, A),
        ({"role": "assistant", "content": "a", "train": True}, A),
    ],
)
def test_messages_are_read_as_chat_services_write_them(read, message, turn):
    first = {"role": "developer", "content": "S"}
    asked = {"role": "USER", "content": "q", "weight": 0}
    assert read([{"messages": [first, asked, message]}], "demonstration").records == [Record((S, Q, turn))]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "tool", "content": "x"}, r"'messages\[1\]': role 'tool': conversations with tools are not read"),
        ({"role": "assistant", "content": None}, r"'messages\[1\]': a turn of the assistant is without text \(null\)"),
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]}, "a part of type 'image_url'"),
        ({"role": "assistant", "content": "a", "reasoning_content": "hm"}, r"'messages\[1\].reasoning_content' = 'hm'"),
        ({"role": "user", "content": "a", "name": "Ann"}, r"'messages\[1\].name' = 'Ann' is not read"),
        ({"role": "assistant", "content": "a", "weight": 0.5}, r"weight' = 0.5: expected true or false"),
        ({"role": "user", "content": "a", "train": True}, "a turn of the user is to be learned"),
    ],
)
def test_a_message_that_cannot_be_read_whole_is_refused_by_its_place(read, turn, message):
    with pytest.raises(UserError, match=r"data\.jsonl:1: .*" + message):
        read([{"messages": [ASKED, turn, SAID]}], "demonstration")


LOST = [
    ("demonstration", {"instruction": "q", "question": "other", "output": "a"}, "question"),
    ("demonstration", {"prompt": "q", "output": "a", "response": "other"}, "response"),
    ("demonstration", {"messages": [ASKED, SAID], "input": "i"}, "input"),
    ("demonstration", {"prompt": "q", "answer": "a", "tools": '[{"name": "f"}]'}, "tools"),
    ("demonstration", {"prompt": "q", "answer": "a", "images": ["a.png"]}, "images"),
    ("demonstration", {"prompt": "q", "answer": "a", "system": "S", "system_prompt": "T"}, "system_prompt"),
    ("demonstration", {"prompt": "q", "answer": "a", "reward": -3}, "reward"),
    ("ranking", PAIR | {"weight": 0}, "weight"),
    ("ranking", PAIR | {"response": "other"}, "response"),
    ("prompt", {"prompt": "q", "question": "other"}, "question"),
]


@pytest.mark.parametrize(("kind", "row", "field"), LOST)
def test_a_known_field_without_a_place_is_refused_by_name_unless_it_is_ignored(read, kind, row, field):
    with pytest.raises(
        UserError, match=rf"data\.jsonl:1: .*field '{field}' = .*would be lost; .*ignore = \('{field}',\)"
    ):
        read([row], kind)
    kept = {name: value for name, value in row.items() if name != field}
    assert read([row], kind, ignore=(field,)).records == read([kept], kind).records


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [ASKED, SAID], "chosen": "b", "rejected": "c"},
            "the prompt ends with another answer than that in field 'chosen'",
        ),
        ({"prompt": "other", "chosen": HH + " a", "rejected": HH + " b"}, "does not contain the prompt in 'prompt'"),
        (PAIR | {"score_chosen": 1, "score_rejected": 2}, "score_chosen = 1 is below score_rejected = 2"),
        (PAIR | {"history": "before"}, "'history' is str, expected a list"),
        (PAIR | {"history": [["one"]]}, r"expected \[question, answer\]"),
        ({"prompt": "q", "answers": [{"answer": "a", "rank": 1}], "ranks": [1]}, "'answers' holds objects"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(read, row, message):
    with pytest.raises(UserError, match=message):
        read([row], "ranking")


@pytest.mark.parametrize("bad", [False, 0, 0.0, "0", "false", "False"])
@pytest.mark.parametrize("field", ["label", "weight", "train"])
def test_bad_answers_are_not_imitated_and_are_counted(read, bad, field):
    rows = [{"prompt": "q", "completion": "BAD", field: bad}, {"prompt": "q", "completion": "a", field: 1}]
    records, skipped, left_out = read(rows, "demonstration")
    assert (records, skipped, left_out) == ([Record((Q, A))], [], {"not to be imitated": 1})
    assert len(read(rows, "prompt").records) == 2


def test_a_label_that_is_no_yes_or_no_is_refused(read):
    with pytest.raises(UserError, match="field 'label' = 'sports': expected true or false, 1 or 0; ignore it"):
        read([{"prompt": "q", "completion": "a", "label": "sports"}], "demonstration")


def test_labels_in_words_are_rewards_of_one_and_zero(read):
    rows = [{"prompt": "q", "completion": "a", "label": label} for label in ("true", "False", "2.5")]
    assert [record.reward for record in read(rows, "response").records] == [1.0, 0.0, 2.5]


def test_turns_of_no_weight_are_read_and_not_learned(read):
    bad, last = SAID | {"content": "bad", "weight": 0}, SAID | {"content": "last", "weight": 0}
    records = read([{"messages": [ASKED, bad, ASKED, SAID, ASKED, last]}], "demonstration").records
    assert records == [Record((Q, Turn("assistant", "bad", False), Q, A))]
    assert read([{"messages": [ASKED, last]}, {"messages": [ASKED, SAID]}], "demonstration").left_out.total() == 1


def test_ties_of_scores_are_dropped_and_counted_and_scores_are_rewards(read):
    rows = [PAIR | {"score_chosen": score, "score_rejected": 5} for score in (5.0, 8)]
    records, _, left_out = read(rows, "ranking")
    assert (len(records), left_out) == (1, {"ties": 1})
    assert [record.reward for record in read(rows[1:], "response").records] == [8.0, 5.0]
    with pytest.raises(UserError, match="found none in 1 records, 0 of them bad, 1 ties"):
        read(rows[:1], "ranking")


def test_messages_of_a_tree_that_failed_their_review_are_no_answers(read):
    replies = [{"role": "assistant", "text": text, "review_result": text == "a"} for text in ("spam", "a")]
    tree = {"role": "prompter", "text": "q", "replies": replies}
    records, _, left_out = read([{"prompt": tree}, {"prompt": tree | {"deleted": True}}], "demonstration")
    assert (records, left_out) == ([Record((Q, A))], {"removed": 1})


# ---- field maps ----


def test_a_field_map_says_what_a_sets_own_fields_hold(read):
    rows = [{"inputs": "q", "targets": "a", "persona": "S"}, {"inputs": "q", "targets": "a", "persona": None}]
    fields = {"prompt": "inputs", "answer": "targets", "system": "persona"}
    assert read(rows, "demonstration", fields=fields).records == [Record((S, Q, A)), Record((Q, A))]


def test_a_field_map_may_swap_names_and_gives_the_reward_function_the_files_own(read):
    row = {"prompt": "a", "answer": "q", "ground_truth": 3}
    fields = {"prompt": "answer", "answer": "prompt"}
    assert read([row], "demonstration", fields=fields).records == [Record((Q, A))]
    (prompt,) = read([row], "prompt", fields=fields).records
    assert (prompt, prompt.fields) == (Record((Q,)), row)
    assert prompt.where.endswith("data.jsonl:1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fields": {"prompt": "imputs"}}, "names a field 'imputs', which none of its 1 records has; .*'inputs'"),
        (
            {"fields": {"promt": "inputs"}},
            r"^DialogueSourceSettings\.fields = 'promt': expected a known place; did you mean 'prompt'",
        ),
        ({"fields": (("prompt", "inputs"), ("answer", "inputs"))}, "each field once"),
        ({"fields": (("prompt", "inputs"), ("prompt", "other"))}, "each place once"),
        ({"fields": {"prompt": 3}}, r"^DialogueSourceSettings\.fields = "),
        ({"fields": {"prompt": "inputs"}}, "field 'prompt' = 'p' has no place: the source's fields take 'prompt'"),
    ],
)
def test_a_field_map_that_does_not_fit_is_refused(read, settings, message):
    with pytest.raises(UserError, match=message):
        read([{"inputs": "q", "prompt": "p", "answer": "a"}], "demonstration", **settings)
