"""The best run of 1.2e+14 FLOPs, a projection of lmjax forecast runs/byte-profiles/table.jsonl."""

from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    ModelSettings,
    OptimizerSettings,
    PositionSettings,
    Pretrain,
    ScheduleSettings,
    SourceSettings,
    TrainSettings,
)


def recipe() -> Pretrain:
    return Pretrain(
        name="c1.2e14_n696k_d23.6m",
        model=ModelSettings(
            layers=6,
            width=96,
            attention=AttentionSettings(heads=6, head_dim=16),
            positions=PositionSettings(kind="rotary"),
            init_std=0.0714,
        ),
        optimizer=OptimizerSettings(
            learning_rate=0.006737,
            schedule=ScheduleSettings(kind="linear", warmup=1148, warmup_from=0.0, final=0.0),
        ),
        train=TrainSettings(steps=23088),
        evaluation=EvaluationSettings(every=1000000),
        checkpoint=CheckpointSettings(every=2000, keep_last=1),
        log=LogSettings(every=50, tensorboard=False),
        data=DataSettings(
            train=(
                SourceSettings(),
                SourceSettings(kind="text", path="../shared/data/pd_books/botchan.txt", end=0.96),
                SourceSettings(kind="text", path="../shared/data/pd_books/inaugural.txt", end=0.96),
                SourceSettings(kind="text", path="../shared/data/tinystories/tinystories_dev.txt", end=0.96),
                SourceSettings(kind="text", path="../shared/data/web_docs/wiki_dev.txt", documents="line", end=0.96),
                SourceSettings(kind="jsonl", path="../shared/data/web_docs/c4_dev.jsonl", end=0.96),
            ),
            validation=(
                SourceSettings(split="validation"),
                SourceSettings(kind="text", path="../shared/data/pd_books/botchan.txt", begin=0.96),
                SourceSettings(kind="text", path="../shared/data/pd_books/inaugural.txt", begin=0.96),
                SourceSettings(kind="text", path="../shared/data/tinystories/tinystories_dev.txt", begin=0.96),
                SourceSettings(
                    kind="text",
                    path="../shared/data/web_docs/wiki_dev.txt",
                    documents="line",
                    begin=0.96,
                ),
                SourceSettings(kind="jsonl", path="../shared/data/web_docs/c4_dev.jsonl", begin=0.96),
            ),
            batch_size=4,
        ),
    )
