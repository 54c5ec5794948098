"""Reads instructions, chats, rankings, pairs and rewarded answers from files in the common public shapes.

In: JSONL, plain or gzipped, JSON lists or CSV. The shape of a record is found by its fields: Alpaca, Dolly,
self-instruct, OpenAssistant trees, `chosen` and `rejected` (HH-RLHF's text, or messages), ShareGPT and chat messages,
lists of answers with ranks or scores, answers with a reward. Out: the records of `lmjax.data.dialogue`.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lmjax.data.dialogue import Demonstration, Prompt, Ranking, Record, Response, Role, Turn, Turns
from lmjax.data.documents import BadRecordError, checked_text
from lmjax.data.open_files import list_files
from lmjax.data.openings import openings
from lmjax.errors import UserError
from lmjax.rlhf_settings import DialogueSourceSettings

# an answer is a demonstration's last one; responses are all that a record has, ranked or not
Kind = Literal["demonstration", "answer", "ranking", "response", "prompt"]
Fields = dict[str, Any]

PROMPT_FIELDS = ("instruction", "prompt", "question", "context")
INPUT_FIELDS = ("input", "context")  # beside an instruction
ANSWER_FIELDS = ("output", "response", "answer", "completion", "ref_text")
ANSWERS_FIELDS = ("answers", "responses", "completions")
RANKS_FIELDS, SCORES_FIELDS = ("ranks", "rankings"), ("scores", "rewards")
REWARD_FIELDS = ("reward", "score", "label")
SIDES = ("chosen", "rejected")
MESSAGE_FIELDS = ("messages", "conversations")
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot"), "assistant"),
}
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class Records(NamedTuple):
    """What was read, and the messages of the records that were skipped."""

    records: list[Record]
    skipped: list[str]


def read_records(source: DialogueSourceSettings, kind: Kind) -> Records:
    """The records of one kind in a source; a tree or a task with several instances gives several.

    Raises UserError for a file that cannot be read, for a bad record unless `on_bad_record` is "skip", and where the
    source has no record of this kind.
    """
    convert = _CONVERTERS[kind]
    out = Records([], [])
    if source.kind == "embedded":
        rows = _openings(source)
    else:
        rows = [row for path in list_files(source.path, SUFFIXES) for row in _rows(path)]
    for where, row in rows[round(len(rows) * source.begin) : round(len(rows) * source.end)]:
        try:
            if isinstance(row, BadRecordError):
                raise row
            out.records.extend(convert(_Reader(row, source.answer_end)))
        except BadRecordError as error:
            if source.on_bad_record == "error":
                article = "an" if kind == "answer" else "a"
                fix = 'mend it, or leave it out: on_bad_record = "skip" of its source, --skip-bad of lmjax score'
                raise UserError(f"{where}: expected {article} {kind}: {error}; {fix}") from None
            out.skipped.append(f"{where}: {error}")
    if not out.records:
        raise UserError(
            f"source.path = {source.name!r}: expected at least one {kind}, found none in {len(rows)} records, "
            f"{len(out.skipped)} of them bad; check the file, begin and end"
        )
    return out


def _openings(source: DialogueSourceSettings) -> list[tuple[str, Fields | BadRecordError]]:
    """The embedded corpus's openings of sentences as records."""
    pairs = enumerate(openings(source.split), start=1)
    return [(f"{source.name}: record {number}", {"prompt": a, "answer": b}) for number, (a, b) in pairs]


def _rows(path: Path) -> Iterator[tuple[str, Fields | BadRecordError]]:
    """Each record of a file with its place; a line that is no JSON object comes as its error."""
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a readable file of UTF-8 text: {error}; fetch it again") from error
    if path.suffix == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True))
        yield from ((f"{path}:{reader.line_num}", row) for row in reader)
    elif path.name.removesuffix(".gz").endswith(".json"):
        try:
            listed = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{path}: expected JSON ({error}); fetch it again") from error
        if not isinstance(listed, list):
            raise UserError(f"{path}: expected a list of records, found {type(listed).__name__}; use .jsonl for lines")
        yield from ((f"{path}: record {number}", _object(row)) for number, row in enumerate(listed, start=1))
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{path}:{number}", _parsed(line)


def _parsed(line: str) -> Fields | BadRecordError:
    try:
        return _object(json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        return BadRecordError(f"malformed JSON ({error})")


def _object(value: Any) -> Fields | BadRecordError:
    return value if isinstance(value, dict) else BadRecordError(f"expected an object, found {type(value).__name__}")


class _Reader:
    """One record's fields. Every method raises BadRecordError for what does not fit."""

    def __init__(self, row: Fields, answer_end: str) -> None:
        self.row = row
        self.answer_end = answer_end

    def first(self, names: tuple[str, ...]) -> str | None:
        """The first of these fields that the record has and that is not null."""
        return next((name for name in names if self.row.get(name) is not None), None)

    def missing(self, wanted: str) -> BadRecordError:
        return BadRecordError(f"no {wanted} in its fields {', '.join(map(repr, self.row)) or '(none)'}")

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
                raise BadRecordError(f"field {field!r} = {value!r}: expected a number") from None
        if not isinstance(value, bool | int | float) or not math.isfinite(value):
            raise BadRecordError(f"field {field!r} = {value!r}: expected a finite number")
        return float(value)

    def messages(self, value: list[Any], field: str) -> Turns:
        """Turns from ShareGPT's {from, value} or a chat's {role, content}."""
        turns = []
        for message in value:
            if not isinstance(message, dict):
                raise BadRecordError(f"field {field!r}: a message is {type(message).__name__}, expected an object")
            name = message.get("role", message.get("from"))
            role = ROLES.get(str(name))
            if role is None:
                raise BadRecordError(f"field {field!r}: role {name!r}, expected one of {', '.join(ROLES)}")
            content = message.get("content", message.get("value"))
            if role == "assistant":
                turns.append(Turn(role, self.answer(content, field)))
            else:
                turns.append(Turn(role, checked_text(content, field).strip()))
        return tuple(turns)

    def turns(self, value: object, field: str) -> Turns:
        """A conversation from messages, one message, HH-RLHF's text, or a user's plain text."""
        if isinstance(value, list):
            return self.messages(value, field)
        if isinstance(value, dict):
            return self.messages([value], field)
        text = checked_text(value, field)
        if not text.startswith(("\n\nHuman:", "\n\nAssistant:")):
            return (Turn("user", text.strip()),)
        _, *parts = _HH_TURN.split(text)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        names = {"Human": "user", "Assistant": "assistant"}
        return self.messages([{"role": names[name], "content": words} for name, words in pairs], field)

    def prompt(self) -> Turns:
        """The conversation before the answer that the record's other fields hold."""
        field = self.first((*MESSAGE_FIELDS, *PROMPT_FIELDS))
        if field is None:
            raise self.missing("prompt")
        turns = self.turns(self.row[field], field)
        beside = self.first(INPUT_FIELDS) if field == "instruction" else None
        if beside and str(self.row[beside]).strip():
            text = checked_text(self.row[beside], beside).strip()
            turns = (Turn("user", f"{turns[0].text}\n\n{text}"),)
        if self.row.get("system"):
            turns = (Turn("system", checked_text(self.row["system"], "system").strip()), *turns)
        if not any(turn.role == "user" and turn.text for turn in turns):
            raise BadRecordError(f"field {field!r}: the prompt is empty")
        return turns

    def answers(self, field: str) -> list[str]:
        return [self.answer(text, field) for text in _list(self.row[field], field)]

    def numbers(self, field: str, answers: int) -> list[float]:
        """A number for each of so many answers."""
        values = _list(self.row[field], field)
        if len(values) != answers:
            raise BadRecordError(f"{answers} answers and {len(values)} {field}: expected as many")
        return [self.number(value, field) for value in values]

    def side(self, field: str) -> tuple[Turns, str]:
        """The prompt and the answer of `chosen` or `rejected`, which may or may not repeat the prompt."""
        value = self.row[field]
        if isinstance(value, str) and self.first((*MESSAGE_FIELDS, *PROMPT_FIELDS)):
            return self.prompt(), self.answer(value, field)
        turns = _up_to_answer(self.turns(value, field))
        return turns[:-1] or self.prompt(), turns[-1].text

    def answered(self) -> tuple[Turns, str]:
        """A prompt and its answer; of a chat, its last one."""
        field = self.first(ANSWER_FIELDS)
        if field is not None:
            return self.prompt(), self.answer(self.row[field], field)
        if self.first(MESSAGE_FIELDS) is None:
            raise self.missing("answer")
        turns = _up_to_answer(self.prompt())
        return turns[:-1], turns[-1].text


def _up_to_answer(turns: Turns) -> Turns:
    """The conversation without what follows the last answer."""
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise BadRecordError("no turn of the assistant")
    return turns[: answers[-1] + 1]


def _demonstrations(reader: _Reader) -> list[Record]:
    row = reader.row
    if _is_tree(row):
        return [Demonstration(turns) for turns in _threads(reader, row["prompt"], ())]
    if "instances" in row:
        return [record for instance in _instances(reader) for record in _demonstrations(instance)]
    if "chosen" in row:
        prompt, chosen, _ = _pair(reader)
        return [Demonstration((*prompt, Turn("assistant", chosen)))]
    if row.get("label") is False:  # an answer that is not to be imitated
        return []
    prompt, answer = reader.answered()
    return [Demonstration((*prompt, Turn("assistant", answer)))]


def _rankings(reader: _Reader) -> list[Record]:
    row = reader.row
    if _is_tree(row):
        return list(_tree_rankings(reader))
    if any(side in row for side in SIDES):
        prompt, chosen, rejected = _pair(reader)
        return [Ranking(prompt, (chosen, rejected), (0, 1))]
    field = reader.first(ANSWERS_FIELDS)
    if field is None:
        raise reader.missing("answers")
    answers = tuple(reader.answers(field))
    by = reader.first(RANKS_FIELDS + SCORES_FIELDS)
    if by is None:
        raise reader.missing("ranks or scores")
    numbers = reader.numbers(by, len(answers))
    if len(answers) < 2:
        raise BadRecordError(f"field {field!r}: {len(answers)} answers, expected 2 or more")
    return [Ranking(reader.prompt(), answers, _ranks([-x for x in numbers] if by in SCORES_FIELDS else numbers))]


def _responses(reader: _Reader) -> list[Record]:
    row = reader.row
    if _is_tree(row):
        asked = _questions(reader, row["prompt"], ())
        return [Response(turns, _node_turn(reader, reply).text) for turns, replies in asked for reply in replies]
    if "instances" in row:
        return [record for instance in _instances(reader) for record in _responses(instance)]
    sides = [side for side in SIDES if row.get(side) is not None]
    if sides:
        return [Response(*reader.side(side)) for side in sides]
    field = reader.first(ANSWERS_FIELDS)
    if field is not None:
        prompt, answers, by = reader.prompt(), reader.answers(field), reader.first(SCORES_FIELDS)
        rewards = [None] * len(answers) if by is None else reader.numbers(by, len(answers))
        return [Response(prompt, answer, reward) for answer, reward in zip(answers, rewards, strict=True)]
    by = reader.first(REWARD_FIELDS)
    return [Response(*reader.answered(), None if by is None else reader.number(row[by], by))]


def _prompts(reader: _Reader) -> list[Record]:
    row = reader.row
    if _is_tree(row):
        return [Prompt((_node_turn(reader, row["prompt"]),))]
    if "instances" in row:
        return [record for instance in _instances(reader) for record in _prompts(instance)]
    if any(side in row for side in SIDES):
        return [Prompt(_pair(reader)[0])]
    turns = reader.prompt()
    return [Prompt(_up_to_answer(turns)[:-1] if turns[-1].role == "assistant" else turns)]


_CONVERTERS: dict[Kind, Callable[[_Reader], list[Record]]] = {
    "demonstration": _demonstrations,
    "answer": _demonstrations,
    "ranking": _rankings,
    "response": _responses,
    "prompt": _prompts,
}


def _pair(reader: _Reader) -> tuple[Turns, str, str]:
    """The prompt and the two different answers of `chosen` and `rejected`."""
    for field in SIDES:
        if reader.row.get(field) is None:
            raise BadRecordError(f"no field {field!r}: a comparison needs both sides")
    (prompt, chosen), (other_prompt, rejected) = (reader.side(field) for field in SIDES)
    if prompt != other_prompt:
        raise BadRecordError("chosen and rejected differ before their last answer")
    if chosen == rejected:
        raise BadRecordError("chosen and rejected are the same")
    return prompt, chosen, rejected


def _ranks(values: list[float]) -> tuple[int, ...]:
    """The place of each value among the distinct ones, the lowest first."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    if len(places) == 1:
        raise BadRecordError(f"all {len(values)} answers are ranked equal")
    return tuple(places[value] for value in values)


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRecordError(f"field {field!r} is {type(value).__name__}, expected a list")
    return value


def _instances(reader: _Reader) -> Iterator[_Reader]:
    """The instances of a self-instruct task, each as an instruction with its input and output."""
    for instance in _list(reader.row["instances"], "instances"):
        if not isinstance(instance, dict):
            raise BadRecordError(f"an instance is {type(instance).__name__}, expected an object")
        task = {name: value for name, value in reader.row.items() if name != "instances"}
        yield _Reader(task | instance, reader.answer_end)


def _is_tree(row: Fields) -> bool:
    return isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def _node_turn(reader: _Reader, node: Fields) -> Turn:
    return reader.messages([{"role": node.get("role"), "content": node.get("text")}], "text")[0]


def _replies(node: Fields) -> list[Fields]:
    """The replies that were not deleted, the best-ranked first; those without a rank last, in the file's order."""
    kept = [reply for reply in node.get("replies") or [] if not reply.get("deleted")]
    return sorted(kept, key=lambda reply: math.inf if reply.get("rank") is None else reply["rank"])


def _threads(reader: _Reader, node: Fields, before: Turns) -> Iterator[Turns]:
    """The conversations of a tree in which every answer is the best-ranked one; each question of a user goes on."""
    turns = (*before, _node_turn(reader, node))
    best = _replies(node)[:1]
    if not best:
        if before:
            yield before
        return
    turns = (*turns, _node_turn(reader, best[0]))
    asked = _replies(best[0])
    if not asked:
        yield turns
    for question in asked:
        yield from _threads(reader, question, turns)


def _questions(reader: _Reader, node: Fields, before: Turns) -> Iterator[tuple[Turns, list[Fields]]]:
    """Each message of the user in a tree, with what came before it, and its replies."""
    turns, replies = (*before, _node_turn(reader, node)), _replies(node)
    yield turns, replies
    for reply in replies:
        for question in _replies(reply):
            yield from _questions(reader, question, (*turns, _node_turn(reader, reply)))


def _tree_rankings(reader: _Reader) -> Iterator[Ranking]:
    """A ranking for each message of the user that has two or more ranked replies."""
    for turns, replies in _questions(reader, reader.row["prompt"], ()):
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if len({reply["rank"] for reply in ranked}) > 1:
            answers = tuple(_node_turn(reader, reply).text for reply in ranked)
            yield Ranking(turns, answers, _ranks([float(reply["rank"]) for reply in ranked]))
