"""A GPT of 5.6B parameters on 64 chips of v5e, fully sharded: each reads 2 rows of 2,048 tokens.

A benchmark of the planner: `lmjax plan experiments/benchmarks/plan_gpt3_6b.py --json`.
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
        name="plan_gpt3_6b",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=32_768),
        data=DataSettings(sequence_length=2048, batch_size=2 * 64),
        model=ModelSettings(
            layers=48,
            width=3072,
            context=2048,
            vocab_size=32_768,
            attention=AttentionSettings(heads=12, head_dim=256),
            feed_forward=FeedForwardSettings(width=12288),
        ),
        compute=ComputeSettings(remat="projections", unroll_layers=False, loss_chunk=2 * 2048),
        mesh=MeshSettings(data=1, fsdp=64),
        plan=PlanSettings(topology="v5e-64"),
        optimizer=OptimizerSettings(learning_rate=1.2e-4, clip_norm=1.0),
        train=TrainSettings(microbatches=1),
    )
