"""Rows of conversations: what is learned in them, what is cut, left out and counted, and public files as they are."""

import json
from collections import Counter

import numpy as np
import pytest

from lmjax.data.conversation_files import read_records
from lmjax.data.conversation_rows import RANKS, RECORD, open_rows, open_sources
from lmjax.data.loader import RowLoader, ValidationBatches
from lmjax.errors import UserError
from lmjax.evaluate.samples import prompt_text
from lmjax.settings import DialogueSettings, DialogueSourceSettings, TemplateSettings
from lmjax.tokenizers.byte import ByteTokenizer

BYTES = ByteTokenizer()
EOS = BYTES.eos_id
HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant:"


def written(tmp_path, rows, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def opened(tmp_path, rows, kind, on_bad_record="error", **changes):
    source = DialogueSourceSettings(path=written(tmp_path, rows), on_bad_record=on_bad_record)
    return open_rows(source, DialogueSettings(**({"sequence_length": 64} | changes)), BYTES, kind)


def batch_of(rows):
    return rows.batch(np.arange(len(rows)))


def conversations_of(batch):
    """Each segment of a batch as (tokens with the last target, targets that have weight)."""
    out = []
    for tokens, targets, weights, segments in zip(
        *(batch[n] for n in ("tokens", "targets", "weights", "segments")), strict=True
    ):
        for segment in range(1, segments.max() + 1):
            own = segments == segment
            assert np.array_equal(tokens[own][1:], targets[own][:-1])
            out.append(
                ((*tokens[own].tolist(), int(targets[own][-1])), tuple(targets[own][weights[own] == 1].tolist()))
            )
        assert not weights[segments == 0].any()
    return out


@pytest.fixture
def ragged_rows():
    rng = np.random.default_rng(0)
    return [
        {"prompt": f"{i:02d}" + "q" * int(rng.integers(0, 12)), "answer": "a" * int(rng.integers(1, 14))}
        for i in range(40)
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_rows_hold_each_conversation_once_with_loss_on_its_answer_alone(tmp_path, ragged_rows, packing):
    rows, counts, _ = opened(tmp_path, ragged_rows, "demonstration", packing=packing)
    assert len(rows) < 30 if packing else len(rows) == 40
    expected = []
    for row in ragged_rows:
        ids = [*BYTES.encode(f"User: {row['prompt']}\nAssistant: {row['answer']}"), EOS]
        expected.append((tuple(ids), (*BYTES.encode(" " + row["answer"]), EOS)))
    assert Counter(conversations_of(batch_of(rows))) == Counter(expected)
    assert str(counts) == "40 records"


def test_positions_restart_in_each_conversation(tmp_path, ragged_rows):
    batch = batch_of(opened(tmp_path, ragged_rows, "demonstration")[0])
    for segments, positions in zip(batch["segments"], batch["positions"], strict=True):
        for segment in range(1, segments.max() + 1):
            np.testing.assert_array_equal(positions[segments == segment], np.arange((segments == segment).sum()))


def test_the_prompt_may_have_a_weight_of_its_own(tmp_path):
    batch = batch_of(opened(tmp_path, [{"prompt": "qq", "answer": "a"}], "demonstration", prompt_weight=0.25)[0])
    prompt = len("User: qq\nAssistant:") - 1  # the first token is no target
    np.testing.assert_array_equal(batch["weights"][0, : prompt + 3], [0.25] * prompt + [1.0, 1.0, 1.0])
    assert not batch["weights"][0, prompt + 3 :].any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_conversation_loses_the_side_that_the_recipe_says_and_is_counted(tmp_path, side):
    rows = [{"prompt": "q" * 30, "answer": "abc"}, {"prompt": "q", "answer": "abc" * 10}]
    made, counts, kept = opened(tmp_path, rows, "demonstration", sequence_length=40, too_long=side, packing=False)
    whole = [(*BYTES.encode(f"User: {row['prompt']}\nAssistant: {row['answer']}"), EOS) for row in rows]
    cut = [ids[-41:] if side == "left" else ids[:41] for ids in whole]
    if side == "right":  # of the first nothing of the answer is left
        cut = cut[1:]
    assert [tokens for tokens, _ in conversations_of(batch_of(made))] == cut
    assert (counts.cut, counts.left_out, len(kept)) == ((2, 0, 2) if side == "left" else (2, 1, 1))


def test_a_long_conversation_may_be_left_out_or_refused(tmp_path):
    rows = [{"prompt": "q", "answer": "a"}, {"prompt": "q", "answer": "a" * 99}]
    made, counts, kept = opened(tmp_path, rows, "demonstration", too_long="skip")
    assert (len(made), counts.left_out, len(kept)) == (1, 1, 1)
    assert str(counts) == "2 records, 1 left out"
    with pytest.raises(UserError, match=r"119 tokens: expected at most 65; .*dialogue\.sequence_length"):
        opened(tmp_path, rows, "demonstration", too_long="error")
    with pytest.raises(UserError, match="none of its 2 records fits"):
        opened(tmp_path, rows, "demonstration", too_long="skip", sequence_length=4)


RANKED = [
    {"prompt": "one", "answers": ["good", "better", "best"], "ranks": [2, 1, 0]},
    {"prompt": "two", "chosen": "yes", "rejected": "no"},
]


def test_every_answer_of_a_ranking_has_a_row_that_ends_with_end_of_text(tmp_path):
    rows, _, _ = opened(tmp_path, RANKED, "ranking", sequence_length=40)
    batch = batch_of(rows)
    assert batch["tokens"].shape == (2, 3, 40)
    np.testing.assert_array_equal(batch[RANKS], [[2, 1, 0], [0, 1, -1]])
    np.testing.assert_array_equal(batch["segments"].any(-1), [[True, True, True], [True, True, False]])
    for record, (prompt, answers) in enumerate([("one", ["good", "better", "best"]), ("two", ["yes", "no"])]):
        for k, answer in enumerate(answers):
            ids = (*BYTES.encode(f"User: {prompt}\nAssistant: {answer}"), EOS)
            at = (record, k)
            own = batch["segments"][at] == 1
            assert tuple(batch["tokens"][at][own].tolist()) == ids
            assert own.sum() == len(ids) and own[: len(ids)].all()
            scored = batch["targets"][at][batch["weights"][at] == 1]
            assert scored.tolist() == [*BYTES.encode(" " + answer), EOS]
            np.testing.assert_array_equal(batch["positions"][at][own], np.arange(len(ids)))


def test_only_the_last_answer_of_a_compared_conversation_is_scored(tmp_path):
    batch = batch_of(opened(tmp_path, [{"chosen": HH + " yes", "rejected": HH + " no"}], "ranking")[0])
    assert batch["targets"][0, 0][batch["weights"][0, 0] > 0].tolist() == [*BYTES.encode(" yes"), EOS]


def test_a_comparison_loses_its_prompts_beginning_and_not_its_answers(tmp_path):
    rows = [{"prompt": "q" * 50, "chosen": "yes", "rejected": "no"}]
    made, counts, _ = opened(tmp_path, rows, "ranking", sequence_length=32)
    batch = batch_of(made)
    assert batch["tokens"][0, 0, -5:].tolist() == [*BYTES.encode(" yes"), EOS]
    assert counts.cut == 2
    with pytest.raises(UserError, match="none of its 1 records fits"):  # cut at the right, no answer is left
        opened(tmp_path, rows, "ranking", sequence_length=32, too_long="right")


@pytest.mark.parametrize("answers", [("It is small and red.", "Red."), ("Red.", "It is small and red.")])
def test_the_prompts_of_a_comparison_lose_as_much(tmp_path, answers):
    prompt = "Describe a cherry in one sentence please."
    rows = [{"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}]
    batch = batch_of(opened(tmp_path, rows, "ranking", sequence_length=48)[0])
    excess = len(f"User: {prompt}\nAssistant: It is small and red.") + 1 - 48
    for k, answer in enumerate(answers):
        expected = [*BYTES.encode(f"User: {prompt}\nAssistant: {answer}"), EOS][excess:]
        assert batch["tokens"][0, k][batch["segments"][0, k] == 1].tolist() == expected


def test_an_answer_longer_than_a_row_loses_its_own_beginning_too(tmp_path):
    rows = [{"prompt": "q", "chosen": "a" * 40 + "yes", "rejected": "no"}]
    made, counts, _ = opened(tmp_path, rows, "ranking", sequence_length=24)
    batch = batch_of(made)
    texts = [BYTES.decode(batch["tokens"][0, k][batch["segments"][0, k] == 1].tolist()) for k in range(2)]
    assert texts == ["a" * 20 + "yes", " no"]  # of the prompt nothing is left in either
    assert counts.cut == 2


def test_answers_that_are_equal_when_they_are_truncated_are_dropped_and_counted(tmp_path):
    story = " And then the long story that both of them tell"
    rows = [
        {"prompt": "q", "chosen": "A cherry in summer, red.", "rejected": "A cherry in summer, blue."},
        {"prompt": "q", "chosen": "Red." + story, "rejected": "Blue." + story},
        {"prompt": "q", "answers": ["yes" + story, "no" + story, "maybe"], "ranks": [0, 1, 2]},
    ]
    with pytest.raises(UserError, match="none of its 1 records"):
        opened(tmp_path, rows[1:2], "ranking", sequence_length=32, too_long="left")
    made, counts, kept = opened(tmp_path, rows, "ranking", sequence_length=48, too_long="left")
    assert [record.answers[0] for record in kept] == [rows[0]["chosen"]]
    assert (counts.equal, counts.left_out, len(made)) == (4, 2, 1)
    assert str(counts) == "3 records, 5 truncated, 2 left out, 4 equal answers at different ranks"


def test_equal_answers_at_different_ranks_are_not_compared(tmp_path):
    rows = [
        {"prompt": "q", "answers": ["a", "a", "b", "c"], "ranks": [1, 2, 3, 4]},
        {"prompt": "q", "answers": ["a", "a", "b"], "ranks": [1, 1, 3]},
        {"prompt": "q", "answers": ["a", "a", "b"], "ranks": [1, 2, 3]},
    ]
    made, counts, kept = opened(tmp_path, rows, "ranking")
    batch = batch_of(made)
    np.testing.assert_array_equal(batch[RANKS], [[2, 3, -1], [0, 0, 1]])
    assert BYTES.decode(batch["tokens"][0, 0].tolist()).startswith("User: q\nAssistant: b")
    assert (counts.equal, counts.left_out, len(kept)) == (4, 1, 2)


@pytest.mark.parametrize(
    ("side", "seen"),
    [("right", "User: Describe a cherry in o\nAssistant:"), ("left", " cherry in one sentence.\nAssistant:")],
)
def test_a_long_prompt_keeps_the_opening_of_the_answer_and_knows_what_is_left_of_it(tmp_path, side, seen):
    rows = [{"prompt": "Describe a cherry in one sentence."}, {"prompt": "Hi"}]
    made, counts, kept = opened(tmp_path, rows, "prompt", sequence_length=len(seen), too_long=side)
    batch = batch_of(made)
    assert BYTES.decode(batch["tokens"][0].tolist()) == seen
    assert [record.seen for record in kept] == [seen, ""]
    assert [prompt_text(record, TemplateSettings()) for record in kept] == [seen, "User: Hi\nAssistant:"]
    assert counts.cut == 1


def test_a_prompt_of_which_only_the_opening_would_be_left_is_left_out(tmp_path):
    rows = [{"prompt": "Describe a cherry."}, {"prompt": ""}, {"prompt": "x"}]
    with pytest.raises(UserError, match="none of its 2 records fits"):
        opened(tmp_path, rows[::2], "prompt", sequence_length=10, too_long="right")


@pytest.mark.parametrize("kind", ["demonstration", "response"])
def test_turns_that_are_not_to_be_learned_have_no_weight_and_end_as_answers_do(tmp_path, kind):
    said = [("user", "q", None), ("assistant", "bad", 0), ("user", "r", None), ("assistant", "good", 1)]
    row = {"messages": [{"role": role, "content": text, "weight": weight} for role, text, weight in said]}
    batch = batch_of(opened(tmp_path, [row], kind)[0])
    weights, targets = batch["weights"].reshape(-1), batch["targets"].reshape(-1)
    assert targets[weights > 0].tolist() == [*BYTES.encode(" good"), EOS]
    text = [*BYTES.encode("User: q\nAssistant: bad"), EOS, *BYTES.encode("\nUser: r\nAssistant: good"), EOS]
    assert batch["tokens"].reshape(-1)[: len(text) - 1].tolist() == text[:-1]


def warnings_of(tmp_path, rows, kind="demonstration", **changes):
    return opened(tmp_path, rows, kind, **changes)[1].warnings


@pytest.mark.parametrize(
    ("answers", "marker"),
    [
        (["one.###end###", "two.###end###", "three.###end###"], "###end###"),
        (["one</s>", "two </s>", "three</s>"], "</s>"),
        (["one <|im_end|>", "two <|im_end|>", "three <|im_end|>"], "<|im_end|>"),
        (["one.", "two.", "three."], ""),
        (["one###end###", "two###end###", "three"], ""),
        (["one###end###", "twice one###end###", "###end###"], "###end###"),
        (["a {x}", "b {x}", "c {x}"], "{x}"),
        (["a say so", "b say so", "c say so"], ""),
    ],
)
def test_an_end_marker_that_all_answers_share_is_a_warning(tmp_path, answers, marker):
    rows = [{"prompt": "q", "answer": answer} for answer in answers]
    pairs = [{"prompt": "q", "answers": [*answers[:2], "x" + answers[2]], "ranks": [0, 1, 2]}]
    for told in (warnings_of(tmp_path, rows), warnings_of(tmp_path, pairs, "ranking")):
        expected = [f"every answer ends with {marker!r}, which training and rewards read as text; "] if marker else []
        assert [warning.split("set ")[0] for warning in told] == expected


def test_two_answers_are_too_few_to_tell_a_marker_from_their_text(tmp_path):
    assert warnings_of(tmp_path, [{"prompt": "q", "answer": f"{word}</s>"} for word in ("one", "two", "one")]) == []


def test_an_end_marker_that_is_named_is_no_warning(tmp_path):
    rows = [{"prompt": "q", "answer": f"{word}###"} for word in ("one", "two", "three")]
    source = DialogueSourceSettings(path=written(tmp_path, rows), answer_end="###")
    _, counts, _ = open_rows(source, DialogueSettings(sequence_length=64), BYTES, "demonstration")
    assert counts.warnings == []


@pytest.mark.parametrize("kind", ["demonstration", "prompt", "ranking"])
def test_a_truncated_share_above_a_fifth_is_a_warning(tmp_path, kind):
    def rows(long):
        texts = [f"{number}" + "q" * 80 * (number < long) for number in range(10)]
        return [{"prompt": text, "chosen": "a", "rejected": "b"} for text in texts]

    assert warnings_of(tmp_path, rows(2), kind) == []
    (warning,) = warnings_of(tmp_path, rows(3), kind)
    cut, total = (6, 20) if kind == "ranking" else (3, 10)
    assert warning == (
        f"{cut} of {total} conversations (30%) are longer than dialogue.sequence_length = 64 tokens and lose their "
        "beginning (dialogue.too_long = 'left'); raise dialogue.sequence_length"
    )


def test_files_of_a_folder_that_are_left_out_are_counted(tmp_path):
    written(tmp_path, [{"prompt": "q", "answer": "a"}])
    for name in (".hidden.jsonl", "._data.jsonl", "notes.txt"):
        (tmp_path / name).write_text("\0")
    source = DialogueSourceSettings(path=str(tmp_path))
    _, counts, _ = open_rows(source, DialogueSettings(), BYTES, "demonstration")
    assert str(counts) == "1 records, files left out: 2 hidden, 1 of another ending"


def test_answers_beyond_the_most_are_left_out_and_counted(tmp_path):
    rows = [{"prompt": "q", "answers": list("abcd"), "ranks": [0, 0, 1, 2]}, *RANKED]
    made, counts, kept = opened(tmp_path, rows, "ranking", most_answers=2)
    assert made.answers == 2
    assert (counts.answers_left_out, counts.left_out) == (3, 1)  # of the first, only a tie would be left
    assert [record.turns[0].text for record in kept] == ["one", "two"]


def test_prompts_are_padded_on_the_left_and_know_their_record(tmp_path):
    rows, _, kept = opened(tmp_path, [{"prompt": "a"}, {"prompt": "long one"}], "prompt", sequence_length=32)
    batch = rows.batch(np.array([1, 0]))
    for row, record in enumerate([1, 0]):
        ids = BYTES.encode(f"User: {kept[record].turns[0].text}\nAssistant:")
        assert batch["tokens"][row, 32 - len(ids) :].tolist() == ids
        assert not batch["tokens"][row, : 32 - len(ids)].any()
        np.testing.assert_array_equal(batch["segments"][row], [0] * (32 - len(ids)) + [1] * len(ids))
        np.testing.assert_array_equal(batch["positions"][row, 32 - len(ids) :], np.arange(len(ids)))
    np.testing.assert_array_equal(batch[RECORD], [[1], [0]])


def test_batches_of_mixed_rankings_are_a_pure_function_of_the_step(tmp_path):
    pairs = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(5)]
    sources = [
        DialogueSourceSettings(path=written(tmp_path, RANKED * 3, "k3.jsonl"), weight=0.25),
        DialogueSourceSettings(path=written(tmp_path, pairs, "pairs.jsonl"), weight=0.75),
    ]
    dialogue = DialogueSettings(sequence_length=48, batch_size=4, seed=5)
    rows, _, _ = open_sources(sources, dialogue, BYTES, "ranking")

    def loader():
        return RowLoader(rows, [source.weight for source in sources], dialogue.loading)

    first = loader()
    batches = [first.batch_at(step) for step in range(6)]
    again = loader()
    for step in (5, 0, 3):
        for name, array in again.batch_at(step).items():
            np.testing.assert_array_equal(array, batches[step][name])
    np.testing.assert_array_equal(again.batch_at(2, slice(1, 3))["tokens"], batches[2]["tokens"][1:3])
    wide = np.concatenate([batch[RANKS][:, 2] >= 0 for batch in batches])
    assert batches[0][RANKS].shape == (4, 3) and 0 < wide.sum() <= 6


def test_the_validation_set_has_every_ranking_once_and_absent_rows_beyond(tmp_path):
    rows, _, _ = opened(tmp_path, RANKED + RANKED[:1], "ranking")
    batches = list(ValidationBatches([rows], 64, 2))
    assert [batch["segments"].any((1, 2)).tolist() for batch in batches] == [[True, True], [True, False]]


# ---- real data ----


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "file", "kind", "count", "skipped", "answer_end"),
    [
        ("dolly", "dolly_dev.jsonl", "demonstration", 100, 0, "###eos_token###"),
        ("self_instruct", "seed_tasks.jsonl", "demonstration", 175, 0, ""),
        ("oasst_en", "oasst_en_dev.jsonl", "demonstration", 77, 0, ""),
        ("oasst_en", "oasst_en_dev.jsonl", "ranking", 134, 0, ""),
        ("oasst_en", "oasst_en_dev.jsonl", "prompt", 65, 0, ""),
        ("hh_rlhf", "harmless_dev.jsonl.gz", "ranking", 1694, 6, ""),
        ("pref_demo", "dpo_en_demo_dev.json", "ranking", 150, 0, ""),
        ("pref_demo", "dpo_zh_demo_dev.json", "ranking", 150, 0, ""),
        ("pref_demo", "dpo_en_demo_dev.json", "response", 300, 0, ""),
        ("pref_demo", "kto_en_demo_dev.json", "response", 150, 0, ""),
        ("pref_demo", "kto_en_demo_dev.json", "demonstration", 78, 0, ""),
        ("instructgpt_samples", "tldr_dev.csv", "demonstration", 120, 0, ""),
    ],
)
def test_public_files_are_read_as_they_are(shared_data, folder, file, kind, count, skipped, answer_end):
    path = str(shared_data(folder) / file)
    source = DialogueSourceSettings(path=path, answer_end=answer_end, on_bad_record="skip")
    rows, counts, kept = open_rows(source, DialogueSettings(sequence_length=512), BYTES, kind)
    assert (counts.records, counts.bad, len(kept) + counts.left_out) == (count, skipped, count)
    assert not any("answer ends" in warning for warning in counts.warnings)
    batch = rows.batch(np.arange(min(8, len(rows))))
    if kind == "demonstration":
        assert not any("###" in r.turns[-1].text[-20:] for r in kept)
        assert batch["weights"].any(axis=1).all()
    if kind == "ranking":
        ends = batch["segments"].sum(-1) - 1
        last = np.take_along_axis(batch["tokens"], np.maximum(ends, 0)[..., None], axis=-1)[..., 0]
        assert (last[ends >= 0] == EOS).all()


@pytest.mark.data
def test_the_rankings_of_the_trees_have_two_to_nine_answers(shared_data):
    source = DialogueSourceSettings(path=str(shared_data("oasst_en") / "oasst_en_dev.jsonl"))
    records = read_records(source, "ranking").records
    assert Counter(len(record.answers) for record in records) == {3: 79, 2: 35, 4: 14, 6: 3, 5: 1, 8: 1, 9: 1}
    assert any(len(record.turns) > 2 for record in records)


@pytest.mark.data
def test_the_end_marker_of_a_public_set_is_found(shared_data):
    source = DialogueSourceSettings(path=str(shared_data("dolly") / "dolly_dev.jsonl"))
    _, counts, _ = open_rows(source, DialogueSettings(sequence_length=4096), BYTES, "demonstration")
    assert ["'###eos_token###'" in warning for warning in counts.warnings] == [True]
