"""Helpful, honest, harmless: the measures of InstructGPT's appendices D and E, for `lmjax evaluate --suite hhh`.

In: a checkpoint, and a folder with TruthfulQA, CrowS-Pairs, Winogender and rankings by people, each in a folder of its
own; all files there with the right ending are read as one set. Out: measures with standard errors, printed or as JSON;
on request a JSONL file with every example.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from lmjax.data.conversation_files import SUFFIXES, read_records
from lmjax.data.conversations import Record
from lmjax.data.open_files import list_files
from lmjax.errors import UserError, require
from lmjax.evaluate import bias, truthfulness
from lmjax.evaluate.answers import Examiner
from lmjax.evaluate.measures import Measure, Part
from lmjax.evaluate.preferences import by_likelihood, by_scores
from lmjax.evaluate.questions import spread
from lmjax.files import new_file, write_json_lines
from lmjax.parallel.mesh import make_mesh
from lmjax.runs.evaluate import Reader
from lmjax.runs.score import is_reward_model, open_scorer, ranking_scores
from lmjax.settings import DialogueSourceSettings, MeshSettings

PREFERENCES = ("hh_rlhf", "oasst_en")
ENDINGS: dict[str, tuple[str, ...]] = {truthfulness.SET: (".csv",), bias.CROWS: (".csv",), bias.WINOGENDER: (".tsv",)}
ENDINGS |= dict.fromkeys(PREFERENCES, SUFFIXES)

Rankings = dict[str, tuple[list[Record], int]]  # of each set, and how many of its records are bad


class Read(NamedTuple):
    """The examples of each set."""

    questions: truthfulness.Table
    pairs: list[bias.Pair]
    templates: list[bias.Template]
    single: int  # sentences of Winogender in one gender only
    rankings: Rankings


@dataclass(frozen=True)
class Suite:
    """The sets in `folder`, of each `limit` examples, evenly spread over it, or all."""

    folder: Path
    limit: int | None = None

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit > 0, "--limit", self.limit, "a number above 0", "leave it out for all")

    def files(self) -> dict[str, list[Path]]:
        """The files of each set. Raises UserError that names all sets without one."""
        found: dict[str, list[Path]] = {}
        for name, endings in ENDINGS.items():
            try:
                found[name] = list_files(str(self.folder / name), endings) if (self.folder / name).is_dir() else []
            except UserError:  # there is none with such an ending
                found[name] = []
        missing = [f"{name}/*{ENDINGS[name][0]}" for name, paths in found.items() if not paths]
        if missing:
            what = f"{self.folder}: expected the files of all sets, found no {', no '.join(missing)}"
            raise UserError(f"{what}; name the folder that holds one for each set (--task-data, or measures.data)")
        return found

    def read(self) -> Read:
        """The examples that are used. Raises UserError for files that are no such sets."""
        files = self.files()
        table = truthfulness.read_truthfulqa(files[truthfulness.SET])
        templates, single = bias.read_winogender(files[bias.WINOGENDER])
        return Read(
            table._replace(questions=spread(table.questions, self.limit)),
            spread(bias.read_crows_pairs(files[bias.CROWS]), self.limit),
            spread(templates, self.limit),
            single,
            {name: self._rankings(name) for name in PREFERENCES},
        )

    def _rankings(self, name: str) -> tuple[list[Record], int]:
        source = DialogueSourceSettings(path=str(self.folder / name), on_bad_record="skip")
        records, skipped, _ = read_records(source, "ranking")
        return spread([record for record in records if len(set(record.ranks)) > 1], self.limit), len(skipped)


def measure(reader: Reader, read: Read) -> Iterator[Part]:
    """What a language model comes to in each set."""
    tokenizer, context = reader.trained.tokenizer, reader.trained.model.settings.context
    questions = truthfulness.fitting(read.questions, tokenizer, context)
    yield from truthfulness.truthfulness(questions, Examiner(reader.likelihood, tokenizer, context))

    def log_probs(texts: Iterable[str]) -> Iterator[float]:
        return (one.log_prob for one in reader.texts(texts))

    yield bias.crows_pairs(read.pairs, log_probs)
    yield bias.winogender(read.templates, log_probs, read.single)
    for name, (records, bad) in read.rankings.items():
        part = by_likelihood(name, records, reader.likelihood, reader.trained.turns, tokenizer)
        yield part.counting({"bad records": bad})


def measure_rewards(checkpoint: Path, rankings: Rankings, mesh: Mesh) -> Iterator[Part]:
    """How a reward model orders the rankings of each set. Raises UserError for another checkpoint."""
    recipe, start = open_scorer(checkpoint)
    for name, (records, bad) in rankings.items():
        used, scored = ranking_scores(recipe, start, records, name, mesh)
        yield by_scores(name, used, scored).counting({"bad records": bad, "left out": len(records) - len(used)})


def print_measures(
    checkpoint: Path,
    suite: Suite,
    *,
    mesh: MeshSettings,
    reward_model: Path | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> None:
    """Prints a line for each measure, and writes every example to `out`, a JSONL file."""
    read = suite.read()
    if reward_model is not None:
        scores = is_reward_model(reward_model)
        require(scores, "--reward-model", str(reward_model), "a reward model", "name the stage that made one")
    reader = Reader(checkpoint, mesh)
    print(reader.about(), file=sys.stderr)
    found = []
    with new_file(out) as lines:
        for part in _all_parts(reader, read, mesh, reward_model):
            found += [{**each.plain(), "counts": part.counts} for each in part.measures]
            if not as_json:
                print("\n".join(map(shown, part.measures)), flush=True)
            if words := counted(part):
                print(words, file=sys.stderr)
            write_json_lines(lines, _records(part))
    if as_json:
        print(json.dumps(found, indent=2))


def _all_parts(reader: Reader, read: Read, mesh: MeshSettings, reward_model: Path | None) -> Iterator[Part]:
    yield from measure(reader, read)
    if reward_model is not None:
        yield from measure_rewards(reward_model, read.rankings, make_mesh(mesh))


def shown(one: Measure) -> str:
    """A measure's line of the table."""
    value = f"{one.mean.value:.4f} \N{PLUS-MINUS SIGN} {one.mean.error:.4f}"
    return f"{one.set:12} {one.title:38} {one.of:26} {value}  of {one.examples:>5,}  {one.reading}"


def counted(part: Part) -> str:
    """What was unusual, in words; "" where nothing was."""
    counts = ", ".join(f"{count:,} {words}" for words, count in part.counts.items() if count)
    first = part.measures[0]
    return f"{first.set}, {first.of}: {counts}" if counts else ""


def _records(part: Part) -> Iterable[dict]:
    first = part.measures[0]
    for number, example in enumerate(part.examples):
        yield {"set": first.set, "of": first.of, "number": number, **example}
