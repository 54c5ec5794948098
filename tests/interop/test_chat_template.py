"""Chat templates are written as transformers writes them, and a stage's template gives the text that it trained on."""

import base64
import json
from pathlib import Path

import pytest

from lmjax.data.conversations import Turn, encode, render
from lmjax.errors import UserError
from lmjax.interop.chat_template import (
    FILE,
    ChatTemplate,
    as_jinja,
    encode_rendered,
    read_chat_template,
    reads_alike,
    saved_chat_template,
    write_own_template,
    write_stage_template,
)
from lmjax.settings import TemplateSettings, TokenizerSettings
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.tokenizers.tokenizer import build_tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "chat_templates.json").read_text())
STAGES = {
    "default": TemplateSettings(),
    "odd": TemplateSettings(
        system="[S'] {text}\n",
        user='{{ "Q" }}\t{text}\r\n{% raw %}',
        assistant="A\\n:😀",
        answer=" {text} %}#",
        between="é\n\n",
    ),
    "bare": TemplateSettings(system="{text}", user="{text}", answer="{text}", between=""),
}
TEXT = ["User: the cat sat on the mat\nAssistant: the cat ate the rat\n"] * 20


def template(source, **given):
    return ChatTemplate(source, **({"tokens": {}, "ids": {}, "ends": (), "where": "hf"} | given))


@pytest.mark.parametrize("name", GOLDEN["templates"])
def test_a_template_writes_what_transformers_writes(name):
    case = GOLDEN["templates"][name]
    read = template(case["template"], tokens=GOLDEN["tokens"])
    for written in case["texts"]:
        assert read.render(written["messages"], written["opened"]) == written["text"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_s_template_in_jinja_writes_the_text_of_training_in_transformers(name):
    case, settings = GOLDEN["stages"][name], STAGES[name]
    assert as_jinja(settings) == case["template"]
    for written in case["texts"]:
        turns = [Turn(message["role"], message["content"]) for message in written["messages"]]
        pieces = render(turns, settings)
        assert "".join(piece.text + "</s>" * piece.is_answer for piece in pieces) == written["text"]


def test_a_stage_s_template_read_back_gives_the_tokens_of_training():
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=270), TEXT)
    ids = {"<|endoftext|>": tokenizer.eos_id}
    turns = [Turn("user", "the cat"), Turn("assistant", "sat"), Turn("user", "é 'x' {{ y }}\n")]
    for settings in (STAGES["default"], STAGES["odd"]):
        read = template(as_jinja(settings), tokens={"eos_token": "<|endoftext|>"}, ids=ids)
        assert read.prompt(tuple(turns), tokenizer) == encode([turns], settings, tokenizer)[0].ids.tolist()


def test_a_template_whose_prompt_joins_with_its_answer_is_told_from_one_that_does_not():
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=260), ["aYes " * 40])
    assert tokenizer.encode("aYes") != tokenizer.encode("a") + tokenizer.encode("Yes")
    assert reads_alike(TemplateSettings(), tokenizer)
    assert not reads_alike(TemplateSettings(assistant="a", answer="{text}"), tokenizer)
    assert reads_alike(TemplateSettings(assistant="a", answer="{text}"), ByteTokenizer())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no system turn') }}", r"hf: its chat template failed: TemplateError: no system turn"),
        ("a\n{% for %}", r"hf: its chat template \(line 2\) failed: TemplateSyntaxError"),
        ("{{ messages[0].content.absent.more }}", r"failed: UndefinedError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", r"failed: SecurityError"),
        ("{{ messages.append(1) }}", r"failed: SecurityError"),
        ("{{ 1 / 0 }}", r"failed: ZeroDivisionError"),
        ("{% include 'x' %}", r"failed: TypeError: no loader"),
        ("{% for i in range(10**9) %}{% endfor %}", r"failed: OverflowError"),
    ],
)
def test_a_template_that_fails_is_an_error_that_says_how_and_reaches_nothing_of_python(source, message):
    with pytest.raises(UserError, match=message):
        template(source).render([{"role": "user", "content": "a"}])


def test_added_tokens_in_what_a_template_writes_are_those_tokens():
    tokenizer = build_tokenizer(TokenizerSettings(kind="bpe", vocab_size=270, user_symbols=("<|im_end|>",)), TEXT)
    (end,), eos = tokenizer.encode("<|im_end|>"), tokenizer.eos_id
    ids = {"<|im_end|>": end, "<|endoftext|>": eos, "<|end": 3}
    cat, rat = tokenizer.encode("the cat"), tokenizer.encode(" rat")
    assert encode_rendered("the cat<|im_end|> rat<|endoftext|>", ids, tokenizer) == [*cat, end, *rat, eos]
    assert encode_rendered("the cat<|im_end|> rat", ids, tokenizer) == [*cat, end, *rat]
    assert encode_rendered("the cat", ids, tokenizer) == cat


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_a_folder_s_template_comes_with_its_special_tokens_and_the_tokens_that_end_an_answer(tmp_path):
    added = {"5": {"content": "<|im_end|>", "special": True}, "6": {"content": "<s>"}}
    config = {"chat_template": "A", "eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": added}
    more = {"special_tokens_map": {"bos_token": "<s>"}, "generation_config": {"eos_token_id": [5, 9]}}
    more["tokenizer"] = {"added_tokens": [{"id": 7, "content": "<x>"}]}
    folder = write(tmp_path / "hf", tokenizer_config=config, config={"eos_token_id": 4}, **more)
    found = read_chat_template(folder)
    assert (found.template, found.ends) == ("A", (5, 9, 4))
    assert found.tokens == {"bos_token": "<s>", "eos_token": "<|im_end|>"}
    assert found.ids == {"<|im_end|>": 5, "<s>": 6, "<x>": 7}
    found.save(folder)
    files = {FILE: base64.b64encode((folder / FILE).read_bytes()).decode()}
    assert saved_chat_template(files, folder) == found
    (folder / "chat_template.jinja").write_text("B")
    assert read_chat_template(folder).template == "B"  # which transformers prefers, too


def test_of_several_templates_the_default_is_taken_and_a_folder_may_have_none(tmp_path):
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert read_chat_template(write(tmp_path / "a", tokenizer_config={"chat_template": several})).template == "D"
    assert read_chat_template(write(tmp_path / "b", tokenizer_config={})) is None
    assert read_chat_template(write(tmp_path / "c")) is None
    assert saved_chat_template({}, tmp_path) is None


@pytest.mark.parametrize("value", [5, [5], {"a": 1}, [{"name": 3}]])
def test_a_template_of_another_form_is_refused_by_its_field(tmp_path, value):
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template"):
        read_chat_template(write(tmp_path / "hf", tokenizer_config={"chat_template": value}))


def test_a_stage_s_template_takes_the_place_of_another_and_a_model_s_own_stays_as_it_is(tmp_path):
    folder = write(tmp_path / "hf", tokenizer_config={"eos_token": "</s>", "chat_template": "A"})
    (folder / "chat_template.jinja").write_text("B")
    assert write_own_template(folder, template("C")) and read_chat_template(folder).template == "B"
    assert write_stage_template(folder, TemplateSettings())
    assert read_chat_template(folder).template == as_jinja(TemplateSettings())
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
    plain = write(tmp_path / "plain", tokenizer_config={})
    assert write_own_template(plain, template("C")) and read_chat_template(plain).template == "C"
    assert write_stage_template(plain, TemplateSettings())  # of a BERT, whose texts end with its [SEP]
    assert read_chat_template(plain).template == as_jinja(TemplateSettings(), "sep_token")
    empty = write(tmp_path / "empty")
    assert not write_stage_template(empty, TemplateSettings()) and not write_own_template(empty, template("C"))


def test_a_saved_template_that_is_damaged_is_named(tmp_path):
    for content in ("%%%", "a", "e30="):  # neither is base64; the last is an empty object
        with pytest.raises(UserError, match=f"{FILE}"):
            saved_chat_template({FILE: content}, tmp_path)
