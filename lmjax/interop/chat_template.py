"""Chat templates: the Jinja in which Hugging Face folders say how a conversation is written, read and written.

In: a folder's template, which runs in Jinja's sandbox with what transformers gives it and nothing else; or the template
of an lmjax stage. Out: the tokens of a conversation that is opened for an answer; or Jinja that writes the very text
that the stage trained on.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from lmjax.data.conversations import END, Turn, Turns, encode, render
from lmjax.data.jinja_chat import render_messages
from lmjax.data.named_templates import NAMED
from lmjax.errors import UserError, require
from lmjax.files import check_form, decode_json, read_json, read_text, write_whole
from lmjax.settings import TemplateSettings
from lmjax.settings.conversations import TEXT
from lmjax.tokenizers.tokenizer import Tokenizer

FILE = "lmjax_chat_template.json"  # beside a checkpoint's tokenizer files
JINJA, CONFIG = "chat_template.jinja", "tokenizer_config.json"
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


_SAMPLE = (Turn("user", "Is it so?"), Turn("assistant", "Yes."), Turn("user", "Why?"), Turn("assistant", "It is."))


class _Saved(TypedDict):
    template: str
    tokens: dict[str, str]
    ids: dict[str, int]
    ends: list[int]


@dataclass(frozen=True)
class ChatTemplate:
    """A model's own template: how its turns are written and which tokens end its answers.

    `tokens` are the special tokens by the names that templates use, such as "eos_token"; `ids` are those of all added
    tokens by their texts, which are these tokens wherever they stand in what the template writes, as in transformers.
    """

    template: str
    tokens: Mapping[str, str]
    ids: Mapping[str, int]
    ends: tuple[int, ...]
    where: str

    note: str = ""
    stop: tuple[str, ...] = ()
    around: tuple[str, str] = ("", "")

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text. Raises UserError where the template fails or refuses the conversation."""
        return render_messages(self.template, messages, self.tokens, self.where, add_generation_prompt)

    def prompt(self, turns: Turns, tokenizer: Tokenizer) -> list[int]:
        """The tokens of a conversation that is opened for the next answer, as transformers' apply_chat_template's."""
        text = self.render([{"role": turn.role, "content": turn.text} for turn in turns])
        return encode_rendered(text, self.ids, tokenizer)

    def save(self, folder: Path) -> None:
        """Writes the template beside a checkpoint's tokenizer files."""
        saved: _Saved = {
            "template": self.template,
            "tokens": dict(self.tokens),
            "ids": dict(self.ids),
            "ends": list(self.ends),
        }
        write_whole(folder / FILE, json.dumps(saved, ensure_ascii=False, indent=1))


def saved_chat_template(files: Mapping[str, str], where: object) -> ChatTemplate | None:
    """The template among a checkpoint's tokenizer files, which are in base64; None where there is none."""
    if FILE not in files:
        return None
    try:
        data = base64.b64decode(files[FILE], validate=True)
    except ValueError as error:
        raise UserError(f"{where}: the tokenizer's file {FILE!r} is damaged; name an older step's folder") from error
    saved: _Saved = decode_json(data, f"{where}: {FILE}", _Saved)
    return ChatTemplate(saved["template"], saved["tokens"], saved["ids"], tuple(saved["ends"]), str(where))


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """The template of a Hugging Face folder; None where it has none.

    It is chat_template.jinja, or else "chat_template" of tokenizer_config.json; where that holds several, the one named
    "default". Raises UserError for files that are damaged.
    """
    values = _object(folder / CONFIG)
    source = values.get("chat_template")
    if isinstance(source, list):
        forms = check_form(source, list[dict[str, str]], folder / CONFIG, "chat_template")
        source = {form.get("name"): form.get("template") for form in forms}.get("default")
    if (folder / JINJA).is_file():
        source = read_text(folder / JINJA)
    if source is None:
        return None
    check_form(source, str, folder / CONFIG, "chat_template")
    tokens, ids = _special_tokens(folder), _added_ids(folder)
    ends = [ids[tokens["eos_token"]]] if tokens.get("eos_token") in ids else []
    for name in ("generation_config.json", "config.json"):
        value = _object(folder / name).get("eos_token_id")
        ends += [index for index in (value if isinstance(value, list) else [value]) if type(index) is int]
    return ChatTemplate(source, tokens, ids, tuple(dict.fromkeys(ends)), str(folder))


def filled_template(template: TemplateSettings, tokenizer: Tokenizer, folder: Path) -> TemplateSettings:
    """A template with a name or in Jinja, for a tokenizer: its source, and the special tokens that it reads.

    `folder` holds the tokenizer's files, as a checkpoint keeps them. Where the tokenizer does not read its end of text
    from text, as those that are made here, or has not the token that ends a turn, the end of text stands for it. Raises
    UserError where the model came without a template of its own, and where the template fails on a conversation.
    """
    if not template.in_jinja:
        return template
    tokens = {"bos_token": ""} | _special_tokens(folder)
    source, ends = template.jinja, template.ends
    if template.name == "own":
        path = folder / FILE
        fix = 'name another, such as "chatml", or start from a model that was imported with its chat template'
        require(path.is_file(), "dialogue.template.name", "own", "a model that came with a chat template", fix)
        saved = read_json(path, _Saved)
        source, tokens, ends = saved["template"], tokens | saved["tokens"], tuple(saved["ends"])
    elif template.name:
        named = NAMED[template.name]
        end = tokenizer.encode(named.turn_end) if named.turn_end else []
        source, ends = named.source_for(len(end) == 1), tuple(end) if len(end) == 1 else ()
    reads_end = tokenizer.encode(tokens.get("eos_token", "")) == [tokenizer.eos_id]
    tokens["eos_token"] = tokens["eos_token"] if reads_end else END
    ends = tuple(index for index in ends if index != tokenizer.eos_id)
    filled = dataclasses.replace(template, jinja=source, tokens=tuple(sorted(tokens.items())), ends=ends)
    render(_SAMPLE, filled)
    return filled


def require_end_of_text(template: TemplateSettings, use: str) -> None:
    """Raises UserError where an answer has another end than the end of text, which is all that `use` stops at."""
    ended = all(piece.ended for piece in render(_SAMPLE, template) if piece.is_answer)
    expected = f"one whose answers end with the tokenizer's end of text, where {use} stops"
    fix = "name another, or import the model with that token as the eos_token of its tokenizer_config.json"
    require(ended, "dialogue.template", template.name or template.jinja, expected, fix)


def encode_rendered(text: str, ids: Mapping[str, int], tokenizer: Tokenizer) -> list[int]:
    """The tokens of a text in which the added tokens `ids` stand for themselves, whatever the tokenizer makes of them.

    A tokenizer that reads them itself reads the text as a whole; of others, the parts between them.
    """
    present = [name for name in ids if name and name in text]
    if all(tokenizer.encode(name) == [ids[name]] for name in present):
        return tokenizer.encode(text)
    return _by_parts(text, {name: ids[name] for name in present}, tokenizer)


def _by_parts(text: str, ids: Mapping[str, int], tokenizer: Tokenizer) -> list[int]:
    longest_first = sorted(ids, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return [index for part in parts if part for index in ([ids[part]] if part in ids else tokenizer.encode(part))]


def as_jinja(template: TemplateSettings, end: str = "eos_token") -> str:
    """A stage's template in Jinja: it writes the texts that `render` does, ends of text included.

    `end` is the name under which the tokenizer has its end of text; a template that is in Jinja stays as it is. Without
    add_generation_prompt a conversation that ends with a user's turn is not opened for the answer.
    """

    if template.in_jinja:
        return template.jinja

    def around(shape: str) -> str:
        before, _, behind = shape.partition(TEXT)
        parts = [repr(before)] * bool(before) + ["message['content']"] + [repr(behind)] * bool(behind)
        return " + ".join(parts)

    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'system' -%}{{- " + around(template.system) + " -}}"
        "{%- elif message['role'] == 'user' -%}{{- " + around(template.user) + " -}}"
        "{%- elif message['role'] == 'assistant' -%}"
        "{{- " + repr(template.assistant) + " + " + around(template.answer) + f" + {end} -}}}}"
        "{%- if not loop.last or add_generation_prompt -%}{{- " + repr(template.between) + " -}}{%- endif -%}"
        "{%- else -%}{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- " + repr(template.assistant) + " -}}{%- endif -%}"
    )


def write_stage_template(folder: Path, template: TemplateSettings) -> bool:
    """Puts a stage's template into tokenizer_config.json of a folder that is written; False where it has none.

    It takes the place of any other template: transformers prefers a file of its own to this field.
    """
    path = folder / CONFIG
    if not path.is_file():
        return False
    values = read_json(path, dict[str, Any])
    values["chat_template"] = as_jinja(
        template, "eos_token" if values.get("eos_token") else "sep_token"
    )  # as BERT's is
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (folder / JINJA).unlink(missing_ok=True)
    return True


def write_own_template(folder: Path, template: ChatTemplate) -> bool:
    """Puts the template that a model came with into tokenizer_config.json, unless the folder has it already."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    values = read_json(path, dict[str, Any])
    if "chat_template" not in values and not (folder / JINJA).is_file():
        values["chat_template"] = template.template
        path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return True


def reads_alike(template: TemplateSettings, tokenizer: Tokenizer) -> bool:
    """Whether a conversation's text, read as a whole, has the tokens that the stage trained on, piece by piece.

    Where not, a tokenizer joins the end of a prompt with the beginning of its answer.
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in _SAMPLE]
    tokens = dict(template.tokens) | {"eos_token": END}
    text = render_messages(as_jinja(template), messages, tokens, "the stage's template")
    pieces = encode([_SAMPLE], template, tokenizer)[0].ids.tolist()
    return _by_parts(text, {END: tokenizer.eos_id}, tokenizer)[: len(pieces)] == pieces


def _special_tokens(folder: Path) -> dict[str, str]:
    """The special tokens by the names that templates use."""
    named = _object(folder / "special_tokens_map.json") | _object(folder / CONFIG)
    return {name: text for name in _NAMED if (text := _content(named.get(name))) is not None}


def _added_ids(folder: Path) -> dict[str, int]:
    """The ids of tokens that were added to the vocabulary, from whichever files of the folder name them."""
    pipeline = _object(folder / "tokenizer.json").get("added_tokens") or []
    decoder = _object(folder / CONFIG).get("added_tokens_decoder") or {}
    found = [(token, token.get("id")) for token in pipeline if isinstance(token, dict)]
    found += [(token, int(index)) for index, token in decoder.items() if index.isdecimal() and len(index) < 10]
    ids = {_content(token): index for token, index in found} | _object(folder / "added_tokens.json")
    return {name: index for name, index in ids.items() if isinstance(name, str) and type(index) is int}


def _content(token: Any) -> str | None:
    """The text of a token, which is a string or an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _object(path: Path) -> dict[str, Any]:
    return read_json(path, dict[str, Any]) if path.is_file() else {}
