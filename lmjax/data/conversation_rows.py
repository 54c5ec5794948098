"""Rows of conversations for the loader: demonstrations with targets, rankings of K answers, and prompts to sample from.

In: encoded conversations and a recipe's dialogue settings. Out: `Rows` (see `lmjax.data.packing`), with counts of
truncated and left-out records. Steps and devices play no part here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmjax.data.batch import POSITIONS, SEGMENTS, TARGETS, TOKENS, WEIGHTS, Batch
from lmjax.data.conversation_cut import Counts, fit_answers, fit_prompt, fit_to, last_run, warn, without_equal
from lmjax.data.conversation_files import SUFFIXES, Kind, read_records
from lmjax.data.conversations import Encoded, Record, Turn, Turns, encode
from lmjax.data.first_fit import Plan
from lmjax.data.open_files import find_files
from lmjax.data.packing import FirstFitRows, Rows
from lmjax.errors import UserError
from lmjax.settings import DialogueSettings, DialogueSourceSettings
from lmjax.tokenizers.base import NoTokensError, refusal
from lmjax.tokenizers.tokenizer import Tokenizer

RANKS = "ranks"  # [B, K] int32: of each answer of a prompt, 0 the best; -1 where there is none
RECORD = "record"  # [B, 1] int32: the number of the prompt among those of its source


def open_rows(
    source: DialogueSourceSettings, settings: DialogueSettings, tokenizer: Tokenizer, kind: Kind
) -> tuple[Rows, Counts, list[Record]]:
    """The rows of a source, counts, and the record of each example of the rows.

    Demonstrations become rows of tokens, targets and weights; rankings rows of K answers, responses of one; prompts
    rows padded on the left. Raises UserError for bad records, for an example that is too long under "error", and
    where no example is left.
    """
    records, skipped, left_out = read_records(source, kind)
    counts = Counts(len(records), len(skipped), messages=skipped, unused=left_out)
    if source.kind == "file":
        counts.files_left_out = find_files(source.path, SUFFIXES).left_out
    make = {
        "demonstration": _demonstration_rows,
        "answer": _single_rows,
        "ranking": ranking_rows,
        "response": _single_rows,
        "prompt": _prompt_rows,
    }
    try:
        rows, used = make[kind](records, settings, tokenizer, counts, source.name)
    except NoTokensError:
        records = _with_tokens(records, source, tokenizer, counts)
        rows, used = make[kind](records, settings, tokenizer, counts, source.name)
    answers = [answer for record in records for answer in record.answers or [record.turns[-1].text]]
    warn(counts, () if kind == "prompt" else answers, settings)
    return rows, counts, used


def _with_tokens(
    records: list[Record], source: DialogueSourceSettings, tokenizer: Tokenizer, counts: Counts
) -> list[Record]:
    """The records whose texts the tokenizer can encode; the others are bad ones. Raises NoTokensError under "error"."""
    kept = []
    for record in records:
        texts = (*(turn.text for turn in record.turns), *record.answers)
        reason = next(filter(None, (refusal(tokenizer, text) for text in texts)), "")
        said = f"{record.where or source.name}: {reason}"
        if reason and source.on_bad_record == "error":
            fix = 'or leave it out: on_bad_record = "skip" of its source, --skip-bad of lmjax score'
            raise NoTokensError(f"{said}; {fix}")
        if reason:
            counts.messages.append(said)
        else:
            kept.append(record)
    counts.bad, counts.records = counts.bad + len(records) - len(kept), len(kept)
    return kept


def open_sources(
    sources: Sequence[DialogueSourceSettings], settings: DialogueSettings, tokenizer: Tokenizer, kind: Kind
) -> tuple[list[Rows], list[Counts], list[list[Record]]]:
    """`open_rows` of each source, with one K (answers per prompt) for all of them, so that they can be mixed."""
    opened = [open_rows(source, settings, tokenizer, kind) for source in sources]
    rows = [rows for rows, _, _ in opened]
    most = max((one.answers for one in rows if isinstance(one, AnswerRows)), default=0)
    widened = [one.widened(most) if isinstance(one, AnswerRows) else one for one in rows]
    return widened, [counts for _, counts, _ in opened], [records for _, _, records in opened]


class MemoryTokens:
    """Encoded conversations, one after the other."""

    def __init__(self, examples: Sequence[Encoded], prompt_weight: float) -> None:
        self._ids = np.concatenate([example.ids for example in examples])
        is_answer = np.concatenate([example.is_answer for example in examples])
        self.weights = np.where(is_answer, 1.0, prompt_weight).astype(np.float32)
        self._bounds = np.cumsum([0, *(len(example.ids) for example in examples)])

    def document_bounds(self) -> np.ndarray:
        return self._bounds

    def take(self, positions: np.ndarray) -> np.ndarray:
        return self._ids[positions]


class DemonstrationRows(FirstFitRows):
    """Rows of conversations, each a segment: several per row under packing, else one."""

    def __init__(self, examples: Sequence[Encoded], settings: DialogueSettings) -> None:
        self._stream = MemoryTokens(examples, settings.prompt_weight)
        bounds = self._stream.document_bounds()
        one_each = Plan(np.arange(len(examples) + 1), bounds[:-1], (np.diff(bounds) - 1).astype(np.int32))
        super().__init__(self._stream, settings.sequence_length, None if settings.packing else one_each)

    def _weights(self, targets: np.ndarray) -> np.ndarray:
        return self._stream.weights[targets]


class AnswerRows:
    """K answers per prompt, each a row of prompt and answer, padded on the right: [R, K, T] arrays.

    Tokens include the last end-of-text; the weights are 1 for the targets of the answer.
    """

    dropped_tokens = 0

    def __init__(self, groups: Sequence[Sequence[Encoded]], ranks_RK: np.ndarray, length: int) -> None:
        """Ranks are -1 where there is no answer."""
        self._groups, self._ranks_RK, self._length = groups, ranks_RK, length

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def answers(self) -> int:
        """K, the most answers to a prompt."""
        return self._ranks_RK.shape[1]

    def widened(self, answers: int) -> AnswerRows:
        """The same rows with K = `answers`."""
        absent = ((0, 0), (0, answers - self.answers))
        return AnswerRows(self._groups, np.pad(self._ranks_RK, absent, constant_values=-1), self._length)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The rankings with these indices, int64 [R]."""
        shape = (len(indices), self.answers, self._length)
        out: Batch = {name: np.zeros(shape, np.int32) for name in (TOKENS, TARGETS, POSITIONS, SEGMENTS)}
        out[WEIGHTS] = np.zeros(shape, np.float32)
        for row, index in enumerate(indices):
            for answer, (ids, is_answer) in enumerate(self._groups[index]):
                at, before = (row, answer, slice(0, len(ids))), (row, answer, slice(0, len(ids) - 1))
                out[TOKENS][at], out[SEGMENTS][at], out[POSITIONS][at] = ids, 1, np.arange(len(ids))
                out[TARGETS][before], out[WEIGHTS][before] = ids[1:], last_run(is_answer)[1:]
        return out | {RANKS: self._ranks_RK[indices]}


class PromptRows:
    """Prompts padded on the left, [R, T], with the number of their record."""

    dropped_tokens = 0

    def __init__(self, prompts: Sequence[Encoded], length: int) -> None:
        self._prompts, self._length = prompts, length

    def __len__(self) -> int:
        return len(self._prompts)

    def batch(self, indices: np.ndarray, epochs: np.ndarray | None = None) -> Batch:
        """The prompts with these indices, int64 [R]."""
        shape = (len(indices), self._length)
        out: Batch = {name: np.zeros(shape, np.int32) for name in (TOKENS, POSITIONS, SEGMENTS)}
        for row, index in enumerate(indices):
            ids = self._prompts[index].ids
            at = (row, slice(self._length - len(ids), None))
            out[TOKENS][at], out[SEGMENTS][at], out[POSITIONS][at] = ids, 1, np.arange(len(ids))
        return out | {RECORD: indices[:, None].astype(np.int32)}


Made = tuple[Rows, list[Record]]


def _demonstration_rows(
    records: list[Record], settings: DialogueSettings, tokenizer: Tokenizer, counts: Counts, where: str
) -> Made:
    encoded = encode([record.turns for record in records], settings.template, tokenizer)
    counts.conversations = len(encoded)
    examples, used = [], []
    for record, example in zip(records, encoded, strict=True):
        cut = fit_to(example, settings.sequence_length + 1, settings, counts, where)  # the last token is only a target
        if cut is not None and not cut.is_answer[1:].any():
            counts.left_out += 1
        elif cut is not None:
            examples.append(cut)
            used.append(record)
    _require_some(examples, counts, where, settings)
    return DemonstrationRows(examples, settings), used


def ranking_rows(
    records: list[Record], settings: DialogueSettings, tokenizer: Tokenizer, counts: Counts, where: str
) -> Made:
    """The rows of rankings, and the records that are in them; what is cut or left out is added to `counts`."""
    most = settings.most_answers
    counts.answers_left_out = sum(max(0, len(record.answers) - most) for record in records)
    asked = [(record.turns, record.answers[:most]) for record in records]
    groups: list[list[Encoded]] = []
    ranked: list[list[int]] = []
    used: list[Record] = []
    for record, group in zip(records, _answer_groups(asked, settings, tokenizer, counts, where), strict=True):
        if group is None:
            continue
        places = without_equal(group, record.ranks[:most])
        counts.equal += len(group) - len(places)
        ranks = [record.ranks[place] for place in places]
        if len(set(ranks)) > 1:
            groups.append([group[place] for place in places])
            ranked.append(ranks)
            used.append(record)
    counts.left_out = len(records) - len(used)
    _require_some(groups, counts, where, settings)
    ranks_RK = np.full((len(groups), max(map(len, groups))), -1, np.int32)
    for row, ranks in enumerate(ranked):
        ranks_RK[row, : len(ranks)] = ranks
    return AnswerRows(groups, ranks_RK, settings.sequence_length), used


def _single_rows(
    records: list[Record], settings: DialogueSettings, tokenizer: Tokenizer, counts: Counts, where: str
) -> Made:
    """The answer of each record, of a demonstration the last one, as a ranking of K = 1 with rank 0."""
    asked = [(r.turns, r.answers) if r.answers else (r.turns[:-1], (r.turns[-1].text,)) for r in records]
    encoded = _answer_groups(asked, settings, tokenizer, counts, where)
    groups = [group for group in encoded if group is not None]
    used = [record for record, group in zip(records, encoded, strict=True) if group is not None]
    counts.left_out = len(records) - len(used)
    _require_some(groups, counts, where, settings)
    return AnswerRows(groups, np.zeros((len(groups), 1), np.int32), settings.sequence_length), used


def _answer_groups(
    asked: Sequence[tuple[Turns, Sequence[str]]],
    settings: DialogueSettings,
    tokenizer: Tokenizer,
    counts: Counts,
    where: str,
) -> list[list[Encoded] | None]:
    """The encoded answers to each prompt, or None where `fit_answers` leaves them out."""
    conversations = [(*prompt, Turn("assistant", answer)) for prompt, answers in asked for answer in answers]
    counts.conversations = len(conversations)
    encoded = iter(encode(conversations, settings.template, tokenizer))
    groups = ([next(encoded) for _ in answers] for _, answers in asked)
    return [fit_answers(group, settings.sequence_length, settings, counts, where) for group in groups]


def _prompt_rows(
    records: list[Record], settings: DialogueSettings, tokenizer: Tokenizer, counts: Counts, where: str
) -> Made:
    encoded = encode([record.turns for record in records], settings.template, tokenizer)
    counts.conversations = len(encoded)
    prompts: list[Encoded] = []
    used: list[Record] = []
    for record, example in zip(records, encoded, strict=True):
        fitted = fit_prompt(record, example, settings, tokenizer, counts, where)
        if fitted is not None:
            used.append(fitted[0])
            prompts.append(fitted[1])
    _require_some(prompts, counts, where, settings)
    return PromptRows(prompts, settings.sequence_length), used


def _require_some(examples: Sequence[object], counts: Counts, where: str, settings: DialogueSettings) -> None:
    if not examples:
        raise UserError(
            f"{where}: none of its {counts.records} records fits into dialogue.sequence_length = "
            f"{settings.sequence_length} tokens ({counts}); raise it, or cut the other side (dialogue.too_long)"
        )
