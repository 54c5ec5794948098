"""BERT in its six sizes (Devlin et al. 2019; the four small ones Turc et al. 2019, table 1), and RoBERTa's way.

`lmjax run bert` trains `bert_tiny`'s shape on the embedded corpus on a CPU. `lmjax run bert:base` is the paper's run:
1,000,000 steps of 256 rows, of which the last tenth has rows of 512 tokens instead of 128 (appendix A.2). For these,
`lmjax run bert:base --data.sequence-length 512 --masking.most 80 --force` resumes the workdir at step 900,000.
`--no-pairs` leaves the sentence pairs out: rows are then full, as in Liu et al. 2019, section 4.2.
"""

import dataclasses
from typing import Literal

from lmjax.model.presets import preset
from lmjax.settings import (
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    MaskingSettings,
    OptimizerSettings,
    PretrainMasked,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)

VOCABULARY = TokenizerSettings(kind="wordpiece", path="data/bert/vocab.txt")  # the released "uncased" one


def adam(rate: float, warmup: int) -> OptimizerSettings:
    """Appendix A.2, and the released optimization.py: no bias correction, and embeddings are decayed."""
    return OptimizerSettings(
        learning_rate=rate,
        schedule=ScheduleSettings(kind="linear", warmup=warmup, final=0.0),
        b1=0.9,
        b2=0.999,
        eps=1e-6,
        bias_correction=False,
        weight_decay=0.01,
        decay_embeddings=True,
        clip_norm=1.0,
    )


def small() -> PretrainMasked:
    """The first minutes of a BERT, from text that every Python installation has.

    Without bias correction an average over 1,000 steps would make the first steps of a short run far too large.
    """
    model = preset("bert_tiny")
    model = dataclasses.replace(
        model, vocab_size=None, context=64, dropout=0.0, attention=dataclasses.replace(model.attention, dropout=0.0)
    )
    return PretrainMasked(
        name="bert-embedded",
        tokenizer=TokenizerSettings(kind="wordpiece", vocab_size=4096),
        data=DataSettings(sequence_length=64, batch_size=32),
        model=model,
        optimizer=dataclasses.replace(adam(2e-3, 100), b2=0.98),
        train=TrainSettings(steps=900),
        evaluation=EvaluationSettings(every=300),
        checkpoint=CheckpointSettings(every=300),
    )


def recipe(
    size: Literal["embedded", "tiny", "mini", "small", "medium", "base", "large"] = "embedded",
) -> PretrainMasked:
    if size == "embedded":
        return small()
    return PretrainMasked(
        name=f"bert-{size}",
        tokenizer=VOCABULARY,
        data=DataSettings(
            train=(SourceSettings(kind="jsonl", path="data/wikipedia_books/train*.jsonl.gz"),),
            validation=(SourceSettings(kind="jsonl", path="data/wikipedia_books/validation*.jsonl.gz"),),
            sequence_length=128,
            batch_size=256,
        ),
        masking=MaskingSettings(most=20),  # appendix A.2 and the released create_pretraining_data.py
        model=preset(f"bert_{size}"),
        optimizer=adam(1e-4, 10_000),
        train=TrainSettings(steps=1_000_000),
        evaluation=EvaluationSettings(every=10_000, batches=40),
        checkpoint=CheckpointSettings(every=5_000),
    )
