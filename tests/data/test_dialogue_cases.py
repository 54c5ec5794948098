"""Small files of conversations that were once read wrongly, beside the shared data: each is read whole, or refused."""

import re

import pytest

from lmjax.data.conversation_files import read_records
from lmjax.errors import UserError
from lmjax.settings import DialogueSourceSettings

LETTERS = {"system": "S", "user": "U", "assistant": "A"}

CASES = [  # file, kind, and the records in short, an answer that is not learned as "a:", or why they are refused
    ("formats/alpaca_empty_instruction.jsonl", "demonstration", ["U:Translate: hola A:hello"]),
    (
        "formats/alpaca_history.jsonl",
        "demonstration",
        ["S:Be brief. U:Colour of cherries? A:Red. U:And of pears? A:Green."],
    ),
    ("formats/caps_roles.jsonl", "demonstration", ["U:Hi A:Ahoy"]),
    ("formats/chosen_has_other_system.jsonl", "ranking", "chosen and rejected differ before their last answer"),
    ("formats/chosen_list_answer_only_two_assistants.jsonl", "ranking", ["U:Hi A:a1 U:more -> a2=0 b2=1"]),
    (
        "formats/chosen_str_and_messages_field.jsonl",
        "ranking",
        "the prompt ends with another answer than that in field 'chosen'",
    ),
    ("formats/csv_empty_cells.csv", "demonstration", ["U:Hi A:Ahoy"]),
    ("formats/csv_extra_column.csv", "demonstration", "expected 2 cells as in the header, found 3"),
    ("formats/csv_label_0.csv", "demonstration", ["U:Hi A:GOOD"]),
    ("formats/csv_missing_column.csv", "demonstration", "expected 2 cells as in the header, found 1"),
    ("formats/csv_nul.csv", "demonstration", ["U:Hi A:a\x00b"]),
    ("formats/csv_quoted_newline.csv", "demonstration", ["U:Hi A:Aho\ny there", "U:Ho A:Yes"]),
    ("formats/csv_semicolon.csv", "demonstration", "no answer"),
    ("formats/csv_u2028.csv", "demonstration", ["U:Hi A:Aho\u2028y there", "U:Ho A:Yes"]),
    ("formats/developer_role.jsonl", "demonstration", ["S:S U:Hi A:A"]),
    ("formats/dolly_context.jsonl", "demonstration", ["U:Q\n\nCTX A:A"]),
    ("formats/dpo_str_with_prompt_list.jsonl", "ranking", ["U:Hi -> a=0 b=1"]),
    ("formats/empty_output_then_response.jsonl", "demonstration", ["U:Hi A:Ahoy"]),
    ("formats/empty_user.jsonl", "demonstration", "field 'messages': the prompt is empty"),
    ("formats/gsm8k.jsonl", "demonstration", ["U:Q A:work #### 4"]),
    ("formats/hh_diverge_earlier.jsonl", "ranking", "chosen and rejected differ before their last answer"),
    ("formats/hh_empty_rejected.jsonl", "ranking", "field 'rejected[1]': the answer is empty"),
    ("formats/hh_rejected_ends_with_human.jsonl", "ranking", ["U:Hi -> One=0 Uno=1"]),
    ("formats/hh_stripped.jsonl", "ranking", ["U:Hi -> a=0 b=1"]),
    ("formats/hh_stripped_with_prompt.jsonl", "ranking", ["U:Hi -> a=0 b=1"]),
    ("formats/json_dict.json", "demonstration", "no answer"),
    ("formats/json_lines_in_json.json", "demonstration", ["U:Hi A:a", "U:Ho A:b"]),
    ("formats/kto_bool.jsonl", "demonstration", ["U:Hi A:GOOD"]),
    ("formats/kto_int.jsonl", "demonstration", ["U:Hi A:GOOD"]),
    ("formats/llamafactory_sharegpt_ranking.jsonl", "ranking", ["U:Hi -> Ahoy=0 Hm=1"]),
    ("formats/message_name_fields.jsonl", "demonstration", "field 'messages[0].name' = 'x' is not read"),
    (
        "formats/nectar.jsonl",
        "ranking",
        "field 'answers' holds objects, expected strings, with ranks or scores in a field",
    ),
    ("formats/oasst_flat_message.jsonl", "demonstration", "no answer"),
    ("formats/oasst_tree_assistant_role_reply_prompter.jsonl", "prompt", ["U:Hi"]),
    ("formats/oasst_tree_deleted_root.jsonl", "demonstration", "found none in 1 records, 0 of them bad, 1 removed"),
    ("formats/oasst_tree_review_fail.jsonl", "demonstration", ["U:Hi A:good"]),
    ("formats/oasst_tree_same_rank.jsonl", "demonstration", ["U:Hi A:a"]),
    ("formats/openai_parts.jsonl", "demonstration", ["U:Hi A:Ahoy"]),
    (
        "formats/openai_tool.jsonl",
        "demonstration",
        "field 'messages[1]': a turn of the assistant is without text (null); calls of tools are not read",
    ),
    ("formats/openai_weight.jsonl", "demonstration", ["U:Hi a:BAD U:Again A:GOOD"]),
    ("formats/orca_dpo_system_question.jsonl", "ranking", ["S:Speak like a pirate. U:Hi -> Ahoy=0 Hello=1"]),
    ("formats/output_list_ranking.jsonl", "ranking", "no answers"),
    (
        "formats/plain_prompt_column_and_whole_conversation.jsonl",
        "ranking",
        ["U:Which fruit is red? -> A cherry.=0 The sky.=1"],
    ),
    ("formats/pm_pairs_score_tie.jsonl", "ranking", "found none in 1 records, 0 of them bad, 1 ties"),
    ("formats/prompt_completion_messages.jsonl", "demonstration", ["U:Hi A:Ahoy"]),
    ("formats/prompt_completion_opens_answer.jsonl", "demonstration", ["U:Which fruit is red? A:A cherry."]),
    ("formats/prompt_empty_and_question.jsonl", "demonstration", ["U:Hi A:Ahoy"]),
    ("formats/prompt_messages_chosen_answer_only.jsonl", "ranking", ["S:Speak like a pirate. U:Hi -> Ahoy=0 Hello=1"]),
    ("formats/prompt_msgs_and_full_chosen_longer_prompt.jsonl", "ranking", ["U:A A:B U:C -> D=0 E=1"]),
    ("formats/question_with_context_field.jsonl", "demonstration", ["U:Q\n\nCTX A:A"]),
    ("formats/ranks_all_tied.jsonl", "ranking", "all 3 answers are ranked equal"),
    ("formats/ranks_ties.jsonl", "ranking", ["U:Hi -> a=0 b=0 c=1"]),
    ("formats/rewarded_list.jsonl", "ranking", ["U:Hi -> a=0 b=1"]),
    ("formats/rm_static_prompt_opens_answer.jsonl", "ranking", ["U:Which fruit is red? -> A cherry.=0 The sky.=1"]),
    ("formats/role_model.jsonl", "demonstration", ["U:Hi A:Ahoy"]),
    ("formats/same_answers_in_ranking.jsonl", "ranking", ["U:Hi -> a=0 a=1 c=2"]),
    ("formats/scores_nan.jsonl", "ranking", "field 'scores' = nan: expected a finite number"),
    ("formats/sharegpt_system_field.jsonl", "demonstration", ["S:Speak like a pirate. U:Hi A:Ahoy"]),
    ("formats/sharegpt_system_field_and_turn.jsonl", "demonstration", ["S:A S:B U:Hi A:Ahoy"]),
    (
        "formats/sharegpt_tool.jsonl",
        "demonstration",
        "field 'conversations[1]': role 'function_call': conversations with tools are not read",
    ),
    ("formats/shp.jsonl", "ranking", "no answers"),
    ("formats/starts_with_gpt.jsonl", "demonstration", ["A:Welcome U:Hi A:Ahoy"]),
    ("formats/summaries.jsonl", "ranking", "no answers"),
    ("formats/surrogate.jsonl", "demonstration", "field 'response' is not valid Unicode"),
    ("formats/system_field_beside_messages.jsonl", "ranking", ["S:Speak like a pirate. U:Hi -> Ahoy=0 Hello=1"]),
    ("formats/system_only.jsonl", "demonstration", "field 'messages': the prompt is empty"),
    ("formats/system_prompt_field.jsonl", "demonstration", ["S:Speak like a pirate. U:Hi A:Ahoy"]),
    ("formats/thread_with_trailing_user.jsonl", "demonstration", ["U:Hi A:A"]),
    ("formats/two_users.jsonl", "demonstration", ["U:a U:b A:Ahoy"]),
    ("formats/ultrafeedback_binarized.jsonl", "ranking", ["U:Hi -> Ahoy=0 Hm=1"]),
    (
        "formats/ultrafeedback_raw.jsonl",
        "ranking",
        "field 'completions' holds objects, expected strings, with ranks or scores in a field",
    ),
    ("formats/verl_prompt_ground_truth.jsonl", "prompt", ["U:1+1?"]),
    ("dialogue/Role_case.jsonl", "demonstration", ["U:hi A:yo"]),
    ("dialogue/bigint.json", "demonstration", ": "),
    ("dialogue/bigint.jsonl", "demonstration", "malformed JSON"),
    ("dialogue/developer.jsonl", "demonstration", ["S:be short U:hi A:yo"]),
    ("dialogue/latin1.jsonl", "demonstration", "byte 0xe9 is not UTF-8"),
    ("dialogue/lines_as.json", "demonstration", ["U:say 0 A:number 0", "U:say 1 A:number 1", "U:say 2 A:number 2"]),
    ("dialogue/long_row.csv", "demonstration", "expected 2 cells as in the header, found 4"),
    ("dialogue/parts.jsonl", "demonstration", ["U:hi A:yo"]),
    ("dialogue/plain.json.zst", "demonstration", ["U:say 0 A:number 0", "U:say 1 A:number 1", "U:say 2 A:number 2"]),
    ("dialogue/plain.parquet", "demonstration", ["U:say 0 A:number 0", "U:say 1 A:number 1", "U:say 2 A:number 2"]),
    ("dialogue/short_row.csv", "demonstration", "expected 2 cells as in the header, found 1"),
    ("dialogue/silent.csv", "demonstration", ["U:Write two lines A:first line\u2028second line", "U:say hi A:hi"]),
    (
        "dialogue/tool.jsonl",
        "demonstration",
        "field 'messages[1]': a turn of the assistant is without text (null); calls of tools are not read",
    ),
    (
        "dialogue/u2028.csv",
        "demonstration",
        ["U:say A:first\u2028second", "U:say 0 A:number 0", "U:say 1 A:number 1", "U:say 2 A:number 2"],
    ),
    (
        "dialogue/u2028_quoted.csv",
        "demonstration",
        ["U:say A:first,\u2028second", "U:say 0 A:number 0", "U:say 1 A:number 1", "U:say 2 A:number 2"],
    ),
]


def in_short(record):
    def written(turns):
        return " ".join(f"{LETTERS[t.role] if t.learned else 'a'}:{t.text}" for t in turns)

    ranked = " ".join(f"{a}={r}" for a, r in zip(record.answers, record.ranks, strict=True))
    return written(record.turns) + (f" -> {ranked}" if ranked else "")


@pytest.fixture
def case(shared_data):
    """A function from a case's name to its file; skips the test where it is absent."""

    def find(name):
        path = shared_data("dolly").parents[1] / "cases" / name
        if not path.is_file():
            pytest.skip(f"needs the case {path}")
        return path

    return find


@pytest.mark.data
@pytest.mark.parametrize(("name", "kind", "expected"), CASES)
def test_a_case_is_read_with_all_that_means_something_or_refused_with_its_place(case, name, kind, expected):
    source = DialogueSourceSettings(path=str(case(name)))
    if isinstance(expected, list):
        assert [in_short(record) for record in read_records(source, kind).records] == expected
        return
    with pytest.raises(UserError, match=re.escape(expected)) as raised:
        read_records(source, kind)
    assert name.rpartition("/")[2] in str(raised.value)


@pytest.mark.data
@pytest.mark.parametrize("kind", ["demonstration", "answer", "ranking", "response", "prompt"])
@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
def test_no_case_ends_in_anything_but_records_or_a_users_error(case, kind, on_bad_record):
    for name, _, _ in CASES:
        try:
            read_records(DialogueSourceSettings(path=str(case(name)), on_bad_record=on_bad_record), kind)
        except UserError as error:
            assert name.rpartition("/")[2] in str(error)


@pytest.mark.data
def test_one_bad_line_of_a_case_loses_one_record(case):
    source = DialogueSourceSettings(path=str(case("dialogue/latin1.jsonl")), on_bad_record="skip")
    records, skipped, _ = read_records(source, "demonstration")
    assert [in_short(record) for record in records] == [f"U:say {n} A:number {n}" for n in range(3)]
    assert [message.rpartition("/")[2] for message in skipped] == ["latin1.jsonl:4: byte 0xe9 is not UTF-8"]
