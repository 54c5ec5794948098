"""Reads instructions, chats, rankings, pairs and rewarded answers from files in the common public formats.

In: JSONL, JSON lists, CSV or Parquet, compressed or not. The fields of a record determine its format: Alpaca, Dolly,
self-instruct, OpenAssistant trees, `chosen` and `rejected` (HH-RLHF's text, or messages), ShareGPT and chat messages,
lists of answers with ranks or scores, answers with a reward. Out: the records of `lmjax.data.conversations`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from lmjax.data.conversation_fields import (
    ANSWER_SIDE_FIELDS,
    ANSWERS_FIELDS,
    CONTEXT_FIELDS,
    MESSAGE_FIELDS,
    RANKS_FIELDS,
    REWARD_FIELDS,
    SCORES_FIELDS,
    SIDE_SCORES,
    SIDES,
    Fields,
    LeftOutError,
    Reader,
    as_list,
    is_empty,
    up_to_answer,
)
from lmjax.data.conversations import Record, Turn, Turns
from lmjax.data.documents import BadRecordError
from lmjax.data.open_files import list_files
from lmjax.data.openings import openings
from lmjax.data.record_files import RECORD_SUFFIXES as SUFFIXES
from lmjax.data.record_files import Row, rows
from lmjax.errors import UserError, shortened
from lmjax.settings import DialogueSourceSettings

# "answer": the last answer of a demonstration; "response": every answer of a record, ranked or not
Kind = Literal["demonstration", "answer", "ranking", "response", "prompt"]

__all__ = ["SUFFIXES", "Kind", "Records", "read_records"]


class Records(NamedTuple):
    """The records, the messages of skipped ones, and counts of valid records that are not used, by the reason."""

    records: list[Record]
    skipped: list[str]
    left_out: Counter[str]


def read_records(source: DialogueSourceSettings, kind: Kind) -> Records:
    """The records of one kind in a source; a tree or a task with several instances has several.

    Raises UserError for a file that cannot be read, for a bad record unless `on_bad_record` is "skip", and where the
    source has no record of this kind. A record with a known field that is neither empty nor read is bad.
    """
    out = Records([], [], Counter())
    entries = _openings(source) if source.kind == "embedded" else _rows(source)
    for where, row in entries[round(len(entries) * source.begin) : round(len(entries) * source.end)]:
        try:
            if isinstance(row, BadRecordError):
                raise row
            out.records.extend(_converted(row, source, kind, where))
        except LeftOutError as reason:
            out.left_out[str(reason)] += 1
        except BadRecordError as error:
            if source.on_bad_record == "error":
                article = "an" if kind == "answer" else "a"
                fix = 'fix it, or leave it out: on_bad_record = "skip" of its source, --skip-bad of lmjax score'
                raise UserError(f"{where}: expected {article} {kind}: {error}; {fix}") from None
            out.skipped.append(f"{where}: {error}")
    if not out.records:
        left_out = "".join(f", {count} {reason}" for reason, count in out.left_out.items())
        first = f" (the first: {out.skipped[0]})" if out.skipped else ""
        raise UserError(
            f"source.path = {source.name!r}: expected at least one {kind}, found none in {len(entries)} records, "
            f"{len(out.skipped)} of them bad{left_out}{first}; check the file, begin and end"
        )
    return out


def _openings(source: DialogueSourceSettings) -> list[tuple[str, Row]]:
    """The sentences of the embedded corpus as records: opening and rest."""
    pairs = enumerate(openings(source.split), start=1)
    return [(f"{source.name}: record {number}", {"prompt": a, "answer": b}) for number, (a, b) in pairs]


def _rows(source: DialogueSourceSettings) -> list[tuple[str, Row]]:
    """Each record of the files of a source with its place. An unreadable file is one bad record under "skip"."""
    entries: list[tuple[str, Row]] = []
    for path in list_files(source.path, SUFFIXES):
        try:
            entries.extend(rows(path))
        except BadRecordError as error:
            if source.on_bad_record == "error":
                raise
            entries.append((str(path), error))
    _check_field_map(source, entries)
    return entries


def _check_field_map(source: DialogueSourceSettings, entries: list[tuple[str, Row]]) -> None:
    named = [name for _, name in source.fields] + list(source.ignore)
    present = {name for _, row in entries if isinstance(row, dict) for name in row}
    for name in named:
        inside = name in source.ignore  # an ignored field may also be one of a message
        if name not in present and not inside:
            raise UserError(
                f"dialogue source.fields of {source.name!r} names a field {name!r}, which none of its {len(entries)} "
                f"records has; their fields: {shortened(sorted(present))}"
            )


def _converted(row: Fields, source: DialogueSourceSettings, kind: Kind, where: str) -> list[Record]:
    """The records of one kind in a row. Raises BadRecordError where a known field would be ignored."""
    known = CONTEXT_FIELDS if kind == "prompt" else CONTEXT_FIELDS + ANSWER_SIDE_FIELDS
    out: list[Record] = []
    for part in _instances(_mapped(row, source)):
        reader = Reader(part, source.answer_end, source.ignore)
        records = _CONVERTERS[kind](reader)
        free = () if is_empty(part.get("chosen")) else _FREE.get(kind, ())
        texts = [text for record in records for text in (*(turn.text for turn in record.turns), *record.answers)]
        reader.check_all_read(texts, [name for name in known if name not in free])
        out += [replace(record, where=where, fields=row) for record in records] if kind == "prompt" else records
    return out


# fields of a comparison that a kind does not need
_FREE: dict[Kind, tuple[str, ...]] = {
    "demonstration": ("rejected", *SIDE_SCORES),
    "answer": ("rejected", *SIDE_SCORES),
}


def _mapped(row: Fields, source: DialogueSourceSettings) -> Fields:
    """The row with the field names of this module, by the field map of the source, without ignored fields."""
    places = {name: place for place, name in source.fields}
    out = {name: value for name, value in row.items() if name not in places and name not in source.ignore}
    for name, place in places.items():
        if not is_empty(out.get(place)):
            raise BadRecordError(
                f"field {place!r} = {shortened(out[place], 80)} has no place: the source's fields take {place!r} "
                f"from {name!r}; ignore it by ignore = ({place!r},)"
            )
        out[place] = row.get(name)
    return out


def _demonstrations(reader: Reader) -> list[Record]:
    row = reader.row
    if _is_tree(row):
        return [Record(turns) for turns in _threads(reader, _root(reader), ())]
    imitated = reader.is_imitated()
    if "chosen" in row:
        prompt, chosen, _ = _pair(reader)
        turns: Turns = (*prompt, Turn("assistant", chosen))
    else:
        turns = reader.answered()
    learned = [place for place, turn in enumerate(turns) if turn.role == "assistant" and turn.learned]
    if not learned or not imitated:
        raise LeftOutError("not to be imitated")
    return [Record(turns[: learned[-1] + 1])]


def _rankings(reader: Reader) -> list[Record]:
    row = reader.row
    if _is_tree(row):
        return list(_tree_rankings(reader))
    if any(side in row for side in SIDES):
        prompt, chosen, rejected = _pair(reader)
        _check_scores(reader)
        return [Record(prompt, (chosen, rejected), (0, 1))]
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
    return [Record(reader.prompt(), answers, _ranks([-x for x in numbers] if by in SCORES_FIELDS else numbers))]


def _check_scores(reader: Reader) -> None:
    """Raises LeftOutError for equal scores of both sides, BadRecordError where the rejected score is higher."""
    if any(is_empty(reader.row.get(name)) for name in SIDE_SCORES):
        return
    chosen, rejected = (reader.number(reader.take(name), name) for name in SIDE_SCORES)
    if chosen == rejected:
        raise LeftOutError("ties")
    if chosen < rejected:
        raise BadRecordError(f"score_chosen = {chosen:g} is below score_rejected = {rejected:g}")


def _responses(reader: Reader) -> list[Record]:
    row = reader.row
    if _is_tree(row):
        asked = _questions(reader, _root(reader), ())
        return [Record(turns, (_node_turn(reader, reply).text,)) for turns, replies in asked for reply in replies]
    sides = [side for side in SIDES if row.get(side) is not None]
    if sides:
        return [_response(reader.conversation(side), _reward(reader, (f"score_{side}",))) for side in sides]
    field = reader.first(ANSWERS_FIELDS)
    if field is not None:
        prompt, answers, by = reader.prompt(), reader.answers(field), reader.first(SCORES_FIELDS)
        reader.pass_over(RANKS_FIELDS)
        rewards = [None] * len(answers) if by is None else reader.numbers(by, len(answers))
        return [Record(prompt, (answer,), reward=reward) for answer, reward in zip(answers, rewards, strict=True)]
    return [_response(reader.answered(), _reward(reader, REWARD_FIELDS))]


def _response(turns: Turns, reward: float | None) -> Record:
    return Record(turns[:-1], (turns[-1].text,), reward=reward)


def _reward(reader: Reader, names: tuple[str, ...]) -> float | None:
    field = reader.first(names)
    return None if field is None or is_empty(reader.row[field]) else reader.reward(field)


def _prompts(reader: Reader) -> list[Record]:
    row = reader.row
    if _is_tree(row):
        return [Record((_node_turn(reader, _root(reader)),))]
    if any(side in row for side in SIDES):
        prompt = _pair(reader)[0]
        reader.pass_over(MESSAGE_FIELDS)  # `_pair` has compared them
        return [Record(prompt)]
    turns = reader.prompt()
    return [Record(up_to_answer(turns)[:-1] if turns[-1].role == "assistant" else turns)]


_CONVERTERS: dict[Kind, Callable[[Reader], list[Record]]] = {
    "demonstration": _demonstrations,
    "answer": _demonstrations,
    "ranking": _rankings,
    "response": _responses,
    "prompt": _prompts,
}


def _pair(reader: Reader) -> tuple[Turns, str, str]:
    """The prompt of a comparison, its chosen and its rejected answer."""
    for field in SIDES:
        if reader.row.get(field) is None:
            raise BadRecordError(f"no field {field!r}: a comparison needs both sides")
    (*prompt, chosen), (*other_prompt, rejected) = (reader.conversation(field) for field in SIDES)
    if prompt != other_prompt:
        raise BadRecordError("chosen and rejected differ before their last answer")
    if chosen.text == rejected.text:
        raise BadRecordError("chosen and rejected are the same")
    return tuple(prompt), chosen.text, rejected.text


def _ranks(values: list[float]) -> tuple[int, ...]:
    """The rank of each value among the distinct values, the lowest first."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    if len(places) == 1:
        raise BadRecordError(f"all {len(values)} answers are ranked equal")
    return tuple(places[value] for value in values)


def _instances(row: Fields) -> Iterator[Fields]:
    """The row, or one row per instance of a self-instruct task, with the instruction of the task."""
    if "instances" not in row:
        yield row
        return
    task = {name: value for name, value in row.items() if name != "instances"}
    for instance in as_list(row["instances"], "instances"):
        if not isinstance(instance, dict):
            raise BadRecordError(f"an instance is {type(instance).__name__}, expected an object")
        yield task | instance


def _is_tree(row: Fields) -> bool:
    return isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def _root(reader: Reader) -> Fields:
    """The first message of a tree. Raises LeftOutError where the tree marks it as removed."""
    root: Fields = reader.take("prompt")
    if _is_removed(root):
        raise LeftOutError("removed")
    return root


def _is_removed(node: Fields) -> bool:
    """Whether a message is marked as deleted, or failed its review."""
    return bool(node.get("deleted")) or node.get("review_result") is False


def _node_turn(reader: Reader, node: Fields) -> Turn:
    return reader.messages([{"role": node.get("role"), "content": node.get("text")}], "text")[0]


def _replies(node: Fields) -> list[Fields]:
    """The replies that are not removed, by rank; those without a rank last, in the order of the file."""
    replies = as_list(node.get("replies") or [], "replies")
    present = [reply for reply in replies if not _is_removed(_object(reply))]
    return sorted(present, key=lambda reply: math.inf if reply.get("rank") is None else _rank(reply))


def _object(value: Any) -> Fields:
    if not isinstance(value, dict):
        raise BadRecordError(f"field 'replies': a message is {type(value).__name__}, expected an object")
    return value


def _rank(reply: Fields) -> float:
    rank = reply["rank"]
    if isinstance(rank, bool) or not isinstance(rank, int | float) or not abs(rank) < 1e9:
        raise BadRecordError(f"field 'rank' = {shortened(rank)}: expected a number")
    return float(rank)


def _threads(reader: Reader, node: Fields, before: Turns) -> Iterator[Turns]:
    """The conversations of a tree with the best-ranked answer to each question, one per chain of questions."""
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


def _questions(reader: Reader, node: Fields, before: Turns) -> Iterator[tuple[Turns, list[Fields]]]:
    """The conversation up to each message of the user in a tree, and the replies to it."""
    turns, replies = (*before, _node_turn(reader, node)), _replies(node)
    yield turns, replies
    for reply in replies:
        for question in _replies(reply):
            yield from _questions(reader, question, (*turns, _node_turn(reader, reply)))


def _tree_rankings(reader: Reader) -> Iterator[Record]:
    """A ranking for each message of the user that has two or more ranked replies."""
    for turns, replies in _questions(reader, _root(reader), ()):
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if len({reply["rank"] for reply in ranked}) > 1:
            answers = tuple(_node_turn(reader, reply).text for reply in ranked)
            yield Record(turns, answers, _ranks([_rank(reply) for reply in ranked]))
