"""A GPT of 22B parameters on 256 chips of v5e, fully sharded: each reads 4 rows of 1,024 tokens.

A benchmark of the planner: `lmjax plan experiments/benchmarks/plan_gpt3_22b.py --json`.
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
        name="plan_gpt3_22b",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=32_768),
        data=DataSettings(sequence_length=1024, batch_size=4 * 256),
        model=ModelSettings(
            layers=48,
            width=6144,
            context=1024,
            vocab_size=32_768,
            attention=AttentionSettings(heads=24, head_dim=256),
            feed_forward=FeedForwardSettings(width=24576),
        ),
        compute=ComputeSettings(remat="up", unroll_layers=False, loss_chunk=4 * 1024, vector_memory=48),
        mesh=MeshSettings(data=1, fsdp=256),
        plan=PlanSettings(topology="v5e-256"),
        optimizer=OptimizerSettings(learning_rate=1e-4, clip_norm=1.0),
        train=TrainSettings(microbatches=1),
    )
