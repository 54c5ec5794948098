"""GPT-2 in its four sizes (Radford et al. 2019, "Language models are unsupervised multitask learners").

The paper states the shapes, the context of 1,024 and the batch of 512 rows, but neither a learning rate nor a schedule:
those are GPT-3's for the nearest size (Brown et al. 2020, table 2.1), as in nanoGPT's config/train_gpt2.py for the
smallest. `lmjax run gpt2:355m` chooses a size.
"""

from typing import Literal

from lmjax.model.presets import preset
from lmjax.settings import (
    DataSettings,
    EvaluationSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)

PEAK = {"124m": 6.0e-4, "355m": 3.0e-4, "774m": 2.5e-4, "1558m": 2.0e-4}


def recipe(size: Literal["124m", "355m", "774m", "1558m"] = "124m") -> Pretrain:
    return Pretrain(
        name=f"gpt2-{size}",
        tokenizer=TokenizerSettings(kind="bpe", path="data/gpt2_tokenizer"),  # encoder.json and vocab.bpe, as published
        data=DataSettings(
            train=(SourceSettings(kind="jsonl", path="data/openwebtext/train*.jsonl.gz"),),
            validation=(SourceSettings(kind="jsonl", path="data/openwebtext/validation*.jsonl.gz"),),
            sequence_length=1024,
            batch_size=512,  # section 2.3
        ),
        model=preset(f"gpt2_{size}"),
        optimizer=OptimizerSettings(
            learning_rate=PEAK[size],
            schedule=ScheduleSettings(kind="cosine", warmup=2000, final=0.1),  # nanoGPT, config/train_gpt2.py
            weight_decay=0.1,
            decay_embeddings=True,
            clip_norm=1.0,
        ),
        train=TrainSettings(steps=600_000),  # nanoGPT: 600,000 steps of 0.5M tokens, 300B in all
        evaluation=EvaluationSettings(every=1000, batches=20),
    )
