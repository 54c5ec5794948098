"""Llama-3 8B (Grattafiori et al. 2024, table 3) on 32 chips of v5p, fully sharded: each reads 2 rows of 8,192 tokens.

A benchmark of the planner: `lmjax plan experiments/benchmarks/plan_llama3_8b.py --json`. What it leaves open of remat
policy, vector memory and loss chunk is chosen as for any recipe.
"""

from lmjax.settings import (
    AttentionSettings,
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
        name="plan_llama3_8b",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=128_256),
        data=DataSettings(sequence_length=8192, batch_size=2 * 32),
        model=ModelSettings(
            layers=32,
            width=4096,
            context=8192,
            vocab_size=128_256,
            attention=AttentionSettings(heads=32, kv_heads=8, bias=False),
            feed_forward=FeedForwardSettings(width=14_336, activation="silu", gated=True, bias=False),
            norm=NormSettings(kind="rmsnorm", bias=False),
            positions=PositionSettings(kind="rotary", rotary_base=500_000),
            tied_head=False,
        ),
        mesh=MeshSettings(data=1, fsdp=32),
        plan=PlanSettings(topology="v5p-64"),
        optimizer=OptimizerSettings(learning_rate=3e-4, clip_norm=1.0),
        train=TrainSettings(microbatches=1),
    )
