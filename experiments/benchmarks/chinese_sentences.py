"""Whether a small model of Chinese prefers a sentence to its shuffled characters, beside a smoothed n-gram model.

The corpora of `chinese_corpora.py` go to data/chinese; `experiments/chinese.py` trains on them. Of 100 held-out
sentences, each beside one permutation of its characters, a model is right where log P of the sentence is larger: equals
count as wrong. So that stops at odd places do not tell, a second permutation moves Chinese characters alone. The n-gram
model (`kneser_ney.py`) reads the same tokens of the same documents; its order is the best on validation.

    python experiments/benchmarks/chinese_sentences.py ../shared/data --text
    lmjax run chinese
    python experiments/benchmarks/chinese_sentences.py ../shared/data runs/chinese --json results.json
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chinese_corpora import HAN, SETS, Split, split
from kneser_ney import KneserNey
from measuring import print_table

from lmjax.runs.evaluate import Reader

FOLDER = Path("data/chinese")
PAIR = ("张三的文章真水啊", "张三的睡觉啤酒好快")  # "Zhang San's article is so thin", "Zhang San's sleep beer so fast"
ORDERS = (2, 3, 4, 5)

LogProbs = Callable[[Sequence[str]], list[float]]


def shuffled(sentence: str, rng: random.Random, *, han_only: bool = False) -> str:
    """A permutation of the characters that differs; with `han_only` the other characters keep their places."""
    places = [at for at, character in enumerate(sentence) if not han_only or HAN.match(character)]
    if len({sentence[at] for at in places}) < 2:
        raise ValueError(f"{sentence!r} has no other permutation")
    while True:
        drawn = rng.sample(places, len(places))
        characters = list(sentence)
        for at, other in zip(places, drawn, strict=True):
            characters[at] = sentence[other]
        if (permuted := "".join(characters)) != sentence:
            return permuted


def preferred(log_probs: LogProbs, firsts: Sequence[str], seconds: Sequence[str]) -> list[bool]:
    """Of each pair, whether the first is the likelier one; of equals it is not."""
    return [a > b for a, b in zip(log_probs(firsts), log_probs(seconds), strict=True)]


def write(texts: Split, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation"):
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in getattr(texts, name)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def results(reader: Reader, texts: Split) -> dict[str, Any]:
    """What the model and the n-gram models say of the validation documents, the sentences and the pair."""
    tokenizer = reader.trained.tokenizer
    train, held = (list(map(list, tokenizer.encode_batch(own))) for own in (texts.train, texts.validation))
    bits = sum(len(text.encode()) for text in texts.validation) * math.log(2)
    ngrams = {n: KneserNey(train, n, tokenizer.vocab_size, tokenizer.eos_id) for n in ORDERS}
    of_orders = {n: -math.fsum(map(model.log_prob, held)) / bits for n, model in ngrams.items()}
    best = min(of_orders, key=of_orders.__getitem__)
    models: dict[str, LogProbs] = {
        "lmjax": lambda own: [one.log_prob for one in reader.texts(own)],
        f"{best}-gram": lambda own: [ngrams[best].log_prob(ids.tolist()) for ids in tokenizer.encode_batch(own)],
    }
    sentences = [sentence for _, sentence in texts.sentences]
    permutations = [
        [shuffled(s, random.Random(n), han_only=only) for n, s in enumerate(sentences)] for only in (False, True)
    ]
    out: dict[str, Any] = {
        "train": {"documents": len(train), "tokens": sum(map(len, train))},
        "sentences": dict(Counter(name for name, _ in texts.sentences)),
        "orders": of_orders,
        "models": {},
    }
    for name, log_probs in models.items():
        right = [preferred(log_probs, sentences, own) for own in permutations]
        out["models"][name] = {
            "bits_per_byte": -math.fsum(log_probs(texts.validation)) / bits,
            "all_characters": sum(right[0]),
            "han_only": sum(right[1]),
            "pair": log_probs(PAIR),
            "wrong": [
                pair
                for pair, fits in zip(zip(sentences, permutations[0], strict=True), right[0], strict=True)
                if not fits
            ],
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, help="the folder of the public sets")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a workdir of experiments/chinese.py")
    parser.add_argument("--text", action="store_true", help="only write the texts")
    parser.add_argument("--names", nargs="+", choices=SETS, default=tuple(SETS), help="some of the sets")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the texts are written")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    options = parser.parse_args()
    texts = split(options.sets, options.names)
    if options.text or options.checkpoint is None:
        write(texts, options.folder)
        return
    reader = Reader(options.checkpoint)
    print(reader.about(), file=sys.stderr)
    found = results(reader, texts)
    rows = [
        [
            name,
            f"{own['bits_per_byte']:.4f}",
            own["all_characters"],
            own["han_only"],
            *(f"{p:.2f}" for p in own["pair"]),
        ]
        for name, own in found["models"].items()
    ]
    heads = ("", "bits/byte, validation", "of 100, all characters", "of 100, Chinese alone", *PAIR)
    print_table(heads, [[str(cell) for cell in row] for row in rows])
    if options.json:
        options.json.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
