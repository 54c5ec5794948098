"""Templates by name and in Jinja: the text of transformers, the assistant's tokens, and no work without end."""

import json
import time
from pathlib import Path

import pytest
import tokenizers

from lmjax.data.conversations import END, Turn, encode, render
from lmjax.data.jinja_chat import render_messages
from lmjax.data.named_templates import NAMED
from lmjax.errors import UserError
from lmjax.interop.chat_template import ChatTemplate, as_jinja, filled_template
from lmjax.settings import TemplateSettings, TokenizerSettings
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.tokenizers.byte_level_bpe import byte_level_pipeline
from lmjax.tokenizers.pipeline import BYTES
from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "chat_templates.json").read_text())
PUBLISHED = GOLDEN["published"]
TURNS = (Turn("user", "Is it?"), Turn("assistant", "Yes."), Turn("user", "Why?"), Turn("assistant", "It is.\n"))
MARKERS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>"]


def folder_of(path, eos="</s>", markers=MARKERS):
    """A Hugging Face folder with a byte-level vocabulary in which the markers are special tokens."""
    path.mkdir()
    vocabulary = {token: index for index, token in enumerate([*sorted(BYTES), *markers])}
    pipeline = byte_level_pipeline(vocabulary, [], path)
    pipeline.add_special_tokens([tokenizers.AddedToken(marker, special=True) for marker in markers])
    (path / "tokenizer.json").write_text(pipeline.to_str())
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "bos_token": "<s>"}))
    return path


@pytest.fixture
def published(tmp_path):
    """(a folder's tokenizer, the folder), whose texts end with a token that may be named."""

    def opened(eos="</s>"):
        folder = folder_of(tmp_path / "hf", eos)
        return load_tokenizer(folder), folder

    return opened


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_name_writes_what_transformers_writes_by_the_published_template(name, published):
    tokenizer, folder = published()
    filled = filled_template(TemplateSettings(name=name), tokenizer, folder)
    assert len(PUBLISHED[name]["texts"]) >= 2
    for case in PUBLISHED[name]["texts"]:
        text = render_messages(filled.jinja, case["messages"], dict(filled.tokens), "here", case["opened"])
        assert text == case["text"]


@pytest.mark.parametrize("name", sorted(NAMED))
@pytest.mark.parametrize("eos", ["</s>", "<|im_end|>"])
def test_pieces_of_a_conversation_are_its_text_and_the_learned_tokens_are_the_answers_with_their_ends(
    name, eos, published
):
    tokenizer, folder = published(eos)
    filled = filled_template(TemplateSettings(name=name), tokenizer, folder)
    (encoded,) = encode([TURNS], filled, tokenizer)
    messages = [{"role": turn.role, "content": turn.text} for turn in TURNS]
    whole = render_messages(filled.jinja, messages, dict(filled.tokens), "here")
    ids, all_ids = encoded.ids.tolist(), tokenizer.encode(whole)
    assert ids == all_ids[: len(ids)] and tokenizer.decode(all_ids[len(ids) :]).strip() == ""
    end = tokenizer.encode(NAMED[name].turn_end or eos)
    trims = name in ("llama3", "gemma")
    answers = [*tokenizer.encode("Yes."), *end, *tokenizer.encode("It is." if trims else "It is.\n"), *end]
    assert [index for index, learned in zip(ids, encoded.is_answer, strict=True) if learned] == answers
    assert encoded.is_answer[-1] and filled.ends == tuple(index for index in end if index != tokenizer.eos_id)


@pytest.mark.parametrize("name", sorted(NAMED))
@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=259), ["the cat " * 9])]
)
def test_a_tokenizer_without_the_markers_ends_turns_with_its_end_of_text(name, tokenizer, tmp_path):
    filled = filled_template(TemplateSettings(name=name), tokenizer, tmp_path)
    (encoded,) = encode([TURNS], filled, tokenizer)
    learned = [index for index, own in zip(encoded.ids.tolist(), encoded.is_answer, strict=True) if own]
    end = tokenizer.eos_id
    last = "It is." if name in ("llama3", "gemma") else "It is.\n"
    assert learned == [*tokenizer.encode("Yes."), end, *tokenizer.encode(last), end]
    assert "\0" not in tokenizer.decode(encoded.ids.tolist()) and filled.ends == ()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_prompt_is_the_beginning_of_its_demonstration(name, published):
    tokenizer, folder = published()
    filled = filled_template(TemplateSettings(name=name), tokenizer, folder)
    for count in (1, 3):
        prompt, whole = (e.ids.tolist() for e in encode([TURNS[:count], TURNS[: count + 1]], filled, tokenizer))
        assert whole[: len(prompt)] == prompt and len(whole) > len(prompt)
    (plain,) = render(TURNS[:1], filled)
    assert not plain.is_answer and "Is it?" in plain.text


def test_alpaca_is_the_published_prompt_and_a_system_turn_takes_the_preambles_place(tmp_path):
    filled = filled_template(TemplateSettings(name="alpaca"), ByteTokenizer(), tmp_path)
    (prompt,) = render([Turn("user", "Name three.")], filled)
    assert prompt.text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName three.\n\n### Response:\n"
    )
    (prompt,) = render([Turn("system", "Be brief."), Turn("user", "Name three.")], filled)
    assert prompt.text == "Be brief.\n\n### Instruction:\nName three.\n\n### Response:\n"


def test_a_model_s_own_template_is_taken_from_its_checkpoint_with_the_tokens_that_end_its_answers(published):
    tokenizer, folder = published()
    own = ChatTemplate(PUBLISHED["chatml"]["template"], {"eos_token": "</s>"}, {}, (tokenizer.eos_id, 7), "hf")
    own.save(folder)
    filled = filled_template(TemplateSettings(name="own"), tokenizer, folder)
    assert filled.jinja == own.template and filled.ends == (7,) and as_jinja(filled) == own.template
    (encoded,) = encode([TURNS[:2]], filled, tokenizer)
    learned = encoded.ids[encoded.is_answer].tolist()
    assert learned == tokenizer.encode("Yes.<|im_end|>")  # this template has no end of text: turns end with a token


def test_an_answer_that_a_template_leaves_without_an_end_gets_the_end_of_text(published):
    tokenizer, folder = published()
    lines = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
    )
    filled = filled_template(TemplateSettings(jinja=lines + "{% endif %}"), tokenizer, folder)
    (encoded,) = encode([TURNS], filled, tokenizer)
    eos = tokenizer.eos_id
    assert encoded.ids[encoded.is_answer].tolist() == [*tokenizer.encode("Yes."), eos, *tokenizer.encode("It is."), eos]


def test_data_cannot_write_an_end_of_text(tmp_path):
    filled = filled_template(TemplateSettings(name="zephyr"), ByteTokenizer(), tmp_path)
    with pytest.raises(UserError, match=r"dialogue.template zephyr: a turn has '.x00end of text.x00'"):
        render([Turn("user", f"a{END}b")], filled)
    (encoded,) = encode([[Turn("user", f"a{END}b")]], TemplateSettings(), ByteTokenizer())
    assert ByteTokenizer().eos_id not in encoded.ids


def test_own_without_a_template_says_what_else_to_name(tmp_path):
    with pytest.raises(
        UserError, match=r"^dialogue.template.name = 'own': expected a model that came with a chat temp"
    ):
        filled_template(TemplateSettings(name="own"), ByteTokenizer(), tmp_path)


def test_gemma_refuses_a_system_turn_and_a_template_that_rewrites_what_it_wrote_is_refused(tmp_path):
    gemma = filled_template(TemplateSettings(name="gemma"), ByteTokenizer(), tmp_path)
    with pytest.raises(UserError, match=r"^dialogue.template gemma: its chat template failed: TemplateError: expected"):
        render([Turn("system", "Be brief."), *TURNS], gemma)
    counts = "{{ messages | length }}{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(UserError, match=r"expected a template that only adds to its text"):
        filled_template(TemplateSettings(jinja=counts), ByteTokenizer(), tmp_path)


def test_five_fields_beside_a_name_are_refused_and_an_empty_assistant_is_not():
    with pytest.raises(UserError, match=r"user = 'Q {text}': expected none beside name = 'chatml'; leave it out"):
        TemplateSettings(name="chatml", user="Q {text}")
    bare = TemplateSettings(system="{text}", user="{text}", assistant="", answer="{text}", between="")
    (encoded,) = encode([TURNS[:2]], bare, ByteTokenizer())
    assert encoded.ids.tolist() == [*b"Is it?Yes.", ByteTokenizer().eos_id]
    assert encoded.ids[encoded.is_answer].tolist() == [*b"Yes.", ByteTokenizer().eos_id]
    written = render_messages(as_jinja(bare), [{"role": "user", "content": "a"}], {"eos_token": "E"}, "here", True)
    assert written == "a"


WITHOUT_END = {
    "nested loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by +": "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "a long repetition": "{{ 'a' * 10**10 }}",
    "a large power": "{{ 10 ** (10**9) }}",
    "a wide format": "{{ '%099999999999d' % 1 }}",
    "a wide field": "{{ 'a'.ljust(10**11) }}",
    "replacing every letter": "{% set a = 'a' * 10**6 %}{{ a.replace('a', a) }}",
    "replacing every letter by a filter": "{% set a = 'a' * 10**6 %}{{ a | replace('a', a) }}",
    "joining long parts": "{% set a = 'a' * 10**6 %}{{ a.join(a) }}",
    "joining long parts by a filter": "{% set a = 'a' * 10**6 %}{{ a | join(a) }}",
    "joining what a filter gives": "{% set a = 'a' * 10**6 %}{{ range(9000) | map('string') | join(a) }}",
    "a wide line": "{{ 'a' | center(10**11) }}",
    "far to the right": "{% set a = '\n' * 10**6 %}{{ a | indent(10**6, blank=true) }}",
    "wide tabs": "{% set a = '\t' * 10**6 %}{{ a.expandtabs(10**6) }}",
    "long ends of lines": "{% set a = 'a' * 10**6 %}{{ a | wordwrap(1, true, a) }}",
    "a wide field of a filter": "{{ '%099999999999d' | format(1) }}",
    "a width that is given": "{{ '%*d' % (10**10, 1) }}",
    "a width that a filter is given": "{{ '%*d' | format(10**10, 1) }}",
    "a width within a field": "{{ '{:{}}'.format('a', 10**10) }}",
    "replacing by names": "{% set a = 'a' * 10**6 %}{{ a | replace(new=a, old='a') }}",
    "long ends of lines by name": "{% set a = 'a' * 10**6 %}{{ a | wordwrap(1, wrapstring=a) }}",
    "many empty places": "{{ [1] | batch(10**10, 0) | list }}",
    "much text": "{% for a in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
}


def test_filters_and_methods_of_texts_write_what_they_write_elsewhere():
    source = (
        "{{ 'a-b-c'.replace('-', '+', 1) }}|{{ 'a-b' | replace('-', '+') }}|{{ ', '.join(['a', 'b']) }}|"
        "{{ [1, 2] | join('; ') }}|{{ [{'x': 1}, {'x': 2}] | join(',', attribute='x') }}|{{ 'a' | center(5) }}|"
        "{{ 'a\nb' | indent(2) }}|{{ [1, 2, 3] | batch(2, 0) | list }}|{{ {'a': [1]} | tojson(indent=1) }}|"
        "{{ '%s and %s' | format(1, 2) }}|{{ missing | join(', ') }}|{{ range(3) | map('string') | join }}|"
        "{{ ', '.join(range(3) | map('string')) }}|{{ '%d' | format(1700000000) }}|{{ 1700000000 | default(2) }}|"
        "{{ '{}, {}'.format(1700000000, 2) }}|{{ '%s' % 1700000000 }}"
    )
    expected = 'a+b-c|a+b|a, b|1; 2|1,2|  a  |a\n  b|[[1, 2], [3, 0]]|{\n "a": [\n  1\n ]\n}|1 and 2||012|0, 1, 2'
    expected += "|1700000000|1700000000|1700000000, 2|1700000000"
    assert render_messages(source, [], {}, "hf") == expected


@pytest.mark.parametrize("source", WITHOUT_END.values(), ids=WITHOUT_END)
def test_a_template_without_end_is_stopped_within_seconds(source):
    began = time.process_time()
    with pytest.raises(UserError, match=r"hf: its chat template failed: (OverflowError: more than|RecursionError)"):
        render_messages(source, [], {}, "hf")
    assert time.process_time() - began < 10
