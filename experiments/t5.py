"""T5 in its sizes, versions 1.0 and 1.1 (Raffel et al. 2020, "Exploring the limits of transfer learning ...").

`lmjax run t5` trains a small encoder-decoder on the embedded corpus on a CPU. `lmjax run t5:base` is the paper's
pretraining: 524,288 steps of 128 rows of 512 tokens of C4 (section 3.1.2), with Adafactor and an inverse square root of
the step; `lmjax run t5:v1_1_base` that of the release, whose table of logits is its own.
"""

import dataclasses
from typing import Literal

from lmjax.model.presets import preset
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    OptimizerSettings,
    PretrainSpans,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.settings.masking import sentinel_symbols


def adafactor(rate: float, warmup: int) -> OptimizerSettings:
    """Section 3.1.2: the rate is 1 / sqrt(max(step, 10,000)), relative to each parameter's root mean square."""
    return OptimizerSettings(
        name="adafactor",
        learning_rate=rate,
        schedule=ScheduleSettings(kind="inverse_sqrt", warmup=warmup, warmup_from=1.0),
        weight_decay=0.0,
        clip_norm=None,
    )


def small() -> PretrainSpans:
    """The first minutes of a T5, from text that every Python installation has."""
    model = dataclasses.replace(
        preset("t5_small"),
        layers=2,
        encoder_layers=2,
        width=128,
        context=128,
        vocab_size=None,
        attention=AttentionSettings(heads=4, head_dim=32, bias=False, scaled=False),
        feed_forward=dataclasses.replace(preset("t5_small").feed_forward, width=512),
        dropout=0.0,
    )
    return PretrainSpans(
        name="t5-embedded",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=4096, user_symbols=sentinel_symbols()),
        data=DataSettings(sequence_length=128, batch_size=32),
        model=model,
        optimizer=adafactor(3e-2, 100),
        train=TrainSettings(steps=600, z_loss=1e-4),
        evaluation=EvaluationSettings(every=200),
        checkpoint=CheckpointSettings(every=200),
    )


def recipe(
    size: Literal[
        *("embedded", "small", "base", "large", "3b", "11b"),
        *("v1_1_small", "v1_1_base", "v1_1_large", "v1_1_xl", "v1_1_xxl"),
    ] = "embedded",
) -> PretrainSpans:
    if size == "embedded":
        return small()
    return PretrainSpans(
        name=f"t5-{size}",
        tokenizer=TokenizerSettings(kind="huggingface", path="data/t5_tokenizer"),  # 32,000 pieces and 100 sentinels
        data=DataSettings(
            train=(SourceSettings(kind="jsonl", path="data/c4/train*.jsonl.gz"),),
            validation=(SourceSettings(kind="jsonl", path="data/c4/validation*.jsonl.gz"),),
            sequence_length=512,
            batch_size=128,
        ),
        model=preset(f"t5_{size}"),
        optimizer=adafactor(1e-2, 10_000),
        train=TrainSettings(steps=2**19, z_loss=1e-4),
        evaluation=EvaluationSettings(every=10_000, batches=40),
        checkpoint=CheckpointSettings(every=5_000),
    )
