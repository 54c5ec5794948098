"""A character-level GPT on Shakespeare: the CPU configuration of nanoGPT's README, which reports a loss of 1.88.

Its own learning rate, 1e-3, ends at 1.89 here, over the whole validation text; twice that, which is set, at 1.80.

The text is ASCII, so the byte tokenizer is a character tokenizer here. Put the text at data/tinyshakespeare.txt or say
where it is: --data.train.0.path FILE --data.validation.0.path FILE.
"""

from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    FeedForwardSettings,
    ModelSettings,
    NormSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    SourceSettings,
    TrainSettings,
)

TEXT = "data/tinyshakespeare.txt"


def recipe() -> Pretrain:
    return Pretrain(
        name="shakespeare_char",
        data=DataSettings(
            train=(SourceSettings(kind="text", path=TEXT, end=0.9),),  # nanoGPT, data/shakespeare_char/prepare.py
            validation=(SourceSettings(kind="text", path=TEXT, begin=0.9),),
            sequence_length=64,
            batch_size=12,
        ),
        model=ModelSettings(  # nanoGPT's README: --n_layer=4 --n_head=4 --n_embd=128 --block_size=64 --dropout=0.0
            layers=4,
            width=128,
            context=64,
            attention=AttentionSettings(heads=4, bias=False),  # nanoGPT, train.py: bias = False
            feed_forward=FeedForwardSettings(activation="gelu_erf", bias=False),  # nanoGPT, model.py: nn.GELU()
            norm=NormSettings(bias=False),
        ),
        optimizer=OptimizerSettings(  # nanoGPT, config/train_shakespeare_char.py
            learning_rate=2e-3,  # nanoGPT: 1e-3
            schedule=ScheduleSettings(kind="cosine", warmup=100, final=0.1),
            b2=0.99,
            weight_decay=0.1,
            decay_embeddings=True,  # nanoGPT decays every matrix, embeddings included
            clip_norm=1.0,
        ),
        train=TrainSettings(steps=2000, seed=1337),
        evaluation=EvaluationSettings(every=250, prompts=("\n",), sample_tokens=200),
        checkpoint=CheckpointSettings(every=1000),
    )
