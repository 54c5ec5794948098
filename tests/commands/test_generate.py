"""`lmjax generate` and `lmjax chat`: prompts from arguments and standard input, what is drawn, and what is shown."""

import io
import json
import re
import shutil

import pytest

import lmjax
from lmjax.cli import main

pytestmark = pytest.mark.xdist_group("commands")  # one process trains what they share


def test_several_prompts_are_continued(capsys, workdir):
    greedy = ["--temperature", "0", "--max-tokens", "4"]
    assert main(["generate", str(workdir), "--prompt", "the cat", "--prompt", "a", *greedy]) == 0
    said = capsys.readouterr().out
    expected = lmjax.load(workdir).generate(["the cat", "a"], temperature=0.0, max_tokens=4)
    assert said == f"the cat{expected[0].text}\na{expected[1].text}\n"


def test_a_prompt_is_read_from_standard_input_without_its_last_line_end(capsys, workdir, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the\ncat\n"))
    assert main(["generate", str(workdir), "--temperature", "0", "--max-tokens", "4", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    (expected,) = lmjax.load(workdir).generate("the\ncat", temperature=0.0, max_tokens=4)
    assert written["prompt"] == "the\ncat" and written["text"] == expected.text
    assert written["tokens"] == expected.tokens and len(written["log_probs"]) == len(expected.tokens)
    assert written["finish_reason"] in ("length", "eos")


def test_seeds_decide_what_is_drawn(capsys, workdir):
    def drawn(seed: str) -> str:
        assert main(["generate", str(workdir), "--prompt", "the", "--max-tokens", "12", "--seed", seed]) == 0
        return capsys.readouterr().out

    assert drawn("1") == drawn("1") != drawn("2")


def test_the_most_likely_tokens_are_shown_in_a_table_of_percentages(capsys, workdir):
    arguments = ["--prompt", "the", "--max-tokens", "3", "--temperature", "0", "--top", "5"]
    assert main(["generate", str(workdir), *arguments]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.count("%") == 6]
    assert len(rows) == 3 and all(f"#{rank}" in said for rank in range(1, 6))
    assert main(["generate", str(workdir), *arguments, "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["alternatives"]
    assert [len(step) for step in steps] == [5, 5, 5]
    for row, step in zip(rows, steps, strict=True):
        shares = [float(share) for share in re.findall(r"([\d.]+)%", row)]
        assert shares[1:] == pytest.approx([100 * share for _, share in step], abs=0.051)
        assert shares[1:] == sorted(shares[1:], reverse=True)
        assert shares[0] == shares[1], "greedy: the chosen one is the most likely"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--top-k", "0"], "top_k = 0: expected a number above 0"),
        (["--top-p", "1.5"], "top_p = 1.5: expected a probability"),
        (["--temperature", "-1"], "temperature = -1.0: expected 0 or more"),
        (["--max-tokens", "0"], "max_tokens = 0: expected a number above 0"),
        (["--stop", ""], "stop = ('',): expected strings that are not empty"),
        (["--top-k", "x"], "invalid int value: 'x'"),
    ],
)
def test_a_sampling_setting_that_cannot_be_is_refused(fails, workdir, option, message):
    assert message in fails("generate", str(workdir), "--prompt", "a", *option)


def test_a_conversation_can_be_piped_in(capsys, workdir, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nagain\n"))
    assert main(["chat", str(workdir), "--max-tokens", "3", "--temperature", "0"]) == 0
    said = capsys.readouterr().out
    assert said.count("> ") == 3 and said.endswith("> \n")
    (first,) = lmjax.load(workdir).generate("User: hello\nAssistant:", max_tokens=3, temperature=0.0)
    assert said.startswith(f"> {first.text}")


@pytest.fixture
def ascii_terminal(monkeypatch):
    """Standard streams as PYTHONIOENCODING=ascii makes them; a function from what is typed to where output goes."""

    def opened(typed: bytes = b""):
        out, err = io.BytesIO(), io.BytesIO()
        for name, raw in (("stdout", out), ("stderr", err)):
            monkeypatch.setattr(f"sys.{name}", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="ascii"))
        return out, err

    return opened


def test_a_terminal_that_has_only_ascii_shows_every_text_and_reads_utf_8(ascii_terminal, workdir, tmp_path):
    given = [str(workdir), "--max-tokens", "2", "--temperature", "0"]
    out, _ = ascii_terminal()
    assert main(["generate", *given, "--prompt", "caf\u00e9 \U0001f600", "--top", "2"]) == 0
    assert out.getvalue().startswith(rb"caf\u00e9 \ud83d\ude00")
    out, _ = ascii_terminal("caf\u00e9\n".encode())
    assert main(["generate", *given, "--json"]) == 0
    assert json.loads(out.getvalue())["prompt"] == "caf\u00e9"
    out, err = ascii_terminal("caf\u00e9\n".encode() + b"\xff\nthe\n")
    assert main(["chat", *given]) == 0
    assert out.getvalue().count(b"> ") == 4 and b"lone surrogate U+DCFF" in out.getvalue()
    assert b"no chat template" in err.getvalue()
    out, err = ascii_terminal(b"\xff")
    assert main(["generate", *given]) == 2 and b"lone surrogate U+DCFF" in err.getvalue()
    copy = tmp_path / "\u00e9"
    shutil.copytree(workdir, copy)
    out, _ = ascii_terminal()
    assert main(["report", str(copy)]) == 0 and rb"\u00e9" in out.getvalue()
    out, err = ascii_terminal()
    assert main(["count", "gpt\u00e9"]) == 2 and rb"gpt\u00e9" in err.getvalue()


def test_a_text_that_the_context_ends_is_told_of_on_standard_error_and_may_slide(capsys, workdir):
    given = ["generate", str(workdir), "--prompt", "the cat " * 7, "--temperature", "0", "--max-tokens"]
    assert main([*given, "999999999999"]) == 0
    said = capsys.readouterr()
    full = "where the model's context of 64 is full; --beyond-context slide continues\n"
    assert said.err == f"the text ends after 8 tokens, {full}" and said.out.startswith("the cat the cat")
    assert main([*given, "40", "--beyond-context", "slide", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and len(json.loads(said.out)["tokens"]) == 40
    assert main([*given, "40", "--prompt", "a", "--json"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["context_full"] for line in said.out.splitlines()] == [True, False]
    assert said.err == f"prompt 1 ends after 8 tokens, {full}"


def test_a_beam_search_prints_the_best_text_or_several_with_their_scores(capsys, workdir):
    given = ["generate", str(workdir), "--prompt", "the cat", "--max-tokens", "6", "--beams", "4"]
    found = lmjax.load(workdir).beam_search("the cat", beams=4, max_tokens=6, n_best=3, length_penalty=0.0)[0]
    assert main([*given, "--length-penalty", "0"]) == 0
    assert capsys.readouterr().out == f"the cat{found[0].text}\n"
    assert main([*given, "--length-penalty", "0", "--n-best", "3"]) == 0
    assert capsys.readouterr().out == "".join(f"{text.score:.4f}  the cat{text.text}\n" for text in found)
    assert main([*given, "--length-penalty", "0", "--n-best", "3", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["prompt"] == "the cat" and [text["score"] for text in line["completions"]] == [t.score for t in found]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beams", "4", "--temperature", "0.5"], "--temperature: expected no beam search (--beams) beside it"),
        (["--beams", "4", "--stop", "x"], "--stop: expected no beam search (--beams) beside it"),
        (["--beams", "4", "--top", "2"], "--top: expected no beam search (--beams) beside it"),
        (["--n-best", "2"], "--n-best: expected a beam search (--beams) beside it; add --beams 4"),
        (["--beams", "2", "--n-best", "3"], "n_best = 3: expected 1 to beams = 2"),
        (["--beams", "0"], "beams = 0: expected a number above 0"),
    ],
)
def test_options_of_drawing_and_of_a_beam_search_do_not_go_together(fails, workdir, options, message):
    assert message in fails("generate", str(workdir), "--prompt", "a", *options)
