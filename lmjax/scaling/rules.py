"""Learning rate, batch and warmup of a run from its size, by rules that name their source.

In: what a run trains. Out: its hyperparameters, with the arithmetic in words. A rule is any such function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmjax.model.flops import Count
from lmjax.settings import ModelSettings


@dataclass(frozen=True)
class Trained:
    """What a rule may look at: the model, its counts, the tokens of the run and of a row."""

    model: ModelSettings
    counted: Count
    tokens: float
    sequence_length: int


@dataclass(frozen=True)
class Hyperparameters:
    """The peak learning rate, rows per step and steps of warmup, and how they were found."""

    learning_rate: float
    batch_size: int
    warmup: int
    reason: str


Rule = Callable[[Trained], Hyperparameters]

# Brown et al. 2020, table 2.1: parameters (13B with width 5,120), tokens of a batch, peak rate
GPT3 = (
    (125_226_240, 0.5e6, 6.0e-4),
    (355_871_744, 0.5e6, 3.0e-4),
    (760_300_032, 0.5e6, 2.5e-4),
    (1_315_723_264, 1.0e6, 2.0e-4),
    (2_651_553_280, 1.0e6, 1.6e-4),
    (6_658_404_352, 2.0e6, 1.2e-4),
    (12_853_386_240, 2.0e6, 1.0e-4),
    (174_604_259_328, 3.2e6, 0.6e-4),
)
GPT3_WARMUP = 375e6 / 300e9  # of the tokens of a run (appendix B)


def fixed(learning_rate: float, batch_size: int, warmup: float = 0.02) -> Rule:
    """The same rate and batch for every run; `warmup` is a fraction of its steps."""

    def rule(trained: Trained) -> Hyperparameters:
        steps = trained.tokens / (batch_size * trained.sequence_length)
        reason = f"rate {learning_rate:.3g}, {batch_size} rows and {warmup:.1%} of warmup, as the sweep says"
        return Hyperparameters(learning_rate, batch_size, math.floor(warmup * steps), reason)

    return rule


def gpt3(trained: Trained) -> Hyperparameters:
    """GPT-3's table 2.1 (Brown et al. 2020), interpolated in the logarithms; beyond its ends, those of its ends."""
    sizes, batches, rates = (np.log(column) for column in zip(*GPT3, strict=True))
    parameters = trained.counted.parameters
    size = math.log(parameters)
    rate = math.exp(np.interp(size, sizes, rates))
    tokens = math.exp(np.interp(size, sizes, batches))
    rows = whole_rows(tokens, trained)
    inside = "interpolated" if sizes[0] <= size <= sizes[-1] else "the nearest end"
    reason = (
        f"GPT-3's table 2.1, {inside}: rate {rate:.3g} and {tokens:,.0f} tokens of batch at {parameters:,} "
        f"parameters; warmup {GPT3_WARMUP:.3%} of the tokens{_shortened(tokens, rows, trained)}"
    )
    warmup = GPT3_WARMUP * trained.tokens / (rows * trained.sequence_length)
    return Hyperparameters(rate, rows, math.ceil(warmup), reason)


def porian(trained: Trained) -> Hyperparameters:
    """Porian et al. 2024, "Resolving discrepancies in compute-optimal scaling of language models", section 4.

    Rate 0.0047 (N / 108M)^(-1/3), batch 160 (N / 108M)^(2/3) rows of 2,048 tokens, warmup of N tokens, for AdamW at a
    constant rate and beta2 = 0.95 (0.99 below 256 rows of 2,048). N has the head and no embeddings. Exponents rounded
    as OLMo-core's ladder has them.
    """
    size = trained.counted.parameters_with_head
    ratio = size / 108e6
    rate, tokens = 0.0047 * ratio ** (-1 / 3), 160 * 2048 * ratio ** (2 / 3)
    rows = whole_rows(tokens, trained)
    steps = trained.tokens / (rows * trained.sequence_length)
    warmup = min(size / (rows * trained.sequence_length), 0.2 * steps)
    reason = (
        f"Porian et al.: rate 0.0047 x ({size:,} / 108M)^(-1/3) = {rate:.3g}, batch 160 x 2,048 x "
        f"(...)^(2/3) = {tokens:,.0f} tokens; warmup N tokens, at most a fifth{_shortened(tokens, rows, trained)}"
    )
    return Hyperparameters(rate, rows, math.floor(warmup), reason)


def kaplan(batch_size: int) -> Rule:
    """Rate 0.003239 - 0.0001395 ln N, N without embeddings (Kaplan et al. 2020, equation D.1); rows are given.

    The equation is of models with more than a million parameters, and falls to 0 at 10^10.
    """

    def rule(trained: Trained) -> Hyperparameters:
        size = trained.counted.non_embedding_parameters
        rate = 0.003239 - 0.0001395 * math.log(size)
        if rate <= 0:
            raise ValueError(f"{size:,} parameters: the rule gives {rate:.3g}; it holds below 10^10")
        warmup = min(3000.0, 0.02 * trained.tokens / (batch_size * trained.sequence_length))
        reason = (
            f"Kaplan et al., D.1: rate 0.003239 - 0.0001395 ln {size:,} = {rate:.3g}; {batch_size} rows as the sweep "
            "says; warmup 2% of the steps, at most 3,000"
        )
        return Hyperparameters(rate, batch_size, math.floor(warmup), reason)

    return rule


def inverse_width(learning_rate: float, base_width: int, batch_size: int, warmup: float = 0.02) -> Rule:
    """A rate that falls as 1 / width from `learning_rate` at `base_width`: muP's for hidden matrices, for all of them.

    Yang et al. 2022, "Tensor Programs V", table 8, has it for matrices; ModelSettings say where all of muP is meant.
    """

    def rule(trained: Trained) -> Hyperparameters:
        at = fixed(learning_rate * base_width / trained.model.width, batch_size, warmup)(trained)
        reason = (
            f"rate {learning_rate:.3g} x {base_width} / {trained.model.width} = {at.learning_rate:.3g}, by 1 / width"
        )
        return Hyperparameters(at.learning_rate, at.batch_size, at.warmup, f"{reason}; {batch_size} rows")

    return rule


def whole_rows(tokens: float, trained: Trained) -> int:
    """The power of two of rows nearest to a batch of so many tokens, at most an eighth of the run's steps' worth."""
    wanted = math.log2(max(1.0, tokens / trained.sequence_length))
    most = math.log2(max(1.0, trained.tokens / trained.sequence_length / 8))
    return int(2 ** min(round(wanted), math.floor(most)))


def _shortened(tokens: float, rows: int, trained: Trained) -> str:
    return f"; {rows} rows of {trained.sequence_length} tokens" + (
        ", the most that leaves 8 steps" if rows * trained.sequence_length < tokens / math.sqrt(2) else ""
    )
