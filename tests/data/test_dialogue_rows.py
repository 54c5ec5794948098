"""Rows of conversations: what is learned in them, what is cut, left out and counted, and public files as they are."""

import json
from collections import Counter

import numpy as np
import pytest

from lmjax.data.dialogue_records import read_records
from lmjax.data.dialogue_rows import RANKS, RECORD, open_rows, open_sources
from lmjax.data.loader import RowLoader, ValidationBatches
from lmjax.data.tokenizers.byte import ByteTokenizer
from lmjax.errors import UserError
from lmjax.rlhf_settings import DialogueSettings, DialogueSourceSettings

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


def test_answers_beyond_the_most_are_left_out_and_counted(tmp_path):
    rows = [{"prompt": "q", "answers": list("abcd"), "ranks": [0, 0, 1, 2]}, *RANKED]
    made, counts, kept = opened(tmp_path, rows, "ranking", most_answers=2)
    assert made.answers == 2
    assert (counts.answers_left_out, counts.left_out) == (3, 1)  # of the first, only a tie would be left
    assert [record.prompt[0].text for record in kept] == ["one", "two"]


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
    assert any(len(record.prompt) > 2 for record in records)
