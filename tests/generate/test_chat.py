"""Streaming gives what `generate` gives, whole characters at a time; a conversation remembers what fits."""

import numpy as np
import pytest

from lmjax.generate import chat as chat_module
from lmjax.generate.chat import ChatFormat, chat, stream
from lmjax.generate.decode import generate
from lmjax.generate.sampling import SamplingSettings


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
