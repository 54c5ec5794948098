"""What the two sides of the comparison are given: one policy, and the tokens of each stage's batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gpt2_reference import Shape

SHAPE = Shape(layers=4, width=256, heads=4, context=256, rows=8, length=256, vocabulary=4096)
END = SHAPE.vocabulary - 1  # of an answer to be learned from
ASKED = SHAPE.length // 2  # tokens of a row that are its prompt
BATCHES = 8  # that differ; then the first comes again
RATE, CLIP, B1, B2 = 1e-4, 1.0, 0.9, 0.95
BETA = 0.1  # of DPO
PROMPTS, GROUP, PROMPT, RESPONSE = 4, 4, 64, 128  # of an iteration of GRPO: prompts, responses to each, their tokens
KL, RATIO_CLIP = 0.04, 0.2
RESPONSES = PROMPTS * GROUP
UPDATES = {"grpo": (1, 1), "grpo-again": (2, 2), "ppo": (2, 1)}  # epochs of minibatches on an iteration's responses
PPO = "ppo"  # one response to a prompt, whose baseline is a value model of the policy's size
DISCOUNT, LAMBDA, VALUE_CLIP, VALUE_COEFFICIENT = 1.0, 0.95, 0.2, 0.1  # of PPO
STAGES: dict[str, tuple[int, float | None]] = {"sft": (SHAPE.rows, 1.5), "dpo": (SHAPE.rows // 2, 1.5)}
STAGES |= dict.fromkeys(UPDATES, (RESPONSES, 2.0)) | {PPO: (RESPONSES, None)}
# samples of a step or an iteration, and the target for the ratio where there is one


def demonstrations() -> np.ndarray:
    """[batches, rows, length]: what follows the prompt is learned."""
    return np.random.default_rng(0).integers(0, END, (BATCHES, SHAPE.rows, SHAPE.length))


def rankings() -> np.ndarray:
    """[batches, rows / 2, 2, length]: the better and the worse answer to a prompt, each with its end."""
    tokens = np.random.default_rng(1).integers(0, END, (BATCHES, SHAPE.rows // 2, 2, SHAPE.length))
    tokens[:, :, 1, :ASKED] = tokens[:, :, 0, :ASKED]
    tokens[..., -1] = END
    return tokens


def prompts(number: int = PROMPTS) -> np.ndarray:
    """[batches, prompts, tokens]."""
    return np.random.default_rng(2).integers(0, SHAPE.vocabulary, (BATCHES, number, PROMPT))


def answers() -> np.ndarray:
    """[batches, responses, tokens]: what PPO learns from in place of what it sampled, so that its losses compare."""
    return np.random.default_rng(3).integers(0, SHAPE.vocabulary, (BATCHES, RESPONSES, RESPONSE))


def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """The share of even numbers, of responses that must all be of the same length."""
    words = [completion.split() for completion in completions]
    lengths = {len(each) for each in words}
    if lengths != {RESPONSE}:
        raise ValueError(f"responses of {lengths} tokens: expected {RESPONSE} in each")
    return [sum(int(word) % 2 == 0 for word in each) / RESPONSE for each in words]
