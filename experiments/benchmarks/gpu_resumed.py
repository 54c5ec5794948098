"""The run that `gpu.py` kills and starts again: seconds of a small GPT, with dropout, saved every 20 steps."""

from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    ModelSettings,
    Pretrain,
    TrainSettings,
)


def recipe() -> Pretrain:
    return Pretrain(
        name="resumed",
        model=ModelSettings(layers=2, width=64, context=64, attention=AttentionSettings(heads=2), dropout=0.1),
        data=DataSettings(sequence_length=64, batch_size=8),
        train=TrainSettings(steps=200),
        log=LogSettings(every=10, tensorboard=False),
        checkpoint=CheckpointSettings(every=20),
        evaluation=EvaluationSettings(every=200, batches=1),
    )
