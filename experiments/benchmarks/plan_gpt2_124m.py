"""GPT-2 124M with a vocabulary of 50,304 on 16 chips of v5e: each holds the model and reads 16 rows of 1,024 tokens.

A benchmark of the planner: `lmjax plan experiments/benchmarks/plan_gpt2_124m.py --json`.
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
        name="plan_gpt2_124m",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=50_304),
        data=DataSettings(sequence_length=1024, batch_size=16 * 16),
        model=ModelSettings(
            layers=12,
            width=768,
            context=1024,
            vocab_size=50_304,
            attention=AttentionSettings(heads=12, head_dim=64),
            feed_forward=FeedForwardSettings(width=3072),
        ),
        compute=ComputeSettings(
            remat="none", unroll_layers=False, scan_layers=False, loss_chunk=16 * 1024, vector_memory=48
        ),
        mesh=MeshSettings(data=16),
        plan=PlanSettings(topology="v5e-16"),
        optimizer=OptimizerSettings(learning_rate=6e-4, clip_norm=1.0),
        train=TrainSettings(microbatches=1),
    )
