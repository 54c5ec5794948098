"""`lmjax harness`: lm-eval's tasks, run for real on local files, beside forward passes of the model itself."""

import base64
import dataclasses
import json
import logging
import lzma
from pathlib import Path

import numpy as np
import pytest

import lmjax
from lmjax.cli import main
from lmjax.data.conversations import Turn, encode
from lmjax.errors import UserError
from lmjax.evaluate.answers import added_before
from lmjax.generate.chat import StageTurns
from lmjax.runs import harness_model
from lmjax.settings import MeshSettings
from lmjax.tokenizers.tokenizer import load_tokenizer
from tests.tiny import sft, write_rows

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'lmjax[harness]'")
pytestmark = pytest.mark.xdist_group("rewarded")  # one process trains the reward model

EOS = 256
ROWS = [
    {"ctx": "the", "endings": ["cat", "sea", "mat"], "label": 0},
    {"ctx": "a", "endings": ["mat", "on", "cat"], "label": 2},
    {"ctx": "on ", "endings": ["a", "the", "sea"], "label": 1},
]
TEXTS = [{"page": "the cat sat on a mat and ran to the sea"}, {"page": "a mat"}, {"page": "the cat sat on a"}]
CHOICES = """\
output_type: multiple_choice
doc_to_text: "{{ctx}}"
doc_to_choice: endings
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: byte_perplexity}, {metric: bits_per_byte}]
"""
WRITTEN = """\
output_type: generate_until
doc_to_text: "{{ctx}}"
doc_to_target: "{{endings[label]}}"
generation_kwargs: {until: ["%s"], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def checkpoint(tiny, train, tmp_path_factory):
    """A model that writes letters, and others after other texts."""
    folder = tmp_path_factory.mktemp("writes")
    train(tiny(train__steps=200, checkpoint__every=200, model__dropout=0.0), folder)
    return folder


@pytest.fixture(scope="module")
def trained(checkpoint):
    return lmjax.load(checkpoint)


@pytest.fixture(scope="module")
def model(checkpoint):
    return harness_model.HarnessModel(checkpoint)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A function that writes a task, its YAML and its rows, and gives the folder."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")

    def write(name, rows, yaml):
        write_rows(tmp_path / f"{name}.jsonl", rows)
        data = {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}, "cache_dir": str(tmp_path / "cache")}
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps(data)}\ntest_split: test\n"
        (tmp_path / f"{name}.yaml").write_text(head + yaml)
        return tmp_path

    return write


def requests(*arguments):
    """lm-eval's requests."""
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, each, number) for number, each in enumerate(arguments)]


def harness(capsys, *words):
    code = main(["harness", *map(str, words)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def log_probs(trained, ids):
    """Of each token after the first, from one forward pass, [T]; and the likeliest in its place."""
    logits = np.asarray(trained.apply([ids[:-1]]), np.float64)[0]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return log_p[np.arange(len(ids) - 1), ids[1:]], logits.argmax(-1)


def greedy(trained, text, tokens):
    """What the model most likely writes after a text, token by token."""
    ids = [*text.encode()]
    for _ in range(tokens):
        ids.append(int(np.asarray(trained.apply([ids]))[0, -1].argmax()))
    return bytes(ids[len(text) :]).decode()


def test_a_local_task_has_the_log_likelihoods_of_forward_passes(checkpoint, trained, tasks, tmp_path, capsys):
    folder = tasks("words", ROWS, CHOICES)
    words = (checkpoint, "--tasks", "words", "--include-path", folder, "--out", tmp_path / "samples.jsonl")
    results = json.loads(harness(capsys, *words, "--json"))
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["doc_id"] for sample in samples] == [0, 1, 2]
    rights = []
    for sample, row in zip(samples, ROWS, strict=True):
        found = [response for ((response, _),) in sample["resps"]]
        whole = [f"{row['ctx']} {ending}".encode() for ending in row["endings"]]
        own = [log_probs(trained, [*text])[0][len(row["ctx"].rstrip()) - 1 :].sum() for text in whole]
        assert found == pytest.approx(own, abs=1e-5)
        assert sample["task"] == "words" and sample["acc"] == (int(np.argmax(own)) == row["label"])
        rights.append(sample["acc"])
    values = results["results"]["words"]
    assert values["acc,none"] == pytest.approx(np.mean(rights))
    assert values["acc_stderr,none"] == pytest.approx(np.std(rights, ddof=1) / np.sqrt(3))
    assert results["n-samples"]["words"] == {"original": 3, "effective": 3}


def test_a_continuation_is_greedy_where_each_of_its_tokens_is_the_likeliest(model, trained):
    likely = greedy(trained, "the cat", 3)
    other = likely[:2] + ("a" if likely[2] != "a" else "b")
    begun = "z" if likely[0] != "z" else "a"
    rejoined = begun + greedy(trained, "the cat" + begun, 2)
    asked = requests(*(("the cat", continuation) for continuation in (likely, other, rejoined)))
    assert [is_greedy for _, is_greedy in model.loglikelihood(asked)] == [True, False, False]


def test_an_empty_context_is_the_end_of_text_and_blanks_belong_to_the_continuation(model, trained):
    asked = [("", "cat"), (" ", "cat"), ("the ", "cat"), ("the", " cat"), ("the cat sat ", "on")]
    found = [log_prob for log_prob, _ in model.loglikelihood(requests(*asked), disable_tqdm=True)]
    own = [
        log_probs(trained, [EOS, *b"cat"])[0].sum(),
        log_probs(trained, [EOS, *b" cat"])[0].sum(),
        log_probs(trained, [*b"the cat"])[0][2:].sum(),
        log_probs(trained, [*b"the cat"])[0][2:].sum(),
        log_probs(trained, [*b"the cat sat on"])[0][10:].sum(),
    ]
    assert found == pytest.approx(own, abs=1e-5)


def test_a_context_that_is_too_long_loses_its_beginning_which_is_said(model, trained, caplog):
    """The context has 16 tokens, each of which predicts the next: 17 are read."""
    text = "a mat and ran to the sea"
    with caplog.at_level(logging.WARNING):
        ((log_prob, _), _) = model.loglikelihood(requests((text[:20], text[20:]), ("a", "b")))
    assert log_prob == pytest.approx(log_probs(trained, [*text[-17:].encode()])[0][-4:].sum(), abs=1e-5)
    assert "1 of 2 requests are longer than the 16 tokens that the context of 16 leaves them" in caplog.text


def test_what_a_tokenizer_puts_before_every_text_stands_before_it_once(model, trained, monkeypatch):
    monkeypatch.setattr(model, "_before", [EOS])
    ((plain, _), (empty, _)) = model.loglikelihood(requests(("the", " cat"), ("", "cat")))
    own = [log_probs(trained, [EOS, *b"the cat"])[0][3:].sum(), log_probs(trained, [EOS, *b"cat"])[0].sum()]
    assert [plain, empty] == pytest.approx(own, abs=1e-5)
    (rolling,) = model.loglikelihood_rolling(requests(("cat",)))
    assert rolling == pytest.approx(log_probs(trained, [EOS, EOS, *b"cat"])[0].sum(), abs=1e-5)  # as lm-eval counts


@pytest.mark.parametrize(
    ("name", "before"), [("llama3", "<|begin_of_text|>"), ("llama2", "<s>"), ("smollm", ""), ("gpt2", ""), ("t5", "")]
)
def test_what_stands_before_every_text_is_what_the_tokenizer_adds_and_no_end(name, before, tmp_path):
    kinds = json.loads(lzma.decompress((Path(__file__).parents[1] / "golden" / "hf_tokenizers.json.xz").read_bytes()))
    for file, data in kinds["kinds"][name]["files"].items():
        (tmp_path / file).write_bytes(base64.b64decode(data))
    tokenizer = load_tokenizer(tmp_path)
    assert [tokenizer.token(index) for index in added_before(tokenizer)] == ([before] if before else [])


def test_a_continuation_that_has_no_token_or_too_many_is_named(model):
    with pytest.raises(UserError, match=r"the continuation '' after 'the' has 0 tokens: expected 1 to the context of"):
        model.loglikelihood(requests(("the", "")))
    with pytest.raises(UserError, match="has 17 tokens: expected 1 to the context of 16"):
        model.loglikelihood(requests(("the", "a" * 17)))


def test_results_come_in_the_order_of_requests_and_a_mesh_gives_the_same(checkpoint, model):
    rng = np.random.default_rng(0)
    asked = [("the cat sat"[: rng.integers(1, 11)], " sea"[: rng.integers(1, 4)]) for _ in range(40)]
    together = model.loglikelihood(requests(*asked))
    alone = [model.loglikelihood(requests(each))[0] for each in asked[:6]]
    np.testing.assert_allclose([p for p, _ in together[:6]], [p for p, _ in alone], atol=1e-5)
    cut = harness_model.HarnessModel(checkpoint, MeshSettings(data=2, fsdp=4))
    np.testing.assert_allclose([p for p, _ in cut.loglikelihood(requests(*asked))], [p for p, _ in together], atol=1e-5)
    how = {"until": ["\n"], "max_gen_toks": 4}
    some = requests(*((context, how) for context, _ in asked[:3]))
    assert cut.generate_until(some) == model.generate_until(some)


def test_a_long_text_is_read_through_windows_that_move_on_by_the_whole_context(
    checkpoint, trained, tasks, tmp_path, capsys
):
    folder = tasks("pages", TEXTS, ROLLING)
    words = (checkpoint, "--tasks", "pages", "--include-path", folder, "--out", tmp_path / "samples.jsonl")
    table = harness(capsys, *words)
    found = [json.loads(line)["resps"][0][0] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    long, short, exact = (row["page"].encode() for row in TEXTS)
    assert (len(long), len(exact)) == (39, 16)
    own = [
        log_probs(trained, [EOS, *long[:16]])[0].sum()
        + log_probs(trained, [*long[15:32]])[0].sum()
        + log_probs(trained, [*long[22:]])[0][-7:].sum(),
        log_probs(trained, [EOS, *short])[0].sum(),
        log_probs(trained, [EOS, *exact])[0].sum(),
    ]
    assert found == pytest.approx(own, abs=1e-5)
    bits = -sum(own) / sum(map(len, (long, short, exact))) / np.log(2)
    assert table.splitlines()[0] == "task  shots documents  metric"
    assert f"pages     0         3  bits_per_byte {bits:.4f}" in table


def test_what_is_written_is_greedy_and_ends_before_a_stop_string(checkpoint, trained, tasks, tmp_path, capsys):
    whole = {row["ctx"]: greedy(trained, row["ctx"], 6) for row in ROWS}
    stop = whole["the"][2:4]
    folder = tasks("written", ROWS, WRITTEN % stop)
    words = (checkpoint, "--tasks", "written", "--include-path", folder, "--out", tmp_path / "samples.jsonl")
    harness(capsys, *words)
    found = [json.loads(line)["resps"][0][0] for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert found == [text.split(stop)[0] for text in whole.values()]
    assert [len(text) for text in found] == [2, 6, 1]


def test_a_context_without_room_for_what_is_written_loses_its_beginning(model, trained, caplog):
    text, how = "the cat sat on the", {"until": [], "max_gen_toks": 5}
    with caplog.at_level(logging.WARNING):
        found = model.generate_until(requests((text, how), ("a", how)))
    assert found == [greedy(trained, text[-11:], 5), greedy(trained, "a", 5)]
    assert found[0] != greedy(trained, text[:11], 5)
    assert "1 of 2 requests are longer than the 11 tokens that the context of 16 leaves them" in caplog.text


def test_samples_of_one_prompt_differ_also_in_other_batches(model, monkeypatch):
    monkeypatch.setattr(harness_model, "PROMPTS_AT_ONCE", 4)
    how = {"do_sample": True, "temperature": 5.0, "max_gen_toks": 8}
    assert len(set(model.generate_until(requests(*[("the", how)] * 8)))) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, r"generation_kwargs.num_beams = 4: expected 1"),
        ({"min_p": 0.1}, r"generation_kwargs.min_p = 0.1: expected one of until, max_gen_toks, do_sample, temperature"),
        ({"max_gen_toks": 16}, r"generation_kwargs.max_gen_toks = 16: expected 1 to less than the context of 16"),
        ({"max_gen_toks": "many"}, "generation_kwargs: invalid literal for int.*'many'; correct them in the task"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_what_generation_cannot_do_is_refused(model, options, message):
    with pytest.raises(UserError, match=message):
        model.generate_until(requests(("the", options)))


def test_a_stage_writes_conversations_in_the_template_that_it_trained_on(trained, model, monkeypatch):
    stage = sft(())
    tuned = dataclasses.replace(trained, recipe=stage, turns=StageTurns(stage.template))
    turns = [Turn("user", "Is it?"), Turn("assistant", "Yes."), Turn("user", "Why?")]
    history = [{"role": turn.role, "content": turn.text} for turn in turns]
    with pytest.raises(UserError, match=r"--apply-chat-template: 'tiny' has no chat template"):
        model.apply_chat_template(history)
    monkeypatch.setattr(model, "_template", harness_model.chat_template_of(tuned))
    text = model.apply_chat_template(history)
    ids = [*encode([tuple(turns)], stage.template, trained.tokenizer)[0].ids]
    assert EOS in ids and model.encode(text) == ids
    begun = model.apply_chat_template([*history, {"role": "assistant", "content": "Sinc"}], add_generation_prompt=False)
    assert begun == text + " Sinc"
    assert model.chat_template(True).startswith("{%- for message in messages -%}")


def test_lm_eval_knows_the_model_by_name(checkpoint):
    from lm_eval.api.registry import get_model

    kind = get_model("lmjax")
    assert kind is harness_model.HarnessModel
    named = kind.create_from_arg_string(f"checkpoint={checkpoint}", {"batch_size": 1, "device": None})
    ((log_prob, _),) = named.loglikelihood(requests(("the", " cat")))
    assert np.isfinite(log_prob)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "wrods"], "--tasks = 'wrods': expected a task of lm-eval or of "),
        (["--tasks", "words", "--limit", "0"], "--limit = 0: expected a number above 0"),
        (["--tasks", "words", "--shots", "-1"], "--shots = -1: expected a number from 0"),
        (["--tasks", "words", "--include-path", "nowhere"], "--include-path = 'nowhere': expected a folder"),
        (["--tasks", "gone"], "--tasks gone: lm-eval cannot load it: FileNotFoundError: "),
        (["--tasks", "later"], "--tasks later: lm-eval cannot run it: "),
        (["--tasks", "words", "--mesh", "rows=2"], "no mesh axis 'rows'"),
        (["--tasks", "words", "--apply-chat-template"], "'tiny' has no chat template"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_said_and_ends_with_2(checkpoint, tasks, tmp_path, capsys, words, message):
    tasks("gone", ROWS, CHOICES)
    (tmp_path / "gone.jsonl").unlink()
    tasks("later", [*ROWS, {"ctx": "a", "endings": [], "label": 0}], CHOICES)
    folder = tasks("words", ROWS, CHOICES)
    assert main(["harness", str(checkpoint), "--include-path", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_language_model_is_said_and_ends_with_2(rewarded, tasks, tmp_path, capsys):
    folder = str(tasks("words", ROWS, CHOICES))
    for place, message in ((rewarded / "reward", "expected a language model"), (tmp_path, "no checkpoint")):
        assert main(["harness", str(place), "--tasks", "words", "--include-path", folder]) == 2
        assert message in capsys.readouterr().err


def test_no_file_is_written_over(checkpoint, tasks, tmp_path, capsys):
    folder = tasks("words", ROWS, CHOICES)
    (tmp_path / "samples.jsonl").write_text("mine")
    words = ["harness", checkpoint, "--tasks", "words", "--include-path", folder, "--out", tmp_path / "samples.jsonl"]
    assert main([str(word) for word in words]) == 2
    assert "samples.jsonl" in capsys.readouterr().err
    assert (tmp_path / "samples.jsonl").read_text() == "mine"


def test_without_lm_eval_the_command_says_how_it_is_installed(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(harness_model, "PRESENT", False)
    assert main(["harness", str(checkpoint), "--tasks", "words"]) == 2
    assert "pip install 'lmjax[harness]'" in capsys.readouterr().err
