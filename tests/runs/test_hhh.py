"""`lmjax evaluate --suite hhh`: the measures of a trained model, printed, as JSON, and written example by example."""

import json

import numpy as np
import pytest

import lmjax
from lmjax.cli import main
from lmjax.evaluate.truthfulness import prompts
from lmjax.runs.hhh import Suite
from tests.tiny import GENDERS, hhh_sets

CONTEXT = 48


@pytest.fixture(scope="module")
def trained(rewarded):
    return rewarded / "base"


@pytest.fixture
def sets(tmp_path):
    return hhh_sets(tmp_path / "sets")


@pytest.fixture(scope="module")
def token_log_probs(trained):
    """A function from a text to the log-probabilities of its bytes, after the end of text and in one context."""
    model = lmjax.load(trained)

    def read(text):
        ids = [256, *text.encode()][-CONTEXT - 1 :]
        padded = [*ids[:-1], *[0] * (CONTEXT + 1 - len(ids))]  # which no token before it sees
        logits = np.asarray(model.apply([padded]), np.float64)[0, : len(ids) - 1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return log_p[np.arange(len(ids) - 1), ids[1:]]

    return read


def printed(capsys, *words):
    code = main(["evaluate", *map(str, words)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


@pytest.fixture
def measured(trained, sets, rewarded, tmp_path, capsys):
    """The measures by set, name and examples, and the lines of the JSONL file."""
    words = (trained, "--suite", "hhh", "--task-data", sets, "--reward-model", rewarded / "reward", "--json")
    out, _ = printed(capsys, *words, "--out", tmp_path / "examples.jsonl")
    found = {(each["set"], each["measure"], each["of"]): each for each in json.loads(out)}
    return found, [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]


def test_the_measures_are_those_of_a_forward_pass_for_each_text(measured, token_log_probs):
    found, lines = measured
    answers = {"Why?": (["No.", "So.", "Yes.", "It is."], 2), "Who?": (["I.", "You."], 1)}
    for form in ("question alone", "QA prompt", "instruction and QA prompt"):
        mc1, mc2 = [], []
        for question, (texts, correct) in answers.items():
            prompt = prompts(question, form)[-1]
            own = np.array([token_log_probs(f"{prompt} {text}")[-len(text) - 1 :].sum() for text in texts])
            mc1.append(float(own[0] > own[correct:].max()))
            mc2.append(np.exp(own[:correct]).sum() / np.exp(own).sum())
        one, two = (found["truthfulqa", name, form] for name in ("mc1", "mc2"))
        assert one["value"] == np.mean(mc1) and one["examples"] == 2
        assert two["value"] == pytest.approx(np.mean(mc2), abs=1e-5)
        assert two["error"] == pytest.approx(np.std(mc2, ddof=1) / np.sqrt(2), abs=1e-5)
    pairs = {"age": [("aa cat", "bb cat"), ("a mat", "a rug")], "gender": [("he sat", "she sat")]}
    likelier = {kind: [[token_log_probs(text).sum() for text in pair] for pair in own] for kind, own in pairs.items()}
    rights = {kind: [float(more > less) for more, less in own] for kind, own in likelier.items()}
    assert found["crows_pairs", "stereotype", "age"]["value"] == np.mean(rights["age"])
    assert found["crows_pairs", "stereotype", "all"]["value"] == pytest.approx(
        np.mean([*rights["age"], *rights["gender"]])
    )
    bits = []
    for who in ("man", "cat"):
        p = np.exp([token_log_probs(f"the {who} and {pronoun}").sum() for pronoun in GENDERS.values()])
        bits.append(-(p / p.sum() * np.log2(p / p.sum())).sum())
    assert found["winogender", "gender_entropy", "all"]["value"] == pytest.approx(np.mean(bits), abs=1e-5)
    (line,) = [line for line in lines if line["set"] == "crows_pairs" and line["kind"] == "gender"]
    assert line["log_probs"] == pytest.approx(likelier["gender"][0], abs=1e-4)


def test_preferences_are_by_the_response_after_its_prompt_and_by_the_reward_model(measured, token_log_probs, rewarded):
    found, lines = measured
    rights = []
    for c in "ab":
        own = [token_log_probs(f"User: {c}\nAssistant: {answer}")[-len(answer) - 1 :].sum() for answer in (c + c, "z")]
        rights.append(float(own[0] > own[1]))
    assert found["hh_rlhf", "log_prob", "all"]["value"] == np.mean(rights)
    assert found["oasst_en", "log_prob", "all"]["examples"] == 2  # of ranks 0, 1 and 1
    by_reward = found["oasst_en", "reward", "all"]
    assert by_reward["examples"] == 2
    assert by_reward["counts"] == {"rankings": 1, "ties by reward": 0, "bad records": 0, "left out": 0}
    (line,) = [line for line in lines if line["set"] == "oasst_en" and "reward" in line]
    best, *others = line["reward"]
    assert line["ranks"] == [0, 1, 1] and len(set(line["reward"])) == 3
    assert by_reward["value"] == np.mean([best > other for other in others])


def test_a_mesh_gives_the_same_measures_and_a_limit_spreads_over_the_set(trained, sets, capsys):
    values = []
    for mesh in ("data=8", "data=2,fsdp=4"):
        out, _ = printed(capsys, trained, "--suite", "hhh", "--task-data", sets, "--mesh", mesh, "--json")
        values.append([each["value"] for each in json.loads(out)])
    np.testing.assert_allclose(values[1], values[0], atol=1e-5)
    rows = [f"x{n} a,y{n} a,stereo,{kind}" for kind in ("age", "gender") for n in range(50)]
    (sets / "crows_pairs" / "crows_pairs_dev.csv").write_text(
        "\n".join(["sent_more,sent_less,stereo_antistereo,bias_type", *rows])
    )
    out, _ = printed(capsys, trained, "--suite", "hhh", "--task-data", sets, "--limit", 4, "--json")
    counts = {each["of"]: each["examples"] for each in json.loads(out) if each["measure"] == "stereotype"}
    assert counts == {"all": 4, "age": 2, "gender": 2}


def test_a_table_tells_each_measure_with_its_error_and_how_to_read_it(trained, sets, capsys):
    out, err = printed(capsys, trained, "--suite", "hhh", "--task-data", sets)
    lines = out.splitlines()
    assert lines[0].startswith("truthfulqa   MC1  ") and "question alone" in lines[0] and "\u00b1" in lines[0]
    assert lines[0].endswith("of     2  higher is more truthful")
    (bias,) = [line for line in lines if line.startswith("crows_pairs  stereotype preferred") and " all " in line]
    assert bias.endswith("of     3  0.5 is no preference")
    assert "truthfulqa, instruction and QA prompt: 2 with a shorter prompt, 2 cut" in err


@pytest.mark.parametrize(
    ("remove", "words", "message"),
    [
        (["crows_pairs", "oasst_en"], [], "found no crows_pairs/*.csv, no oasst_en/*.jsonl; name the folder"),
        (["truthfulqa/truthfulqa_dev.csv"], [], "found no truthfulqa/*.csv; name the folder"),
        ([], ["--limit", "0"], "--limit = 0: expected a number above 0"),
        ([], ["--data", "a.txt"], "= '--data --suite': expected --data, --task or --suite, and one"),
        ([], ["--task", "piqa"], "= '--task --suite': expected --data, --task or --suite, and one"),
        ([], ["--shots", "1"], "--shots = '1': expected no such option with --suite"),
        ([], ["--documents", "line"], "--documents = 'line': expected no such option with --suite"),
    ],
)
def test_a_mistake_is_said_and_ends_with_2(trained, sets, capsys, remove, words, message):
    for name in remove:
        place = sets / name
        place.rename(place.with_name(f"away-{place.name}.old"))
    assert main(["evaluate", str(trained), "--suite", "hhh", "--task-data", str(sets), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_reward_model_is_no_language_model_and_the_other_way_round(trained, sets, rewarded, capsys):
    words = ["--suite", "hhh", "--task-data", str(sets)]
    assert main(["evaluate", str(rewarded / "reward"), *words]) == 2
    assert "expected a language model, not a reward model" in capsys.readouterr().err
    assert main(["evaluate", str(trained), *words, "--reward-model", str(trained)]) == 2
    assert "--reward-model" in (err := capsys.readouterr().err) and "expected a reward model" in err


def test_a_table_without_a_column_is_said_before_a_checkpoint_is_looked_for(sets, tmp_path, capsys):
    (sets / "crows_pairs" / "crows_pairs_dev.csv").write_text("sent_more,sent_less\na,b\n")
    assert main(["evaluate", str(tmp_path / "none"), "--suite", "hhh", "--task-data", str(sets)]) == 2
    assert "no column 'bias_type' among 'sent_more', 'sent_less'" in capsys.readouterr().err


@pytest.mark.data
def test_the_published_files_are_read_whole(shared_data):
    read = Suite(shared_data("truthfulqa").parent).read()
    assert (len(read.questions.questions), len(read.pairs), len(read.templates)) == (547, 1075, 240)
    assert read.single == 0 and not read.questions.left_out
    rankings = {name: (len(records), bad) for name, (records, bad) in read.rankings.items()}
    assert rankings == {"hh_rlhf": (1694, 6), "oasst_en": (134, 0)}
