"""GPT-1 (Radford et al. 2018, "Improving language understanding by generative pre-training", section 4.1)."""

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


def recipe() -> Pretrain:
    return Pretrain(
        name="gpt1",
        # The paper's BPE has 40,000 merges. Its published vocabulary is not byte-level; this one is, at the same size.
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=40_478),
        data=DataSettings(
            train=(SourceSettings(kind="text", path="data/books/train"),),  # one file per book, as in BooksCorpus
            validation=(SourceSettings(kind="text", path="data/books/validation"),),
            sequence_length=512,
            batch_size=64,  # "minibatches of 64 randomly sampled, contiguous sequences of 512 tokens"
        ),
        model=preset("gpt1"),
        optimizer=OptimizerSettings(
            learning_rate=2.5e-4,  # "max learning rate of 2.5e-4"
            schedule=ScheduleSettings(kind="cosine", warmup=2000, final=0.0),  # "annealed to 0 using a cosine schedule"
            b2=0.999,  # Adam's default; the paper names no other
            weight_decay=0.01,  # "a modified version of L2 regularization w = 0.01"
            decay_embeddings=True,
            clip_norm=1.0,  # the released code's max_grad_norm
        ),
        # The paper trains for 100 epochs and states no token count: 100 x (tokens of your corpus) / 32,768 steps.
        train=TrainSettings(steps=100_000),
        evaluation=EvaluationSettings(every=2000),
    )
