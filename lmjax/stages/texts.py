"""Prompts and sampled responses as text."""

from __future__ import annotations

import jax

from lmjax.data.batch import TOKENS
from lmjax.data.dialogue import Prompt, render
from lmjax.data.tokenizer import Tokenizer
from lmjax.rlhf.rollout import Rollout
from lmjax.rlhf_settings import TemplateSettings


def prompt_text(prompt: Prompt, template: TemplateSettings) -> str:
    """A prompt as the policy reads it."""
    return "".join(piece.text for piece in render(prompt.turns, template))


def response_texts(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
    """The text of each response, without its end."""
    tokens, mask = jax.device_get((rollout.rows[TOKENS], rollout.mask))
    responses = tokens[:, -mask.shape[1] :]  # cut on the host: between steps nothing goes to a device unasked
    return [tokenizer.decode(ids[live > 0].tolist()) for ids, live in zip(responses, mask, strict=True)]
