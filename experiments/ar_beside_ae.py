"""One shape and the same 10 MB of English, causal and masked: what each learns, and is worth to a task.

`lmjax run ar_beside_ae:causal`, `:masked` (full rows, RoBERTa's way) and `:pairs` (BERT's, with the next sentence) read
the same text in rows of 128 tokens with one WordPiece vocabulary, so often that each predicts over as many rows. The
`_sst2` and `_wnut17` sizes then fine-tune what they made, and `random_*` the encoder of `:random`, whose only step has
a rate of 0. `causal_sst2_auxiliary` learns GPT-1's L3 = L2 + lambda L1 (Radford et al. 2018, section 3.2). What came
out is in experiments/results/finetuning/README.md.
"""

import os
from pathlib import Path
from typing import Literal

from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    FeedForwardSettings,
    Finetune,
    HeadSettings,
    LabelledSettings,
    LogSettings,
    MaskingSettings,
    ModelSettings,
    NormSettings,
    OptimizerSettings,
    PositionSettings,
    Pretrain,
    PretrainMasked,
    RowSettings,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.tasks.sentences import Sentences
from lmjax.tasks.tags import Tags

SHARED = Path(os.environ.get("LMJAX_SHARED_DATA", "../shared/data"))
STEPS = 3000
INIT_STD = 0.08  # about 1 / sqrt(width): with the usual 0.02 the masked model stays near the tokens' frequencies
LAMBDA = 0.5  # of GPT-1's auxiliary loss in `causal_sst2_auxiliary`: L3 = L2 + lambda L1


def text(path: str, documents: Literal["line", "paragraph"] = "paragraph") -> SourceSettings:
    return SourceSettings(kind="text", path=str(SHARED / path), documents=documents)


def records(path: str, begin: float = 0.0, end: float = 1.0) -> SourceSettings:
    return SourceSettings(kind="jsonl", path=str(SHARED / path), begin=begin, end=end)


SOURCES = (
    *(text("web_docs/wiki_dev.txt", "line"), text("tinystories/tinystories_dev.txt"), text("wikitext2/valid.txt")),
    *(text("pd_books/inaugural.txt"), text("pd_books/botchan.txt", "line"), records("movie_reviews/movie_dev.jsonl")),
)
DATA = DataSettings(
    train=(SourceSettings(), *SOURCES, records("web_docs/c4_dev.jsonl", end=0.9)),
    validation=(SourceSettings(split="validation", end=0.5), records("web_docs/c4_dev.jsonl", begin=0.9)),
    sequence_length=128,
    batch_size=32,
)
VOCABULARY = TokenizerSettings(kind="wordpiece", vocab_size=4096)
OPTIMIZER = OptimizerSettings(
    learning_rate=2e-3, schedule=ScheduleSettings(kind="linear", warmup=100, final=0.0), b2=0.98, weight_decay=0.01
)


def model(causal: bool) -> ModelSettings:
    """Pre-norm for both, which needs no long warmup; the encoder has BERT's segment table and head besides."""
    return ModelSettings(
        layers=4,
        width=128,
        context=128,
        attention=AttentionSettings(heads=4, causal=causal),
        feed_forward=FeedForwardSettings(activation="gelu_erf"),
        norm=NormSettings(),
        positions=PositionSettings(segment_types=0 if causal else 2),
        head=HeadSettings(transform=not causal, bias=not causal, pooler=not causal),
        init_std=INIT_STD,
    )


def pretraining(name: str) -> Pretrain:
    common = {
        "name": name,
        "tokenizer": VOCABULARY,
        "data": DATA,
        "model": model(name == "causal"),
        "optimizer": OPTIMIZER,
        "train": TrainSettings(steps=1 if name == "random" else STEPS),
        "evaluation": EvaluationSettings(every=250, batches=40),
        "checkpoint": CheckpointSettings(every=STEPS),
        "log": LogSettings(every=20, tensorboard=False),
    }
    if name == "causal":
        return Pretrain(**common)
    return PretrainMasked(**common, masking=MaskingSettings(most=20), pairs=name == "pairs")


def finetuning(start: str, task: str, language: float) -> Finetune:
    steps = 150 if task == "sst2" else 200
    sst2 = [LabelledSettings(str(SHARED / "sst2" / f"{split}.tsv"), form="sst2") for split in ("train", "dev")]
    wnut = [
        LabelledSettings(str(SHARED / "wnut17" / name), form="conll")
        for name in ("wnut17train.conll", "emerging.dev.conll")
    ]
    made = {
        "sst2": Sentences(train=(sst2[0],), validation=(sst2[1],), language=language),
        "wnut17": Tags(train=(wnut[0],), validation=(wnut[1],)),
    }
    return Finetune(
        name=f"{start}-{task}" + ("-auxiliary" if language else ""),
        start=f"runs/{start}",
        task=made[task],
        rows=RowSettings(sequence_length=96, buckets=(16, 24, 32, 48, 64), batch_size=32),
        optimizer=OptimizerSettings(
            learning_rate=5e-4, schedule=ScheduleSettings(kind="linear", warmup=20, final=0.0), weight_decay=0.01
        ),
        train=TrainSettings(steps=steps),
        evaluation=EvaluationSettings(every=steps),
        checkpoint=CheckpointSettings(every=steps),
        log=LogSettings(every=20, tensorboard=False),
    )


def recipe(
    size: Literal[
        *("causal", "masked", "pairs", "random", "causal_sst2", "causal_wnut17", "masked_sst2", "masked_wnut17"),
        *("pairs_sst2", "pairs_wnut17", "random_sst2", "random_wnut17"),
        "causal_sst2_auxiliary",
    ] = "causal",
) -> Pretrain | Finetune:
    start, _, rest = size.partition("_")
    task, _, auxiliary = rest.partition("_")
    return finetuning(start, task, LAMBDA if auxiliary else 0.0) if task else pretraining(start)
