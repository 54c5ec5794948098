"""GPT-3 in its eight sizes (Brown et al. 2020, "Language models are few-shot learners", table 2.1 and appendix B).

`lmjax run gpt3:1300m` chooses a size. The paper's mixture (table 2.2) has weights of its own for five data sets that
were not released; the weights stand here and the paths are yours to give.
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

CONTEXT = 2048  # tokens
FIRST_BATCH = 16  # rows: 32k tokens, where every batch-size ramp starts (appendix B)
BILLION = 1_000_000_000
TOKENS = 300 * BILLION  # every size was trained on as many

# Table 2.1: rows of a batch (0.5M, 1M, 2M and 3.2M tokens) and the peak learning rate. Appendix B: the ramp takes
# 4 to 12 billion tokens "depending on the model size"; how they depend is not stated.
SIZES = {
    "125m": (256, 6.0e-4, 4 * BILLION),
    "350m": (256, 3.0e-4, 4 * BILLION),
    "760m": (256, 2.5e-4, 4 * BILLION),
    "1300m": (512, 2.0e-4, 6 * BILLION),
    "2700m": (512, 1.6e-4, 6 * BILLION),
    "6700m": (1024, 1.2e-4, 10 * BILLION),
    "13b": (1024, 1.0e-4, 10 * BILLION),
    "175b": (1600, 0.6e-4, 12 * BILLION),
}

# Table 2.2: weight in the training mix.
MIXTURE = {"common_crawl": 0.60, "webtext2": 0.22, "books1": 0.08, "books2": 0.08, "wikipedia": 0.03}


def recipe(
    size: Literal["125m", "350m", "760m", "1300m", "2700m", "6700m", "13b", "175b"] = "125m",
) -> Pretrain:
    rows, peak, ramp = SIZES[size]
    sources = tuple(
        SourceSettings(kind="jsonl", path=f"data/{name}/*.jsonl.gz", weight=weight) for name, weight in MIXTURE.items()
    )
    return Pretrain(
        name=f"gpt3-{size}",
        tokenizer=TokenizerSettings(kind="bpe", path="data/gpt2_tokenizer"),  # "the same [...] as GPT-2"
        data=DataSettings(
            train=sources,
            validation=(SourceSettings(kind="jsonl", path="data/validation/*.jsonl.gz"),),
            sequence_length=CONTEXT,
            batch_size=rows,
            ramp_from=FIRST_BATCH,
            ramp_tokens=ramp,
        ),
        model=preset(f"gpt3_{size}"),
        optimizer=OptimizerSettings(
            learning_rate=peak,
            # Appendix B: warmup over 375 million tokens, cosine decay to 10% over 260 billion.
            schedule=ScheduleSettings(kind="cosine", unit="tokens", warmup=375_000_000, decay=260 * BILLION, final=0.1),
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            decay_embeddings=True,
            clip_norm=1.0,
        ),
        train=TrainSettings(steps=steps(rows, ramp)),
        evaluation=EvaluationSettings(every=1000, batches=20),
    )


def steps(rows: int, ramp: int) -> int:
    """Steps that read TOKENS in all: the ramp's at its mean batch size, the rest at the full one."""
    mean_rows = (FIRST_BATCH + rows) / 2
    return round(ramp / (mean_rows * CONTEXT) + (TOKENS - ramp) / (rows * CONTEXT))
