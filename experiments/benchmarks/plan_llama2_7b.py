"""Llama-2 7B (Touvron et al. 2023, table 1) on 32 chips of v5p, fully sharded: each reads 2 rows of 2,048 tokens.

With `:32k` rows of 32,768 tokens on 64 chips, each row on four of them. A benchmark of the planner:
`lmjax plan experiments/benchmarks/plan_llama2_7b.py --json`.
"""

import dataclasses
from typing import Literal

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


def recipe(size: Literal["2k", "32k"] = "2k") -> Pretrain:
    return short_rows() if size == "2k" else long_rows()


def long_rows() -> Pretrain:
    """What it leaves open of remat policy, vector memory and loss chunk is chosen as for any recipe."""
    short = short_rows()
    return dataclasses.replace(
        short,
        name="plan_llama2_7b_32k",
        data=dataclasses.replace(short.data, sequence_length=32_768, batch_size=16),
        model=dataclasses.replace(short.model, context=32_768),
        compute=ComputeSettings(),
        mesh=MeshSettings(data=1, fsdp=16, sequence=4),
        plan=PlanSettings(topology="v5p-128"),
    )


def short_rows() -> Pretrain:
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
