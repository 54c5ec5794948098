"""The first run: a tokenizer and a small GPT, from text that every Python installation has, in minutes on a CPU."""

from lmjax.recipe import Pretrain
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    ScheduleSettings,
    TokenizerSettings,
    TrainSettings,
)


def recipe() -> Pretrain:
    return Pretrain(
        name="quickstart",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=4096),
        data=DataSettings(sequence_length=128, batch_size=16),
        model=ModelSettings(layers=4, width=256, context=256, attention=AttentionSettings(heads=4)),
        optimizer=OptimizerSettings(learning_rate=2e-3, schedule=ScheduleSettings(warmup=50)),
        train=TrainSettings(steps=600),
        evaluation=EvaluationSettings(every=150, prompts=("The array", "Return a"), sample_tokens=48),
        checkpoint=CheckpointSettings(every=150),
    )
