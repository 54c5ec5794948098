"""The Chinese texts of the public sets as documents, cut into those that train and those that are held out.

In: the folder of all sets. Out: documents by set (a chapter, a poem, a message, 25 sentences of résumés, an article, a
question with its answers, a pair of sentences), and held-out sentences that no training document contains.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HAN = re.compile("[\u3400-\u9fff]")
_END = re.compile(
    "(?<=[\u3002\uff01\uff1f])(?![\u201d\u300d\u300f\u2019])|(?<=[\u3002\uff01\uff1f][\u201d\u300d\u300f\u2019])|\n"
)
_CHAPTER = re.compile("\n(?= ?\u7b2c[^\n]{1,5}\u56de)")
_FEWCLUE = ("eprstmt", "tnews", "ocnli", "bustm", "cluewsc")
RESUME_SENTENCES = 25
SHARED = 10  # Chinese characters of a sentence that says that two documents are related
SENTENCE = (6, 40)  # Chinese characters of a sentence that is asked about


class Split(NamedTuple):
    """Documents of training and of validation, and sentences of the test's documents, each with its set."""

    train: list[str]
    validation: list[str]
    sentences: list[tuple[str, str]]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _blocks(path: Path, character: Callable[[str], str]) -> list[str]:
    """The sentences of a file that has a character and its tag on each line, and a blank line between sentences."""
    blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    return ["".join(character(line) for line in block.split("\n")) for block in blocks]


def _novel(folder: Path) -> Iterator[str]:
    text = (folder / "hongloumeng_part.txt").read_text(encoding="utf-8")
    return (re.sub("\n[ \u3000]+", "\n", chapter).strip() for chapter in _CHAPTER.split(text))


def _poems(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.json")):
        yield from ("\n".join(poem["paragraphs"]) for poem in _json(path))


def _messages(folder: Path) -> Iterator[str]:
    for name in ("train", "dev"):
        yield from _blocks(folder / f"weiboNER_2nd_conll.{name}", lambda line: line.split("\t")[0][:-1])


def _resumes(folder: Path) -> Iterator[str]:
    for name in ("train", "dev"):
        sentences = _blocks(folder / f"{name}.char.bmes", lambda line: line[:1])
        for at in range(0, len(sentences), RESUME_SENTENCES):
            yield "\n".join(sentences[at : at + RESUME_SENTENCES])


def _causes(folder: Path) -> Iterator[str]:
    rows = (row for path in sorted(folder.glob("*.jsonl")) for row in _lines(path))
    return ("\n".join(row[name] for name in ("premise", "choice1", "choice2")) for row in rows)


def _dialogues(folder: Path) -> Iterator[str]:
    for row in _json(folder / "oasst_rm_zh_dev.json"):
        earlier = [text for exchange in row["history"] for text in exchange]
        yield "\n".join([*earlier, row["instruction"], *row["output"]])


def _articles(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.json")):
        for article in _json(path)["data"]:
            texts = ((part["context"], *(qa["question"] for qa in part["qas"])) for part in article["paragraphs"])
            yield "\n".join(itertools.chain.from_iterable(texts))


def _pairs(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            yield from ("\n".join(dict.fromkeys(row[:2])) for row in csv.reader(file))


def _tasks(folder: Path) -> Iterator[str]:
    for path in sorted(path for name in _FEWCLUE for path in folder.glob(f"{name}_*_0.json")):
        for row in _lines(path):
            yield "\n".join(row[name] for name in ("text", "sentence", "sentence1", "sentence2") if name in row)


SETS: dict[str, Callable[[Path], Iterable[str]]] = {
    "zh_classics": _novel,
    "zh_poetry": _poems,
    "zh_weibo_ner": _messages,
    "zh_resume_ner": _resumes,
    "xcopa_zh": _causes,
    "oasst_zh": _dialogues,
    "cmrc2018": _articles,
    "squad_v1_zh": _articles,
    "stsb_zh": _pairs,
    "fewclue": _tasks,
}


def sentences(document: str) -> list[str]:
    """What ends at a stop or a line of a document, mostly Chinese characters, neither few nor many."""
    found = []
    for sentence in map(str.strip, _END.split(document)):
        han = HAN.findall(sentence)
        if SENTENCE[0] <= len(han) <= SENTENCE[1] and 2 * len(han) > len(sentence) and len(set(han)) > 1:
            found.append(sentence)
    return found


def related(documents: Sequence[str]) -> list[list[int]]:
    """The numbers of the documents in groups: two that have a sentence of `SHARED` characters in common are in one."""
    parents, first = list(range(len(documents))), dict[str, int]()

    def root(number: int) -> int:
        while parents[number] != number:
            number = parents[number]
        return number

    for number, document in enumerate(documents):
        for sentence in map(str.strip, _END.split(document)):
            if len(HAN.findall(sentence)) >= SHARED:
                parents[root(number)] = root(first.setdefault(sentence, number))
    groups: dict[int, list[int]] = {}
    for number in range(len(documents)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


def split(
    folder: Path, names: Sequence[str] = tuple(SETS), *, held_out: float = 0.05, wanted: int = 100, seed: int = 0
) -> Split:
    """The documents of sets, each once: the share `held_out` of every set for validation, as much for the test.

    Related documents stay together. The test's sentences are drawn from all that occur in no other document.
    """
    rng = random.Random(seed)
    sets = {text: name for name in names for text in SETS[name](folder / name) if text.strip()}
    documents = list(sets)
    groups: dict[str, list[list[str]]] = {name: [] for name in names}
    for numbers in related(documents):
        groups[sets[documents[numbers[0]]]].append([documents[number] for number in numbers])
    train: list[str] = []
    validation: list[str] = []
    candidates: dict[str, str] = {}
    for name, own in groups.items():
        rng.shuffle(own)
        share = max(1, round(len(own) * held_out))
        tested, held, learned = (
            list(itertools.chain(*part)) for part in (own[:share], own[share : 2 * share], own[2 * share :])
        )
        candidates |= {sentence: name for document in tested for sentence in sentences(document)}
        validation, train = validation + held, train + learned
    elsewhere = "\n".join(train + validation)
    distinct = [(name, sentence) for sentence, name in candidates.items() if sentence not in elsewhere]
    return Split(train, validation, rng.sample(distinct, wanted))
