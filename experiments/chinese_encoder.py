"""A small BERT of Chinese: masked characters of a novel and of poems, then names in résumés, beside no pretraining.

    python experiments/benchmarks/chinese_sentences.py ../shared/data --text --names zh_classics zh_poetry \\
        --folder data/chinese_literature
    lmjax run chinese_encoder:masked
    lmjax run chinese_encoder:random
    lmjax run chinese_encoder:masked_names --seeds 0,1,2
    lmjax run chinese_encoder:random_names --seeds 0,1,2

The vocabulary is learned from the same text; WordPiece reads each Chinese character alone. The only step of `random`
has a rate of 0: its model has the vocabulary and nothing that was learned with it.
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
    OptimizerSettings,
    PositionSettings,
    PretrainMasked,
    RowSettings,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.tasks.tags import Tags

SHARED = Path(os.environ.get("LMJAX_SHARED_DATA", "../shared/data"))
FOLDER = "data/chinese_literature"
STEPS, NAMES_STEPS = 1800, 600
INIT_STD = 0.08  # about 1 / sqrt(width): with the usual 0.02, attention of this width hardly leaves its uniform start
LOG = LogSettings(every=20, tensorboard=False)


def optimizer(rate: float, warmup: int) -> OptimizerSettings:
    schedule = ScheduleSettings(kind="linear", warmup=warmup, final=0.0)
    return OptimizerSettings(learning_rate=rate, schedule=schedule, b2=0.98, weight_decay=0.01)


def pretraining(name: str) -> PretrainMasked:
    steps = 1 if name == "random" else STEPS
    return PretrainMasked(
        name=f"chinese-{name}",
        tokenizer=TokenizerSettings(kind="wordpiece", vocab_size=6396),
        data=DataSettings(
            train=(SourceSettings(path=f"{FOLDER}/train.jsonl"),),
            validation=(SourceSettings(path=f"{FOLDER}/validation.jsonl"),),
            sequence_length=128,
            batch_size=32,
        ),
        model=ModelSettings(
            layers=4,
            width=128,
            context=128,
            attention=AttentionSettings(heads=4, causal=False),
            feed_forward=FeedForwardSettings(activation="gelu_erf"),
            positions=PositionSettings(segment_types=2),
            head=HeadSettings(transform=True, bias=True),
            init_std=INIT_STD,
        ),
        masking=MaskingSettings(most=20),
        optimizer=optimizer(1e-3, 100),
        train=TrainSettings(steps=steps),
        evaluation=EvaluationSettings(every=250),
        checkpoint=CheckpointSettings(every=steps),
        log=LOG,
    )


def names(start: str) -> Finetune:
    train, dev = (
        (LabelledSettings(str(SHARED / "zh_resume_ner" / f"{split}.char.bmes"), form="conll"),)
        for split in ("train", "dev")
    )
    return Finetune(
        name=f"chinese-{start}-names",
        start=f"runs/chinese-{start}",
        task=Tags(train=train, validation=dev, words="characters", stride=62),
        rows=RowSettings(sequence_length=128, buckets=(16, 32, 48, 64, 96), batch_size=16),
        dropout=0.1,
        optimizer=optimizer(5e-4, NAMES_STEPS // 10),
        train=TrainSettings(steps=NAMES_STEPS),
        evaluation=EvaluationSettings(every=NAMES_STEPS),
        checkpoint=CheckpointSettings(every=NAMES_STEPS),
        log=LOG,
    )


def recipe(
    size: Literal["masked", "random", "masked_names", "random_names"] = "masked",
) -> PretrainMasked | Finetune:
    start, _, task = size.partition("_")
    return names(start) if task else pretraining(start)
