"""Prompts and sampled responses as text, and the continuations that an evaluation records."""

from __future__ import annotations

from typing import Any

import jax

from lmjax.data.batch import TOKENS
from lmjax.data.dialogue import Prompt, Turn, render
from lmjax.data.tokenizer import Tokenizer
from lmjax.generate.decode import generate
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.language_model import LanguageModel
from lmjax.rlhf.rollout import Rollout
from lmjax.rlhf_settings import TemplateSettings
from lmjax.settings import EvaluationSettings
from lmjax.training.record import Recorder


def prompt_text(prompt: Prompt, template: TemplateSettings) -> str:
    """A prompt as the policy reads it: where it was too long, what is left of it."""
    return prompt.seen or "".join(piece.text for piece in render(prompt.turns, template))


def response_texts(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
    """The text of each response, without its end."""
    tokens, mask = jax.device_get((rollout.rows[TOKENS], rollout.mask))
    responses = tokens[:, -mask.shape[1] :]  # cut on the host: between steps nothing goes to a device unasked
    return [tokenizer.decode(ids[live > 0].tolist()) for ids, live in zip(responses, mask, strict=True)]


def write_samples(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    settings: EvaluationSettings,
    template: TemplateSettings,
    recorder: Recorder,
    done: int,
) -> None:
    """Records an answer to each of the evaluation's prompts, which are what a user says."""
    if settings.prompts:
        prompts = [prompt_text(Prompt((Turn("user", text),)), template) for text in settings.prompts]
        sampling = SamplingSettings(max_tokens=settings.sample_tokens, temperature=settings.temperature)
        for prompt, answer in zip(prompts, generate(model, params, tokenizer, prompts, sampling), strict=True):
            recorder.write(done, {"prompt": prompt, "sample": answer.text})
