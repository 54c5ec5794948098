"""`lmjax score`: a line for each response of a file, whatever training does with such records."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.cli import main
from lmjax.data.batch import SEGMENTS
from lmjax.data.conversations import Record, Turn, encode
from lmjax.errors import UserError
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import abstract_params
from lmjax.runs.hhh import measure_rewards
from lmjax.runs.score import Scored, correlation, open_scorer, score_file
from lmjax.settings import MeshSettings
from tests.tiny import write_rows

pytestmark = pytest.mark.xdist_group("rewarded")  # one process trains the reward model

LONG = "b" * 60  # than the 32 tokens of a row
RECORDS = [
    {"prompt": "a", "completion": "aa", "label": True},
    {"prompt": "a", "completion": "b", "label": False},
    {"prompt": "c", "chosen": "cc", "rejected": "c"},
    {"prompt": "c", "chosen": "same", "rejected": "same"},
    {"prompt": "d", "answers": ["dd", "d", "x"], "ranks": [0, 0, 0]},
    {"prompt": "d", "answers": ["dd", "d"], "scores": [2.5, -1]},
    {"prompt": "e", "answer": LONG, "reward": 0.5},
]
ANSWERS = ["aa", "b", "cc", "c", "same", "same", "dd", "d", "x", "dd", "d", LONG]
REWARDS = [1.0, 0.0, *[None] * 7, 2.5, -1.0, 0.5]


def scored(capsys, checkpoint, file, *options):
    code = main(["score", str(checkpoint), str(file), *options])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def plain_score(checkpoint, prompt, answer):
    """The scalar at the end of one conversation, read alone and unpadded."""
    recipe, start = open_scorer(checkpoint)
    model = ScalarModel(LanguageModel(start.settings, recipe.compute, "cpu"))
    params = start.reward_model(abstract_params(model, jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    turns = (Turn("user", prompt), Turn("assistant", answer))
    ids = encode([turns], recipe.dialogue.template, start.tokenizer)[0].ids[-32:]
    row = {"tokens": ids, "segments": np.ones_like(ids), "positions": np.arange(len(ids), dtype=np.int32)}
    return float(model.values(params, {name: jnp.asarray(x)[None] for name, x in row.items()})[0, -1])


def test_every_response_of_every_shape_of_record_has_its_score(rewarded, tmp_path, capsys):
    write_rows(tmp_path / "mixed.jsonl", RECORDS)
    code, lines, err = scored(capsys, rewarded / "reward", tmp_path / "mixed.jsonl", "--json")
    rows = [json.loads(line) for line in lines]
    assert code == 0 and [row["answer"] for row in rows] == ANSWERS
    assert [row.get("reward") for row in rows] == REWARDS
    for row in rows:
        letter = row["prompt"].removeprefix("User: ").removesuffix("\nAssistant:")
        assert row["score"] == pytest.approx(plain_score(rewarded / "reward", letter, row["answer"]), abs=1e-5)
    assert len({row["score"] for row in rows}) == 9  # those that are said twice have one score
    assert "1 of 12 responses: the beginning of the prompt is cut" in err


def test_the_correlation_with_the_given_rewards_is_told_behind_the_scores(rewarded, tmp_path, capsys):
    write_rows(tmp_path / "mixed.jsonl", RECORDS)
    _, lines, err = scored(capsys, rewarded / "reward", tmp_path / "mixed.jsonl", "--json")
    given = [row for row in map(json.loads, lines) if "reward" in row]
    x, y = (np.array([row[name] for row in given]) for name in ("score", "reward"))
    x, y = x - x.mean(), y - y.mean()
    r = (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())
    assert err.splitlines()[-1] == f"Pearson correlation of the scores with 5 given rewards: {r:.4f}"
    write_rows(tmp_path / "none.jsonl", RECORDS[2:5])
    code, lines, err = scored(capsys, rewarded / "reward", tmp_path / "none.jsonl")
    assert code == 0 and len(lines) == 7 and "correlation" not in err
    assert [line.split(maxsplit=1)[1] for line in lines] == [json.dumps(answer) for answer in ANSWERS[2:9]]


def test_a_score_that_is_no_number_is_an_error(rewarded, tmp_path, monkeypatch):
    def unknown(model, params, batch):
        return batch[SEGMENTS].any(-1) * jnp.nan

    monkeypatch.setattr("lmjax.runs.score.answer_scores", unknown)
    file = tmp_path / "answers.jsonl"
    write_rows(file, [{"prompt": "a", "completion": "b", "label": True}])
    with pytest.raises(UserError, match=r"a score = nan: expected a finite number; the training .* diverged"):
        list(score_file(rewarded / "reward", file)[0])
    records = [Record((Turn("user", "a"),), ("b", "c"), ranks=(0, 1))]
    with pytest.raises(UserError, match=r"a score = nan"):
        list(measure_rewards(rewarded / "reward", {"hh_rlhf": (records, 0)}, make_mesh(MeshSettings())))


def test_the_correlation_is_that_of_the_responses_with_rewards():
    scores, rewards = [1.0, 5.0, 2.0, 4.0], [1.0, None, 3.0, 2.0]
    made = [Scored("q", "a", score, reward) for score, reward in zip(scores, rewards, strict=True)]
    assert correlation(made) == (
        pytest.approx(1 / np.sqrt(28 / 3)),
        3,
    )  # their deviations multiply to 1, and square to 14/3 and 2
    for undefined in (made[:2], [x._replace(reward=1.0) for x in made], []):
        r, count = correlation(undefined)
        assert np.isnan(r) and count == sum(x.reward is not None for x in undefined)


def test_a_bad_record_is_an_error_or_named_and_left_out(rewarded, tmp_path, capsys):
    write_rows(tmp_path / "bad.jsonl", [RECORDS[0], {"prompt": "q"}, RECORDS[1]])
    code, lines, err = scored(capsys, rewarded / "reward", tmp_path / "bad.jsonl")
    assert code == 2 and not lines and "bad.jsonl:2: expected a response: no answer" in err and "--skip-bad" in err
    code, lines, err = scored(capsys, rewarded / "reward", tmp_path / "bad.jsonl", "--skip-bad")
    assert code == 0 and len(lines) == 2 and "skipped: " in err and "bad.jsonl:2: no answer" in err
