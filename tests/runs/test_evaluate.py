"""`lmjax evaluate` and, of a language model, `lmjax score`: numbers of texts that a forward pass gives, too."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import lmjax
from lmjax.cli import main
from lmjax.runs.evaluate import SourceLikelihood, table_of
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.byte import ByteTokenizer
from tests.tiny import lacking_bytes, write_rows

TEXTS = ["the cat sat on a mat", "the sea", "", "a mat ran and ran"]


@pytest.fixture(scope="module")
def trained(whole):
    return whole[1]


def summed(trained, text):
    """log P of a text of at most 15 bytes after the end-of-text token, by one forward pass."""
    model = lmjax.load(trained)
    ids = model.tokenizer.encode(text)
    logits = np.asarray(model.apply([[model.tokenizer.eos_id, *ids[:-1]]]), np.float64)[0]
    log_norm = np.log(np.exp(logits).sum(-1))
    return float((logits[np.arange(len(ids)), ids] - log_norm).sum())


def printed(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def test_a_source_has_the_numbers_of_its_documents(trained, tmp_path, capsys):
    texts = ["the sea", "a mat ran"]
    (tmp_path / "two.txt").write_text("\n".join(texts))
    out, err = printed(capsys, "evaluate", trained, "--data", tmp_path / "two.txt", "--documents", "line", "--json")
    (row,) = json.loads(out)
    size, total = sum(map(len, texts)), sum(summed(trained, text) for text in texts)
    assert (row["documents"], row["tokens"], row["bytes"], row["skipped"]) == (2, size, size, 0)
    assert row["loss"] == pytest.approx(-total / size, abs=1e-5)
    assert row["perplexity"] == pytest.approx(math.exp(-total / size), rel=1e-5)
    assert row["bits_per_byte"] == pytest.approx(-total / size / math.log(2), abs=1e-5)
    assert "step 10" in err and "context 16, stride 8" in err


def test_a_tokenizer_that_loses_text_has_no_bits_per_byte():
    numbers = {"documents": 1, "skipped": 0, "tokens": 4, "bytes": 10, "log_prob": -20.0}
    kept, lost = (SourceLikelihood("a.txt", **numbers, lossless=lossless) for lossless in (True, False))
    assert kept.bits_per_byte == pytest.approx(2 / math.log(2))
    assert lost.bits_per_byte is None and lost.plain()["bits_per_byte"] is None
    assert table_of([lost]).splitlines()[1].split() == ["a.txt", "1", "4", "10", "5.0000", "148.4132"]


def test_several_sources_are_added_up_token_by_token(trained, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("the cat sat on a mat and ran to the sea " * 9)
    write_rows(tmp_path / "short.jsonl", [{"content": "a mat"}, {"content": "the sea"}, {"other": 1}])
    words = ["evaluate", trained, "--data", tmp_path / "long.txt", tmp_path / "short.jsonl", "--field", "content"]
    assert main([str(word) for word in words]) == 2
    assert "short.jsonl:3" in capsys.readouterr().err
    out, err = printed(capsys, *words, "--skip-bad", "--json")
    long, short, whole = json.loads(out)
    assert (short["documents"], short["skipped"], whole["source"]) == (2, 1, "all")
    assert whole["tokens"] == long["tokens"] + short["tokens"] == 360 + 12
    mean = (long["loss"] * 360 + short["loss"] * 12) / 372
    assert whole["loss"] == pytest.approx(mean, abs=1e-9)
    assert "short.jsonl: 1 bad records were left out" in err
    out, _ = printed(capsys, *words, "--skip-bad")
    lines = out.splitlines()
    assert len(lines) == 4 and lines[0].split()[-1] == "bits/byte" and lines[3].startswith("all ")
    assert lines[1].split()[3:5] == ["360", f"{long['loss']:.4f}"]


def test_a_smaller_stride_gives_tokens_more_before_them(trained, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("the cat sat on a mat and ran to the sea " * 30)
    rows = {}
    for stride in (1, 16):
        words = ("evaluate", trained, "--data", tmp_path / "long.txt", "--stride", stride, "--json")
        (rows[stride],) = json.loads(printed(capsys, *words)[0])
    assert rows[1]["tokens"] == rows[16]["tokens"] == 1200
    assert rows[1]["loss"] != rows[16]["loss"]


def test_a_smaller_context_cuts_what_a_token_is_read_after(trained, tmp_path, capsys):
    text = "the cat sat on a mat ran"
    (tmp_path / "text.txt").write_text(text)
    words = ("evaluate", trained, "--data", tmp_path / "text.txt", "--json", "--stride", "8")
    out, err = printed(capsys, *words, "--context", "8")
    model = lmjax.load(trained)
    ids, total = np.array([model.tokenizer.eos_id, *text.encode()]), 0.0
    for begin in (0, 8, 16):
        logits = np.asarray(model.apply([ids[begin : begin + 8]]), np.float64)[0]
        log_norm = np.log(np.exp(logits).sum(-1))
        total += (logits[np.arange(8), ids[begin + 1 : begin + 9]] - log_norm).sum()
    assert json.loads(out)[0]["loss"] == pytest.approx(-total / 24, abs=1e-5)
    assert json.loads(out)[0]["loss"] != json.loads(printed(capsys, *words)[0])[0]["loss"]
    assert "context 8, stride 8" in err


def test_word_perplexity_is_over_the_words_and_line_ends_of_the_corpus(trained, tmp_path, capsys):
    (tmp_path / "one.txt").write_text(" = A , b = \n \n ")
    (tmp_path / "two.txt").write_text(" cat @-@ mat . \n ")
    words = ["evaluate", trained, "--data", tmp_path / "one.txt", tmp_path / "two.txt", "--detokenize", "wikitext"]
    out, err = printed(capsys, *words, "--json")
    one, two, whole = json.loads(out)
    nats = [-summed(trained, "= A, b =\n\n"), -summed(trained, "cat-mat.\n")]
    assert (one["bytes"], one["words"], one["line_ends"]) == (10, 5, 2)
    assert (two["bytes"], two["words"], two["line_ends"]) == (9, 4, 1)
    assert one["word_perplexity"] == pytest.approx(math.exp(nats[0] / 7), rel=1e-5)
    assert two["word_perplexity"] == pytest.approx(math.exp(nats[1] / 5), rel=1e-5)
    assert whole["word_perplexity"] == pytest.approx(math.exp(sum(nats) / 12), rel=1e-5)
    assert "over 9 words between blanks and 3 ends of lines of the corpus" in err
    lines = printed(capsys, *words)[0].splitlines()
    assert lines[0].endswith("word ppl") and lines[1].split()[-2:] == ["7", f"{one['word_perplexity']:.4f}"]
    words[-1] = "ptb"
    assert json.loads(printed(capsys, *words, "--json")[0])[0]["bytes"] == len("= A , b =\n\n")
    assert "words" not in json.loads(printed(capsys, *words[:-2], "--json")[0])[0]


def test_a_mesh_gives_the_same_numbers(trained, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat sat on a mat and ran to the sea " * 9)
    words = ("evaluate", trained, "--data", tmp_path / "text.txt", "--json")
    whole, cut = (json.loads(printed(capsys, *words, *more)[0])[0] for more in ((), ("--mesh", "data=2,fsdp=4")))
    assert cut["loss"] == pytest.approx(whole["loss"], abs=1e-6)


def test_the_probability_of_each_text_is_printed_as_it_is_read(trained, capsys):
    words = [word for text in TEXTS for word in ("--text", text)]
    out, _ = printed(capsys, "score", trained, *words, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert rows[1]["log_prob"] == pytest.approx(summed(trained, "the sea"), abs=1e-5)
    assert rows[1]["log_prob_per_token"] == pytest.approx(rows[1]["log_prob"] / 7)
    assert rows[1]["log_prob_per_byte"] == rows[1]["log_prob_per_token"] and rows[1]["bytes"] == 7
    assert (rows[2]["log_prob"], rows[2]["tokens"], rows[2]["log_prob_per_token"]) == (0.0, 0, 0.0)
    out, _ = printed(capsys, "score", trained, *words)
    assert [float(line.split()[0]) for line in out.splitlines()[1:]] == [round(row["log_prob"], 4) for row in rows]


def test_each_token_is_shown_with_the_likeliest_in_its_place(trained, capsys):
    out, _ = printed(capsys, "score", trained, "--text", "the", "--top", "3", "--json")
    row = json.loads(out)
    assert [own["token"] for own in row["each"]] == ["t", "h", "e"]
    assert sum(own["log_prob"] for own in row["each"]) == pytest.approx(row["log_prob"])
    model = lmjax.load(trained)
    logits = np.asarray(model.apply([[model.tokenizer.eos_id, *b"th"]]), np.float64)[0]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for own, share in zip(row["each"], shares, strict=True):
        assert [p for _, p in own["top"]] == pytest.approx(sorted(share)[::-1][:3], abs=1e-5)
        assert own["top"][0][0] == model.token_texts([share.argmax()])[0]
    out, _ = printed(capsys, "score", trained, "--text", "the", "--top", "3")
    assert out.count("%") == 3 * 4 and out.splitlines()[1].endswith('"the"')


def test_the_lines_of_a_file_are_texts(trained, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("the sea\na mat\n")
    out, _ = printed(capsys, "score", trained, tmp_path / "texts.txt", "--json")
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["the sea", "a mat"]


def test_bytes_that_are_several_to_a_character_are_counted(trained, capsys):
    out, _ = printed(capsys, "score", trained, "--text", "张三", "--json")
    row = json.loads(out)
    assert row["bytes"] == 6 == row["tokens"] == len(ByteTokenizer().encode("张三"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "CKPT"], "FILE = None: expected a file, or --text, and not both"),
        (["score", "CKPT", "a.txt", "--text", "b"], "expected a file, or --text, and not both"),
        (["evaluate", "CKPT", "--data", "missing.txt"], "missing.txt"),
        (["evaluate", "CKPT", "--data", "FOLDER/empty.txt"], "empty.txt"),
        (
            ["evaluate", "CKPT", "--data", "FOLDER/text.txt", "--stride", "17"],
            "--stride = 17: expected 1 to",
        ),
        (["evaluate", "CKPT", "--data", "FOLDER/text.txt", "--context", "17"], "--context = 17: expected 1 to the mod"),
        (
            ["evaluate", "CKPT", "--data", "FOLDER/text.txt", "--context", "8", "--stride", "9"],
            "--stride = 9: expected",
        ),
        (
            ["evaluate", "CKPT", "--task", "piqa", "--context", "8"],
            "--context = 8: expected no such option with --task",
        ),
        (
            ["evaluate", "CKPT", "--task", "piqa", "--detokenize", "ptb"],
            "--detokenize = 'ptb': expected no such option",
        ),
        (["evaluate", "CKPT", "--data", "FOLDER/text.txt", "--mesh", "data=3"], "mesh.data = 3"),
        (["evaluate", "CKPT", "--data", "FOLDER/text.unknown"], "set kind"),
        (["evaluate", "FOLDER", "--data", "FOLDER/text.txt"], "no checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_said_and_ends_with_2(trained, tmp_path, capsys, words, message):
    (tmp_path / "empty.txt").write_text("")
    for name in ("text.txt", "text.unknown"):
        (tmp_path / name).write_text("the sea")
    named = [word.replace("CKPT", str(trained)).replace("FOLDER", str(tmp_path)) for word in words]
    assert main(named) == 2
    assert message in capsys.readouterr().err


def test_a_text_with_a_byte_that_the_tokenizer_lacks_is_said(tiny, train, tmp_path, capsys):
    folder = lacking_bytes(tmp_path / "tokenizer", "huggingface", (0x01,))
    train(tiny(tokenizer=TokenizerSettings(kind="huggingface", path=str(folder))), tmp_path / "run")
    (tmp_path / "text.txt").write_text("the sea\na\x01\nthe mat\n")
    source = ("--data", str(tmp_path / "text.txt"), "--documents", "line", "--json")
    for words in (["evaluate", *source], ["score", "--text", "a\x01"], ["generate", "--prompt", "a\x01"]):
        assert main([words[0], str(tmp_path / "run"), *words[1:]]) == 2
        error = capsys.readouterr().err
        assert "holds '\\x01' (byte 0x01) at character 1, for which the tokenizer has no token" in error
        assert ("text.txt: " in error and "--skip-bad" in error) == (words[0] == "evaluate")
    out, err = printed(capsys, "evaluate", tmp_path / "run", *source, "--skip-bad")
    (row,) = json.loads(out)
    assert [row[name] for name in ("documents", "skipped", "tokens", "bytes")] == [2, 1, 10, 14]  # "the" is one token
    assert row["bits_per_byte"] == pytest.approx(row["loss"] * 10 / 14 / math.log(2))
    text = json.loads(printed(capsys, "score", tmp_path / "run", "--text", "the sea", "--json")[0])
    assert text["log_prob_per_token"] == pytest.approx(text["log_prob"] / 5)
    assert text["log_prob_per_byte"] == pytest.approx(text["log_prob"] / 7)
    assert "text.txt: 1 bad records were left out" in err


def test_a_parameter_that_is_not_finite_is_said(trained, monkeypatch, capsys):
    real = lmjax.runs.load.language_model_params
    broken = lambda *args: {**(tree := real(*args)), next(iter(tree)): _nan(next(iter(tree.values())))}  # noqa: E731
    monkeypatch.setattr("lmjax.runs.load.language_model_params", broken)
    assert main(["score", str(trained), "--text", "the sea"]) == 2
    assert "NaN or infinite" in capsys.readouterr().err


def _nan(tree):
    import jax

    return jax.tree.map(lambda leaf: leaf * jnp.nan, tree)


@pytest.mark.xdist_group("rewarded")
def test_a_reward_model_predicts_no_text(rewarded, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the sea")
    assert main(["evaluate", str(rewarded / "reward"), "--data", str(tmp_path / "text.txt")]) == 2
    assert "expected a language model, not a reward model; use lmjax score" in capsys.readouterr().err
    assert main(["evaluate", str(rewarded / "reward"), "--task", "hellaswag"]) == 2
    assert "expected a language model, not a reward model" in capsys.readouterr().err
    assert main(["score", str(rewarded / "reward"), "--text", "a"]) == 2
    assert "expected a file of prompts and answers" in capsys.readouterr().err
