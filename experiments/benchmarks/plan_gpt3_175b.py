"""GPT-3 175B with a vocabulary of 50,304 on 512 chips of v5p, sharded: each reads 2 rows of 2,048 tokens.

A benchmark of the planner: `lmjax plan experiments/benchmarks/plan_gpt3_175b.py --json`.
"""

from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    DataSettings,
    FeedForwardSettings,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    PlanSettings,
    Pretrain,
    TokenizerSettings,
    TrainSettings,
)


def recipe() -> Pretrain:
    return Pretrain(
        name="plan_gpt3_175b",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=50_304),
        data=DataSettings(sequence_length=2048, batch_size=2 * 512),
        model=ModelSettings(
            layers=96,
            width=12288,
            context=2048,
            vocab_size=50_304,
            attention=AttentionSettings(heads=96, head_dim=128),
            feed_forward=FeedForwardSettings(width=49152),
        ),
        compute=ComputeSettings(remat="all_but_attended", unroll_layers=False, loss_chunk=2 * 2048, vector_memory=48),
        mesh=MeshSettings(data=1, fsdp=512),
        plan=PlanSettings(topology="v5p-1024"),
        optimizer=OptimizerSettings(learning_rate=0.6e-4, clip_norm=1.0),
        train=TrainSettings(microbatches=1),
    )
