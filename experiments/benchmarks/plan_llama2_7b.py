"""Llama-2 7B (Touvron et al. 2023, table 1) on 32 chips of v5p, fully sharded: each reads 2 rows of 2,048 tokens.

A benchmark of the planner: `lmjax plan experiments/benchmarks/plan_llama2_7b.py --json`.
"""

from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    DataSettings,
    FeedForwardSettings,
    MeshSettings,
    ModelSettings,
    NormSettings,
    OptimizerSettings,
    PlanSettings,
    PositionSettings,
    Pretrain,
    TokenizerSettings,
    TrainSettings,
)


def recipe() -> Pretrain:
    return Pretrain(
        name="plan_llama2_7b",
        tokenizer=TokenizerSettings(kind="sentencepiece", vocab_size=32_000),
        data=DataSettings(sequence_length=2048, batch_size=2 * 32),
        model=ModelSettings(
            layers=32,
            width=4096,
            context=2048,
            vocab_size=32_000,
            attention=AttentionSettings(heads=32, bias=False),
            feed_forward=FeedForwardSettings(width=11_008, activation="silu", gated=True, bias=False),
            norm=NormSettings(kind="rmsnorm", bias=False),
            positions=PositionSettings(kind="rotary"),
            tied_head=False,
        ),
        compute=ComputeSettings(remat="projections", unroll_layers=False, vector_memory=64),
        mesh=MeshSettings(data=1, fsdp=32),
        plan=PlanSettings(topology="v5p-64"),
        optimizer=OptimizerSettings(learning_rate=3e-4, clip_norm=1.0),
        train=TrainSettings(microbatches=1),
    )
