"""A GPT of 2.7B parameters (Brown et al. 2020, table 2.1) on 64 chips of v6e, fully sharded, 4 x 2,048 tokens on each.

A benchmark of the planner: `lmjax plan experiments/benchmarks/plan_gpt3_2700m.py --json`. What it leaves open of remat
policy, vector memory and loss chunk is chosen as for any recipe.
"""

from lmjax.settings import (
    AttentionSettings,
    DataSettings,
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
        name="plan_gpt3_2700m",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=50_304),
        data=DataSettings(sequence_length=2048, batch_size=4 * 64),
        model=ModelSettings(
            layers=32, width=2560, context=2048, vocab_size=50_304, attention=AttentionSettings(heads=32)
        ),
        mesh=MeshSettings(data=1, fsdp=64),
        plan=PlanSettings(topology="v6e-64"),
        optimizer=OptimizerSettings(learning_rate=1.6e-4, clip_norm=1.0),
        train=TrainSettings(microbatches=1),
    )
