"""A small model of Chinese: a novel, poems, messages, résumés, encyclopedia articles, questions and answers.

`experiments/benchmarks/chinese_sentences.py` makes data/chinese from the public sets, and asks the trained model which
of two sentences is likelier.
"""

from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)

FOLDER = "data/chinese"


def recipe() -> Pretrain:
    return Pretrain(
        name="chinese",
        tokenizer=TokenizerSettings(kind="sentencepiece", vocab_size=8192),
        data=DataSettings(
            train=(SourceSettings(path=f"{FOLDER}/train.jsonl"),),
            validation=(SourceSettings(path=f"{FOLDER}/validation.jsonl"),),
            sequence_length=128,
            batch_size=8,
        ),
        model=ModelSettings(layers=4, width=192, context=128, attention=AttentionSettings(heads=4)),
        optimizer=OptimizerSettings(learning_rate=2e-3, schedule=ScheduleSettings(warmup=100)),
        train=TrainSettings(steps=4000),
        evaluation=EvaluationSettings(every=1000, prompts=("张三",), sample_tokens=32),
        checkpoint=CheckpointSettings(every=500),
    )
