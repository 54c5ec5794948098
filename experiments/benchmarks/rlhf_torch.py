"""PPO by hand in PyTorch, the work of lmjax's iteration: what it is compared with, as TRL has no PPO any more.

Float32 on a CPU, fused attention, a cache for sampling, logits of responses alone, no gradients where none are used.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import rlhf_work as work
import torch
from gpt2_reference import Numbers, torch_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, GPT2LMHeadModel


class Value(nn.Module):
    """A value model: a copy of the policy's body, and a head of 0."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.body = GPT2LMHeadModel.from_pretrained(folder).transformer
        self.head = nn.Linear(work.SHAPE.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rows_BT: Tensor) -> Tensor:
        """Before each token of a response, [B, N]."""
        return self.head(self.body(rows_BT).last_hidden_state[:, work.PROMPT - 1 : -1])[..., 0]


def log_probs(policy: GPT2LMHeadModel, rows_BT: Tensor) -> Tensor:
    """Of the tokens of a response, [B, N]."""
    logits_BNV = policy.lm_head(policy.transformer(rows_BT).last_hidden_state[:, work.PROMPT - 1 : -1])
    targets_BN = rows_BT[:, work.PROMPT :]
    losses = functional.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none")
    return -losses.view(targets_BN.shape)


@torch.inference_mode()
def sample(policy: GPT2LMHeadModel, prompts_BT: Tensor) -> Tensor:
    """Responses [B, N] at temperature 1."""
    cache, tokens, chosen = DynamicCache(config=policy.config), prompts_BT, []
    for _ in range(work.RESPONSE):
        hidden_BTD = policy.transformer(tokens, past_key_values=cache, use_cache=True).last_hidden_state
        logits_BV = policy.lm_head(hidden_BTD[:, -1])
        tokens = torch.multinomial(logits_BV.softmax(-1), 1)
        chosen.append(tokens)
    return torch.cat(chosen, 1)


def advantages_and_returns(rewards_BN: Tensor, values_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016), whitened, and the returns."""
    following_BN = functional.pad(values_BN[:, 1:], (0, 1))
    errors_BN = rewards_BN + work.DISCOUNT * following_BN - values_BN
    advantage_B, found = torch.zeros(len(errors_BN)), []
    for error_B in errors_BN.flip(1).unbind(1):
        advantage_B = error_B + work.DISCOUNT * work.LAMBDA * advantage_B
        found.append(advantage_B)
    advantages_BN = torch.stack(found, 1).flip(1)
    centred_BN = advantages_BN - advantages_BN.mean()
    return centred_BN / (centred_BN.square().mean() + 1e-8).sqrt(), advantages_BN + values_BN


def prepare(_: str, folder: Path, threads: int) -> tuple[Callable[[], None], Callable[[], list[float]]]:
    """A call that does an iteration; and the losses of the policy and the value model so far."""
    torch_model(work.SHAPE, folder, threads)
    policy, reference = (GPT2LMHeadModel.from_pretrained(folder) for _ in range(2))
    value, numbers, losses, done = Value(folder), Numbers(work.SHAPE.vocabulary), [], 0
    models = (policy, value)
    options = {"lr": work.RATE, "betas": (work.B1, work.B2), "weight_decay": 0.0, "fused": True}
    optimizers = [torch.optim.AdamW(model.parameters(), **options) for model in models]
    batches, given = (torch.from_numpy(tokens) for tokens in (work.prompts(work.RESPONSES), work.answers()))
    epochs, _ = work.UPDATES[work.PPO]

    def update(rows_BT: Tensor, old_BN: Tensor, old_values_BN: Tensor, targets: tuple[Tensor, Tensor]) -> list[float]:
        advantages_BN, returns_BN = targets
        ratio_BN = (log_probs(policy, rows_BT) - old_BN).exp()
        clipped_BN = ratio_BN.clip(1 - work.RATIO_CLIP, 1 + work.RATIO_CLIP)
        policy_loss = -torch.minimum(ratio_BN * advantages_BN, clipped_BN * advantages_BN).mean()
        values_BN = value(rows_BT)
        near_BN = old_values_BN + (values_BN - old_values_BN).clip(-work.VALUE_CLIP, work.VALUE_CLIP)
        errors = [(each - returns_BN).square() for each in (values_BN, near_BN)]
        value_loss = 0.5 * torch.maximum(*errors).mean()
        (policy_loss + work.VALUE_COEFFICIENT * value_loss).backward()
        for model, optimizer in zip(models, optimizers, strict=True):
            nn.utils.clip_grad_norm_(model.parameters(), work.CLIP)
            optimizer.step()
            optimizer.zero_grad()
        return [policy_loss.item(), value_loss.item()]

    def iteration() -> None:
        nonlocal done
        prompts_BT = batches[done % len(batches)]
        sample(policy, prompts_BT)
        answers_BN = given[done % len(given)]
        texts = [[numbers.decode(row) for row in part.tolist()] for part in (prompts_BT, answers_BN)]
        scores_B, rows_BT = torch.tensor(work.reward(*texts)), torch.cat([prompts_BT, answers_BN], 1)
        with torch.inference_mode():
            old_BN, reference_BN = log_probs(policy, rows_BT), log_probs(reference, rows_BT)
            values_BN = value(rows_BT)
            rewards_BN = -work.KL * (old_BN - reference_BN)
            rewards_BN[:, -1] += scores_B
            targets = advantages_and_returns(rewards_BN, values_BN)
        old_BN, values_BN, *targets = (array.clone() for array in (old_BN, values_BN, *targets))  # no inference tensors
        told = [update(rows_BT, old_BN, values_BN, tuple(targets)) for _ in range(epochs)]
        losses.extend(np.mean(told, axis=0).tolist())
        done += 1

    return iteration, lambda: losses
