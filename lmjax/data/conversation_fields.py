"""Reads the fields of one conversation record, and checks that no field with a meaning is ignored.

In: the fields of a record, by name. Out: turns, answers and numbers. A known field is read, repeats what another field
holds, or is an error that names it: `Reader.check_all_read`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lmjax.data.conversations import Role, Turn, Turns
from lmjax.data.documents import BadRecordError, checked_text
from lmjax.errors import shortened

Fields = dict[str, Any]

SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
HISTORY_FIELDS = ("history",)  # turns before the prompt
MESSAGE_FIELDS = ("messages", "conversations", "conversation")
PROMPT_FIELDS = ("instruction", "prompt", "question", "input", "context")  # the first that is not empty is the prompt
INPUT_FIELDS = ("input", "context")  # appended to a prompt of another field
ANSWER_FIELDS = ("output", "response", "answer", "completion", "ref_text")
ANSWERS_FIELDS = ("answers", "responses", "completions")
RANKS_FIELDS, SCORES_FIELDS = ("ranks", "rankings"), ("scores", "rewards")
REWARD_FIELDS = ("reward", "score", "label")
IMITATED_FIELDS = ("label", "weight", "train")  # false or 0: the answer is not learned
SIDES = ("chosen", "rejected")
SIDE_SCORES = ("score_chosen", "score_rejected")
UNREAD_FIELDS = (  # fields that change the prompt, and that lmjax does not read
    *("tools", "functions", "image", "images", "audio", "audios", "video", "videos"),
    *("thinking", "reasoning", "reasoning_content"),
)
CONTEXT_FIELDS = (*SYSTEM_FIELDS, *HISTORY_FIELDS, *MESSAGE_FIELDS, *PROMPT_FIELDS, *UNREAD_FIELDS)
ANSWER_SIDE_FIELDS = (
    *(*ANSWER_FIELDS, *ANSWERS_FIELDS, *RANKS_FIELDS, *SCORES_FIELDS, *REWARD_FIELDS, *IMITATED_FIELDS),
    *(*SIDES, *SIDE_SCORES),
)

ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
}
_TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython")
_LEARNED_FIELDS = ("weight", "train", "training", "loss")  # of one message
_UNREAD_OF_MESSAGE = (*UNREAD_FIELDS, "tool_calls", "tool_call_id", "function_call", "name")
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_YES, _NO = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


class LeftOutError(Exception):
    """A valid record that this kind of rows does not use; the message is the reason, by which it is counted."""


def is_empty(value: object, *, in_json: bool = False) -> bool:
    """Whether a field is empty: null, blank text, an empty list or object, with `in_json` also as JSON text."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}") if in_json else not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


class Reader:
    """The fields of one record. Every method raises BadRecordError for a field of another form."""

    def __init__(self, row: Fields, answer_end: str, ignore: Sequence[str] = ()) -> None:
        """`ignore`: fields of messages that are ignored."""
        self.row = row
        self.answer_end = answer_end
        self._ignore = ignore
        self._read: set[str] = set()

    def first(self, names: tuple[str, ...]) -> str | None:
        """The first of these fields that is not empty, else the first that is not null."""
        present = [name for name in names if self.row.get(name) is not None]
        return next((name for name in present if not is_empty(self.row[name])), present[0] if present else None)

    def take(self, name: str) -> Any:
        """The value of a field, which counts as read."""
        self._read.add(name)
        return self.row[name]

    def pass_over(self, names: tuple[str, ...]) -> None:
        """Counts these fields as read."""
        self._read.update(names)

    def check_all_read(self, read_texts: Iterable[str], known: Sequence[str]) -> None:
        """Raises BadRecordError where a field of `known` is not read, not empty and does not repeat `read_texts`."""
        read_texts = set(read_texts)
        for name in known:
            value = self.row.get(name)
            if name in self._read or is_empty(value, in_json=name in (*HISTORY_FIELDS, *UNREAD_FIELDS)):
                continue
            texts = self._texts(value)
            if texts is None or not read_texts.issuperset(texts):
                raise BadRecordError(
                    f"field {name!r} = {shortened(value, 80)} has no place beside "
                    f"{', '.join(map(repr, sorted(self._read)))} and would be lost; "
                    f"name its place by fields of the source, or ignore it there: ignore = ({name!r},)"
                )

    def missing(self, wanted: str) -> BadRecordError:
        """The error for a record without a field for `wanted`."""
        lists = [name for name, value in self.row.items() if isinstance(value, list) and value]
        nested = [name for name in lists if all(isinstance(item, dict) for item in self.row[name])]
        hint = ""
        if len(self.row) == 1 and nested:
            hint = f"; the records seem to be in {nested[0]!r}: write them as a list, or one a line"
        elif len(self.row) == 1 and any(mark in name for name in self.row for mark in ";\t|"):
            hint = "; cells are expected to stand apart by commas"
        return BadRecordError(f"no {wanted} in its fields {shortened(list(self.row))[1:-1] or '(none)'}{hint}")

    def answer(self, value: object, field: str) -> str:
        text = checked_text(value, field).strip()
        if self.answer_end:
            text = text.removesuffix(self.answer_end).strip()
        if not text:
            raise BadRecordError(f"field {field!r}: the answer is empty")
        return text

    def number(self, value: object, field: str) -> float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise BadRecordError(f"field {field!r} = {shortened(value)}: expected a number") from None
        if not isinstance(value, bool | int | float) or not _is_finite(value):
            raise BadRecordError(f"field {field!r} = {shortened(value)}: expected a finite number")
        return float(value)

    def reward(self, field: str) -> float:
        """A reward; a label of true is 1 and of false is 0."""
        value = self.take(field)
        if isinstance(value, str) and value.strip().casefold() in _YES + _NO:
            return float(_is_yes(value, field))
        return self.number(value, field)

    def is_imitated(self) -> bool:
        """Whether the answer of the record is to be learned: not where its label or weight is false or 0."""
        flags = [_is_yes(self.take(name), name) for name in IMITATED_FIELDS if not is_empty(self.row.get(name))]
        return all(flags)

    def messages(self, value: list[Any], field: str) -> Turns:
        """Turns from ShareGPT's {from, value} or a chat's {role, content}."""
        return tuple(self._message(message, f"{field}[{place}]") for place, message in enumerate(value))

    def _message(self, message: Any, field: str) -> Turn:
        if not isinstance(message, dict):
            raise BadRecordError(f"field {field!r}: a message is {type(message).__name__}, expected an object")
        name = message.get("role", message.get("from"))
        role = ROLES.get(str(name).strip().casefold())
        if role is None and str(name).casefold() in _TOOL_ROLES:
            raise BadRecordError(f"field {field!r}: role {name!r}: conversations with tools are not read")
        if role is None:
            raise BadRecordError(f"field {field!r}: role {shortened(name)}, expected one of {', '.join(ROLES)}")
        for unread in _UNREAD_OF_MESSAGE:
            if unread not in self._ignore and not is_empty(message.get(unread)):
                raise BadRecordError(
                    f"field {field + '.' + unread!r} = {shortened(message[unread], 80)} is not read and would be lost; "
                    f"ignore it by ignore = ({unread!r},) of the source"
                )
        raw = next((message[key] for key in ("content", "value", "text") if message.get(key) is not None), None)
        if raw is None:
            raise BadRecordError(
                f"field {field!r}: a turn of the {role} is without text (null); calls of tools are not read"
            )
        content = _joined(raw, field)
        flags = [_is_yes(message[key], f"{field}.{key}") for key in _LEARNED_FIELDS if message.get(key) is not None]
        if role == "assistant":
            return Turn(role, self.answer(content, field), all(flags))
        if any(flags):
            raise BadRecordError(f"field {field!r}: a turn of the {role} is to be learned; only answers are")
        return Turn(role, checked_text(content, field).strip())

    def turns(self, value: object, field: str, *, opens: bool = False) -> Turns:
        """A conversation from messages, one message, HH-RLHF's text, or the plain text of a user.

        opens: the conversation is a prompt, in which HH-RLHF's text may end with an empty turn of the assistant.
        """
        if isinstance(value, list):
            return self.messages(value, field)
        if isinstance(value, dict):
            return self.messages([value], field)
        text = checked_text(value, field)
        if not is_transcript(text):
            return (Turn("user", text.strip()),)
        _, *parts = _HH_TURN.split(text)
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        if opens and len(pairs) > 1 and pairs[-1][0] == "Assistant" and not pairs[-1][1].strip():
            pairs.pop()
        return self.messages([{"role": name, "content": words} for name, words in pairs], field)

    def prompt(self) -> Turns:
        """The conversation before the answer, which other fields hold."""
        field = self.first((*MESSAGE_FIELDS, *PROMPT_FIELDS))
        if field is None:
            raise self.missing("prompt")
        turns = self.in_context(self._asked(field))
        if not any(turn.role == "user" and turn.text for turn in turns):
            raise BadRecordError(f"field {field!r}: the prompt is empty")
        return turns

    def _asked(self, field: str) -> Turns:
        """The prompt of a field, with its input from other fields."""
        turns = self.turns(self.take(field), field, opens=True)
        if not turns:
            raise BadRecordError(f"field {field!r}: the prompt is empty")
        if field in MESSAGE_FIELDS or len(turns) > 1:
            return turns
        texts = [turns[0].text]
        for name in INPUT_FIELDS:
            if name != field and not is_empty(self.row.get(name)):
                texts.append(checked_text(self.take(name), name).strip())
        return (Turn(turns[0].role, "\n\n".join(filter(None, texts))),)

    def in_context(self, turns: Turns) -> Turns:
        """The turns after the system message and the history of other fields, each added only once."""
        first = next((place for place, turn in enumerate(turns) if turn.role != "system"), len(turns))
        system, rest = turns[:first], turns[first:]
        field = self.first(SYSTEM_FIELDS)
        if field is not None and not is_empty(self.row[field]):
            message = Turn("system", checked_text(self.take(field), field).strip())
            system = system if message in system else (message, *system)
        field = self.first(HISTORY_FIELDS)
        if field is not None and not is_empty(self.row[field], in_json=True):
            history = self._history(self.take(field), field)
            rest = rest if rest[: len(history)] == history else (*history, *rest)
        return (*system, *rest)

    def _history(self, value: object, field: str) -> Turns:
        """Earlier turns, from [question, answer] pairs or from messages."""
        exchanges = as_list(value, field)
        if all(isinstance(exchange, dict) for exchange in exchanges):
            return self.messages(exchanges, field)
        turns: list[Turn] = []
        for exchange in exchanges:
            if not isinstance(exchange, list) or len(exchange) != 2:
                raise BadRecordError(f"field {field!r}: {shortened(exchange, 80)}: expected [question, answer]")
            question, answer = exchange
            turns += [
                Turn("user", checked_text(question, field).strip()),
                Turn("assistant", self.answer(answer, field)),
            ]
        return tuple(turns)

    def answers(self, field: str) -> list[str]:
        values = as_list(self.take(field), field)
        if any(isinstance(value, dict) for value in values):
            raise BadRecordError(f"field {field!r} holds objects, expected strings, with ranks or scores in a field")
        return [self.answer(value, field) for value in values]

    def numbers(self, field: str, answers: int) -> list[float]:
        """One number per answer."""
        values = as_list(self.take(field), field)
        if len(values) != answers:
            raise BadRecordError(f"{answers} answers and {len(values)} {field}: expected as many")
        return [self.number(value, field) for value in values]

    def conversation(self, field: str) -> Turns:
        """The conversation that ends with the answer in `field`, whether or not the field repeats the prompt."""
        value = self.take(field)
        asked = self.first(PROMPT_FIELDS)
        if isinstance(value, str) and not is_transcript(value):
            return self._answered(Turn("assistant", self.answer(value, field)), field)
        turns = up_to_answer(self.turns(value, field))
        if turns[0].role == "assistant" and (asked or self.first(MESSAGE_FIELDS)):
            before = self._answered(turns[0], field)
            return (*before, *turns[1:])
        if asked is not None and not is_empty(self.row[asked]):
            turns = _agreed(self._asked(asked), turns, asked, field)
        turns = self.in_context(turns)
        if not any(turn.role == "user" and turn.text for turn in turns[:-1]):
            raise BadRecordError(f"field {field!r}: the prompt is empty")
        return turns

    def _answered(self, answer: Turn, field: str) -> Turns:
        """The prompt with its answer. A prompt may end with that answer; another answer is an error."""
        prompt = self.prompt()
        if prompt[-1].role != "assistant":
            return (*prompt, answer)
        if prompt[-1].text != answer.text:
            raise BadRecordError(f"the prompt ends with another answer than that in field {field!r}")
        return prompt

    def answered(self) -> Turns:
        """A prompt and its answer; of a chat, up to the last answer."""
        field = self.first(ANSWER_FIELDS)
        if field is not None:
            return self.conversation(field)
        if self.first(MESSAGE_FIELDS) is None:
            raise self.missing("answer")
        return up_to_answer(self.prompt())

    def _texts(self, value: object) -> list[str] | None:
        """The texts of a conversation or of answers; None for any other value."""
        if isinstance(value, str):
            if is_transcript(value):
                return [words.strip() for words in _HH_TURN.split(value)[2::2] if words.strip()]
            return [value.strip().removesuffix(self.answer_end).strip()]
        if isinstance(value, dict):
            content = next((value[key] for key in ("content", "value", "text") if value.get(key) is not None), None)
            return None if content is None else self._texts(content)
        if isinstance(value, list):
            inner = [self._texts(item) for item in value]
            return None if any(texts is None for texts in inner) else [text for texts in inner for text in texts or ()]
        return None


def is_transcript(text: str) -> bool:
    """Whether the text is a conversation in HH-RLHF's form, with or without its leading blank lines."""
    if text.startswith(("\n\nHuman:", "\n\nAssistant:")):
        return True
    return text.startswith(("Human:", "Assistant:")) and ("\n\nAssistant:" in text or "\n\nHuman:" in text)


def up_to_answer(turns: Turns) -> Turns:
    """The conversation up to the last answer."""
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise BadRecordError("no turn of the assistant")
    return turns[: answers[-1] + 1]


def as_list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRecordError(f"field {field!r} is {type(value).__name__}, expected a list")
    return value


def _agreed(asked: Turns, turns: Turns, prompt_field: str, field: str) -> Turns:
    """The conversation in `field`, preceded by turns that only the prompt in another field has.

    Raises BadRecordError where the two conversations differ.
    """
    before = turns[:-1]
    if {turn.text for turn in asked} <= {turn.text for turn in before}:
        return turns
    if asked[len(asked) - len(before) :] == before:
        return (*asked, turns[-1])
    raise BadRecordError(f"field {field!r} holds a conversation that does not contain the prompt in {prompt_field!r}")


def _joined(content: object, field: str) -> object:
    """Content as one text. Parts of a list are joined; a part that is not text is an error."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            raise BadRecordError(f"field {field!r}: a part of type {shortened(kind, 40)}: only text is read")
        texts.append(text)
    return "".join(texts)


def _is_yes(value: object, field: str) -> bool:
    word = str(value).strip().casefold() if isinstance(value, bool | int | float | str) else ""
    if word not in _YES + _NO:
        raise BadRecordError(
            f"field {field!r} = {shortened(value)}: expected true or false, 1 or 0; ignore it if it is no weight"
        )
    return word in _YES


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of float
        return False
