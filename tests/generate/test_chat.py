"""Streaming gives what `generate` gives, whole characters at a time; a conversation remembers what fits."""

import dataclasses

import numpy as np
import pytest

from lmjax.data.conversations import Turn, encode
from lmjax.errors import UserError
from lmjax.generate import chat as chat_module
from lmjax.generate.chat import ChatFormat, StageTurns, chat, stream
from lmjax.generate.decode import generate
from lmjax.generate.sampling import SamplingSettings
from lmjax.settings import TemplateSettings
from lmjax.tokenizers.byte import ByteTokenizer


@pytest.mark.parametrize(
    ("seed", "stop"), [(0, ()), (1, ("stop", "ast")), (2, ("é", "aa\n")), (3, ("\n",)), (4, ("b b", "bst")), (5, ())]
)
def test_the_pieces_are_the_generated_text_and_never_end_inside_a_character(subject, seed, stop):
    settings = SamplingSettings(max_tokens=50, temperature=1.5, seed=seed, stop=stop)
    whole = generate(subject.model, subject.params, subject.tokenizer, ["ab"], settings)[0]
    pieces = list(stream(subject.model, subject.params, subject.tokenizer, "ab", settings))
    assert "".join(pieces) == whole.text  # so that half a character was never shown as U+FFFD
    assert all(pieces)
    assert len(pieces) > len(whole.tokens) // 3  # as they come, not at the end


def test_the_streamed_texts_hold_characters_of_several_tokens_and_stop_strings(subject):
    """The test above would prove nothing without them."""
    settings = SamplingSettings(max_tokens=50, temperature=1.5)
    texts = [
        generate(subject.model, subject.params, subject.tokenizer, ["ab"], chosen)[0]
        for chosen in (settings, SamplingSettings(max_tokens=50, temperature=1.5, seed=3, stop=("\n",)))
    ]
    assert "\ufffd" in texts[0].text and texts[1].finish_reason == "stop"


class Terminal:
    """Lines to read, then what ends the input, and all that was written."""

    def __init__(self, *lines, end=EOFError):
        self.lines, self.end, self.written = list(lines), end, ""

    def read(self, _):
        if not self.lines:
            raise self.end
        return self.lines.pop(0)

    def write(self, text):
        self.written += text


@pytest.fixture
def prompts(monkeypatch):
    """The prompts that the conversation sends, each of which is answered with " b"."""
    sent = []

    def answer(model, params, tokenizer, prompt, settings):
        sent.append((prompt, settings))
        yield from (" ", "b")

    monkeypatch.setattr(chat_module, "stream", answer)
    return sent


TURNS = ChatFormat(user="a\n", assistant="b\n", separator="\n")  # of pieces that the tokenizer has


def converse(subject, terminal, **settings):
    class Loose(type(subject.tokenizer)):
        def _encode_batch(self, texts):
            return [np.zeros(len(text), np.int32) for text in texts]

    chat(subject.model, subject.params, Loose(), SamplingSettings(**settings), TURNS, terminal.read, terminal.write)


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_conversation_ends_cleanly_with_its_input(subject, prompts, end):
    terminal = Terminal("x", end=end)
    converse(subject, terminal, max_tokens=8)
    assert terminal.written == " b\n\n"


def test_an_answer_is_read_with_what_was_said_before_and_ends_before_the_next_turn(subject, prompts):
    converse(subject, Terminal("x", "y"), max_tokens=8, stop=("!",))
    assert [prompt for prompt, _ in prompts] == ["a\nx\nb\n", "a\nx\nb\n b\na\ny\nb\n"]
    assert prompts[0][1].stop == ("!", "\na\n")


@pytest.mark.parametrize("max_tokens", [8, 500])
def test_a_long_conversation_is_forgotten_from_its_beginning(subject, prompts, max_tokens):
    converse(subject, Terminal(*["x" * 30] * 6), max_tokens=max_tokens)
    lengths = [len(prompt) for prompt, _ in prompts]
    room = max(128 - max_tokens, 64)
    assert lengths[:2] == [35, 73 if room >= 73 else 35] and max(lengths) <= room
    assert lengths[-1] == lengths[-2] and all(prompt.endswith("x\nb\n") for prompt, _ in prompts)


def test_a_line_longer_than_the_context_is_refused_and_the_conversation_goes_on(subject):
    terminal = Terminal("x" * 200, end=EOFError)
    converse(subject, terminal, max_tokens=8)
    assert "context of 128" in terminal.written and terminal.written.endswith("\n\n")


def test_an_interrupt_during_an_answer_ends_the_conversation(subject, monkeypatch):
    def interrupted(*_):
        yield "b"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat_module, "stream", interrupted)
    terminal = Terminal("x", "y")
    converse(subject, terminal, max_tokens=8)
    assert terminal.written == "b\n" and terminal.lines == ["y"]


TEMPLATE = TemplateSettings(user="Q: {text}\n", assistant="A:", answer=" <{text}>", between="\n\n")


def talk(subject, monkeypatch, turns, answers, *lines, **settings):
    """What the model was given, with which settings, for each line; what was written, and what was told."""
    sent, pending = [], [list(pieces) for pieces in answers]

    def answer(model, params, tokenizer, prompt, settings):
        sent.append((prompt, settings))
        pieces = pending.pop(0)
        yield from pieces[:-1]
        return pieces[-1]

    monkeypatch.setattr(chat_module, "stream", answer)
    terminal, told = Terminal(*lines), []
    settings = SamplingSettings(max_tokens=8, **settings)
    chat(subject.model, subject.params, ByteTokenizer(), settings, turns, terminal.read, terminal.write, told.append)
    return sent, terminal.written, told


def test_turns_are_the_very_tokens_that_the_stage_trained_on_with_an_end_of_text_behind_each_answer(
    subject, monkeypatch
):
    answers = [(" <", "ye", "s>", False), (" <no>", False)]
    sent, written, told = talk(subject, monkeypatch, StageTurns(TEMPLATE), answers, "x", "y")
    conversation = [Turn("user", "x"), Turn("assistant", "yes"), Turn("user", "y"), Turn("assistant", "no")]
    for number in (0, 1):
        expected = encode([conversation[: 2 * number + 1]], TEMPLATE, ByteTokenizer())[0].ids.tolist()
        assert sent[number][0] == expected and sent[number][1].stop == ()
    assert sent[1][0] == [*b"Q: x\nA: <yes>", 256, *b"\n\nQ: y\nA:"]
    assert written == "yes\nno\n\n" and told == []


def test_what_a_template_puts_around_an_answer_is_not_shown_and_text_like_it_is(subject, monkeypatch):
    for pieces, shown in (
        ((" <a>", "b>"), "a>b"),
        ((" ", "<", "a", ">"), "a"),
        (("a",), "a"),
        ((" <",), ""),
        ((" <a> ",), "a> "),
    ):
        _, written, _ = talk(subject, monkeypatch, StageTurns(TEMPLATE), [(*pieces, False)], "x")
        assert written == shown + "\n\n"


def test_a_model_without_a_template_is_told_of_once_and_one_with_is_not(subject, monkeypatch):
    _, _, told = talk(subject, monkeypatch, ChatFormat(), [("b", False), ("b", False)], "x", "y")
    assert len(told) == 1 and "no chat template" in told[0] and r"'User: ...\nAssistant:'" in told[0]


def test_an_answer_that_the_context_cuts_off_is_told_of(subject, monkeypatch):
    _, _, told = talk(subject, monkeypatch, StageTurns(TEMPLATE), [("b", True), ("b", False)], "x", "y")
    assert told == ["the answer ends where the model's context of 128 tokens is full; --beyond-context slide continues"]


def test_tokens_that_end_a_template_s_answers_end_them(subject, monkeypatch):
    sent, _, _ = talk(subject, monkeypatch, StageTurns(dataclasses.replace(TEMPLATE, ends=(7, 9))), [("b", False)], "x")
    assert sent[0][1].ends == (7, 9)


def test_a_line_that_the_template_refuses_is_told_of_and_the_conversation_goes_on_without_it(subject, monkeypatch):
    class Turns(StageTurns):
        def prompt(self, turns, tokenizer):
            if turns[-1].text == "bad":
                raise UserError("the template refuses it")
            return super().prompt(turns, tokenizer)

    sent, written, _ = talk(subject, monkeypatch, Turns(TEMPLATE), [(" <b>", False)], "bad", "x")
    assert written == "the template refuses it\nb\n\n"
    assert [prompt for prompt, _ in sent] == [list(b"Q: x\nA:")]


def test_streaming_takes_ids_and_says_whether_the_context_ended_it(subject):
    settings = SamplingSettings(max_tokens=60, temperature=0.7, seed=0)
    ids = subject.tokenizer.encode("ab" * 50)

    def read(prompt):
        pieces, text = stream(subject.model, subject.params, subject.tokenizer, prompt, settings), ""
        while True:
            try:
                text += next(pieces)
            except StopIteration as end:
                return text, end.value

    assert read(ids) == read("ab" * 50)
    assert read("ab" * 50)[1] and not read("a")[1]
