"""A GPT of 13B parameters on 64 chips of v5p, fully sharded: each reads 4 rows of 2,048 tokens.

With `:tensor` sharded over 16 and cut over 4 chips. A benchmark of the planner:
`lmjax plan experiments/benchmarks/plan_gpt3_13b.py --json`.
"""

import dataclasses
from typing import Literal

from lmjax.settings import (
    AttentionSettings,
    ComputeSettings,
    DataSettings,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    PlanSettings,
    Pretrain,
    TokenizerSettings,
    TrainSettings,
)


def recipe(size: Literal["fsdp", "tensor"] = "fsdp") -> Pretrain:
    return fully_sharded() if size == "fsdp" else cut()


def cut() -> Pretrain:
    """What it leaves open of remat policy, vector memory and loss chunk is chosen as for any recipe."""
    mesh = MeshSettings(data=1, fsdp=16, tensor=4)
    return dataclasses.replace(fully_sharded(), name="plan_gpt3_13b_tensor", compute=ComputeSettings(), mesh=mesh)


def fully_sharded() -> Pretrain:
    return Pretrain(
        name="plan_gpt3_13b",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=50_304),
        data=DataSettings(sequence_length=2048, batch_size=4 * 64),
        model=ModelSettings(
            layers=40, width=5120, context=2048, vocab_size=50_304, attention=AttentionSettings(heads=40)
        ),
        compute=ComputeSettings(remat="projections", unroll_layers=False, vector_memory=48),
        mesh=MeshSettings(data=1, fsdp=64),
        plan=PlanSettings(topology="v5p-128"),
        optimizer=OptimizerSettings(learning_rate=1e-4, clip_norm=1.0),
        train=TrainSettings(microbatches=1),
    )
