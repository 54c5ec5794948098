"""A pretrained encoder fine-tuned on public sets: sentences, pairs, choices, questions, tags, embeddings.

`lmjax import-hf FOLDER runs/encoder` makes the start of a Hugging Face folder; `lmjax run finetune:sst2 --seeds 0,1,2`
then trains with three seeds and prints means and deviations. The sets are read from `../shared/data`, or where
LMJAX_SHARED_DATA says. Rates are for a model of 22 million parameters; two CPU cores decide how many steps there are.
"""

import os
from pathlib import Path
from typing import Literal

from lmjax.settings import (
    CheckpointSettings,
    EvaluationSettings,
    Finetune,
    LabelledSettings,
    LogSettings,
    OptimizerSettings,
    RowSettings,
    ScheduleSettings,
    TrainSettings,
)
from lmjax.tasks.choices import Choices
from lmjax.tasks.embeddings import Embeddings
from lmjax.tasks.question_answering import QuestionAnswering
from lmjax.tasks.sentences import Sentences
from lmjax.tasks.tags import Tags

DATA = Path(os.environ.get("LMJAX_SHARED_DATA", "../shared/data"))


def source(path: str, form: str = "", begin: float = 0.0, end: float = 1.0) -> tuple[LabelledSettings, ...]:
    return (LabelledSettings(str(DATA / path), form=form, begin=begin, end=end),)


ARTICLES = 3056 / 3822  # of squad_v2's questions, those of its first eight articles: none is on both sides
ARTICLES_1 = 530 / 664  # of squad_v1_en's, those of its first twenty

TASKS = {
    "sst2": Sentences(train=source("sst2/train.tsv", "sst2"), validation=source("sst2/dev.tsv", "sst2")),
    "rte": Sentences(
        train=source("rte/train.csv", "nli", end=0.8), validation=source("rte/train.csv", "nli", begin=0.8)
    ),
    "stsb_en": Embeddings(train=source("stsb_en/train.csv", "stsb"), validation=source("stsb_en/dev.csv", "stsb")),
    "codah": Choices(
        train=source("codah/codah_dev.tsv", "codah", end=0.8),
        validation=source("codah/codah_dev.tsv", "codah", begin=0.8),
    ),
    "swag": Choices(
        train=source("swag/swag_dev.jsonl", "swag", end=0.7),
        validation=source("swag/swag_dev.jsonl", "swag", begin=0.7),
    ),
    "squad_v2": QuestionAnswering(
        train=source("squad_v2/squad2_dev.json", "squad", end=ARTICLES),
        validation=source("squad_v2/squad2_dev.json", "squad", begin=ARTICLES),
    ),
    "squad_v1_en": QuestionAnswering(
        train=source("squad_v1_en/xquad_en_dev.json", "squad", end=ARTICLES_1),
        validation=source("squad_v1_en/xquad_en_dev.json", "squad", begin=ARTICLES_1),
        marks="squad_1",
    ),
    "wnut17": Tags(
        train=source("wnut17/wnut17train.conll", "conll"),
        validation=source("wnut17/emerging.dev.conll", "conll"),
        stride=32,  # of windows of 62 tokens
    ),
}

# rows: the length of a row and its buckets; batch: rows of a batch; steps; the peak rate
SIZES = {
    "sst2": (64, (16, 24, 32, 48), 32, 100, 1e-4),
    "rte": (128, (48, 64, 96), 16, 50, 1e-4),
    "stsb_en": (48, (16, 24, 32), 32, 100, 1e-4),
    "codah": (48, (24, 32), 8, 120, 1e-4),
    "swag": (64, (32, 48), 8, 30, 1e-4),
    "squad_v2": (256, (128, 192), 8, 150, 1.5e-4),
    "squad_v1_en": (256, (128, 192), 8, 150, 1.5e-4),
    "wnut17": (64, (16, 32, 48), 16, 200, 1.5e-4),
}


def recipe(
    size: Literal["sst2", "rte", "stsb_en", "codah", "swag", "squad_v2", "squad_v1_en", "wnut17"] = "sst2",
) -> Finetune:
    length, buckets, rows, steps, rate = SIZES[size]
    return Finetune(
        name=f"finetune-{size}",
        start="runs/encoder",
        task=TASKS[size],
        rows=RowSettings(sequence_length=length, buckets=buckets, batch_size=rows),
        dropout=0.1,
        optimizer=OptimizerSettings(
            learning_rate=rate,
            schedule=ScheduleSettings(kind="linear", warmup=steps // 10, final=0.0),
            b2=0.999,
            eps=1e-6,
            weight_decay=0.01,
        ),
        train=TrainSettings(steps=steps),
        evaluation=EvaluationSettings(every=steps),
        checkpoint=CheckpointSettings(every=steps),
        log=LogSettings(every=10, tensorboard=False),
    )
