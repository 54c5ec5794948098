"""GPT-1's way in small: a decoder pretrained on text, then a class of sentences, with and without language modelling.

    lmjax run finetune_gpt1:pretrain
    lmjax run finetune_gpt1:alone --seeds 0,1,2
    lmjax run finetune_gpt1:auxiliary --seeds 0,1,2

Radford et al. 2018, section 3.2: fine-tuning minimises L3 = L2 + lambda L1, where L2 is the loss of the class and L1
that of the next token in the labelled texts. `alone` has lambda = 0, `auxiliary` the paper's 0.5. The sets are read
from `../shared/data`, or where LMJAX_SHARED_DATA says.
"""

import os
from pathlib import Path
from typing import Literal

from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    Finetune,
    LabelledSettings,
    LogSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    RowSettings,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.tasks.sentences import Sentences

DATA = Path(os.environ.get("LMJAX_SHARED_DATA", "../shared/data"))
TEXTS = {  # how a document of each begins and ends
    "movie_reviews/movie_dev.jsonl": {"kind": "jsonl"},
    "web_docs/c4_dev.jsonl": {"kind": "jsonl"},
    "web_docs/wiki_dev.txt": {"kind": "text", "documents": "line"},
    "tinystories/tinystories_dev.txt": {"kind": "text"},
}
HELD_OUT = 0.95  # from here on
WEIGHTS = {"alone": 0.0, "auxiliary": 0.5}  # lambda
STEPS = 432  # 2 epochs over 6,920 sentences, of the paper's 3


def texts(begin: float, end: float) -> tuple[SourceSettings, ...]:
    return tuple(SourceSettings(path=str(DATA / path), begin=begin, end=end, **how) for path, how in TEXTS.items())


def pretrain() -> Pretrain:
    return Pretrain(
        name="gpt1-small",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=4096),
        data=DataSettings(
            train=texts(0.0, HELD_OUT), validation=texts(HELD_OUT, 1.0), sequence_length=128, batch_size=16
        ),
        model=ModelSettings(layers=4, width=128, context=128, attention=AttentionSettings(heads=4)),
        optimizer=OptimizerSettings(learning_rate=2e-3, schedule=ScheduleSettings(warmup=50)),
        train=TrainSettings(steps=1000),
        evaluation=EvaluationSettings(every=250),
        checkpoint=CheckpointSettings(every=500),
    )


def finetune(name: str) -> Finetune:
    def source(file: str) -> tuple[LabelledSettings, ...]:
        return (LabelledSettings(str(DATA / "sst2" / file), form="sst2"),)

    return Finetune(
        name=f"gpt1-small-{name}",
        start="runs/gpt1-small",
        task=Sentences(train=source("train.tsv"), validation=source("dev.tsv"), language=WEIGHTS[name]),
        rows=RowSettings(sequence_length=96, buckets=(12, 20, 28, 36, 48, 64), batch_size=32),
        dropout=0.1,
        optimizer=OptimizerSettings(
            learning_rate=5e-4,  # the paper's 6.25e-5 is for 117 million parameters
            schedule=ScheduleSettings(kind="linear", warmup=STEPS // 20, final=0.0),
            b2=0.999,
            weight_decay=0.01,
        ),
        train=TrainSettings(steps=STEPS),
        evaluation=EvaluationSettings(every=STEPS // 3),
        checkpoint=CheckpointSettings(every=STEPS),
        log=LogSettings(every=20, tensorboard=False),
    )


def recipe(size: Literal["pretrain", "alone", "auxiliary"] = "pretrain") -> Pretrain | Finetune:
    return pretrain() if size == "pretrain" else finetune(size)
