"""Conversations are rendered alike wherever they are read: loss on answers alone, prompts the openings of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmjax.data.conversations import Turn, encode, render
from lmjax.errors import UserError
from lmjax.settings import TemplateSettings
from lmjax.tokenizers.byte import ByteTokenizer

BYTES = ByteTokenizer()
EOS = BYTES.eos_id
TEMPLATE = TemplateSettings()


def user(text):
    return Turn("user", text)


def assistant(text):
    return Turn("assistant", text)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
exchanges = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(exchanges, st.booleans())
def test_a_prompt_is_the_beginning_of_every_conversation_that_goes_on_from_it(pairs, with_system):
    turns = [turn for asked, said in pairs for turn in (user(asked), assistant(said))]
    turns = [Turn("system", "be brief"), *turns] if with_system else turns
    whole = encode([turns], TEMPLATE, BYTES)[0]
    prompt = encode([turns[:-1]], TEMPLATE, BYTES)[0]
    n = len(prompt.ids)
    np.testing.assert_array_equal(whole.ids[:n], prompt.ids)
    np.testing.assert_array_equal(whole.is_answer[:n], prompt.is_answer)
    assert BYTES.decode(whole.ids[n:]) == " " + pairs[-1][1]
    assert whole.ids[-1] == EOS and whole.is_answer[n:].all()


@settings(max_examples=60, deadline=None)
@given(exchanges)
def test_the_assistants_tokens_are_its_answers_and_their_ends_and_nothing_else(pairs):
    turns = [turn for asked, said in pairs for turn in (user(asked), assistant(said))]
    ids, is_answer = encode([turns], TEMPLATE, BYTES)[0]
    expected = [token for _, said in pairs for token in (*BYTES.encode(" " + said), EOS)]
    assert ids[is_answer].tolist() == expected
    assert EOS not in ids[~is_answer]


def test_a_conversation_is_written_by_the_template_of_the_recipe():
    template = TemplateSettings(
        system="<s>{text}</s>", user="[U]{text}[/U]", assistant="[A]", answer="{text}!", between="|"
    )
    turns = [Turn("system", "S"), user("a {text} {braces}"), assistant("{text}"), user("b")]
    assert [piece.text for piece in render(turns, template)] == [
        "<s>S</s>[U]a {text} {braces}[/U][A]",
        "{text}!",
        "|[U]b[/U][A]",
    ]
    assert [piece.is_answer for piece in render(turns, template)] == [False, True, False]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user": "no place"}, r"^TemplateSettings\.user = "),
        ({"answer": "{text}{text}"}, r"^TemplateSettings\.answer = "),
    ],
)
def test_a_template_without_a_place_for_the_text_is_refused(change, field):
    with pytest.raises(UserError, match=field):
        TemplateSettings(**change)
