"""Open decoders at their published shapes: Llama 3, Mistral, Qwen 2.5 and 3, Gemma 2 and 3, OLMo 2, SmolLM, OPT.

`lmjax run open_models:qwen3_0_6b` trains one from scratch on your text; `--start` continues from imported weights:

    lmjax import-hf Qwen3-0.6B/ runs/qwen3
    lmjax run open_models:qwen3_0_6b --start runs/qwen3 --workdir runs/qwen3-mine --optimizer.learning-rate 1e-5

Only the shapes are the published ones. Batch, rate and schedule are those of Llama (Touvron et al. 2023, table 2 and
section 2.3, for 7B), and a run reads 20 tokens for each parameter (Hoffmann et al. 2022), far fewer than these models
were trained on.
"""

from typing import Literal

from lmjax.model.flops import count
from lmjax.model.open_presets import OPEN_PRESETS
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

TOKENS, LENGTH = 2**20, 4096  # of a batch, and of a row where the model can address so many
TOKENS_PER_PARAMETER = 20


def recipe(size: Literal[*OPEN_PRESETS] = "smollm2_135m") -> Pretrain:
    model = preset(size)
    length = min(LENGTH, model.context)
    return Pretrain(
        name=size.replace("_", "-"),
        tokenizer=TokenizerSettings(kind="huggingface", path="data/tokenizer"),  # tokenizer.json, as published
        data=DataSettings(
            train=(SourceSettings(kind="jsonl", path="data/text/train*.jsonl.gz"),),
            validation=(SourceSettings(kind="jsonl", path="data/text/validation*.jsonl.gz"),),
            sequence_length=length,
            batch_size=TOKENS // length,
        ),
        model=model,
        optimizer=OptimizerSettings(
            learning_rate=3e-4,
            schedule=ScheduleSettings(kind="cosine", warmup=2000, final=0.1),
            b1=0.9,
            b2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=TrainSettings(steps=TOKENS_PER_PARAMETER * count(model).parameters // TOKENS),
        evaluation=EvaluationSettings(every=1000, batches=20),
    )
