"""Prompts and sampled responses as text, and the continuations that an evaluation records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from lmjax.data.batch import TOKENS
from lmjax.data.conversations import END, Prompt, Turn, render
from lmjax.generate.decode import check_prompts, generate
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.language_model import LanguageModel
from lmjax.rl.rollout import Rollout
from lmjax.settings import EvaluationSettings, TemplateSettings
from lmjax.tokenizers.tokenizer import Tokenizer
from lmjax.training.stop import StopRequest


class EvaluationLines:
    """What an evaluation adds to the record beside its numbers: samples and tables."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []

    def write(self, step: int, values: dict[str, Any]) -> None:
        self.written.append(values)


def prompt_text(prompt: Prompt, template: TemplateSettings) -> str:
    """A prompt as the policy reads it: where it was too long, what is left of it."""
    return prompt.seen or "".join(piece.text for piece in render(prompt.turns, template)).replace(END, "")


def response_texts(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
    """The text of each response, without its end."""
    tokens, mask = jax.device_get((rollout.rows[TOKENS], rollout.mask))
    responses = tokens[:, -mask.shape[1] :]  # cut on the host: between steps nothing goes to a device unasked
    return [tokenizer.decode(ids[live > 0].tolist()) for ids, live in zip(responses, mask, strict=True)]


def samples_asked(
    settings: EvaluationSettings, template: TemplateSettings, tokenizer: Tokenizer, context: int
) -> list[str]:
    """The evaluation's prompts, which are what a user says, as the policy reads them.

    Raises UserError where one of them fills the model's context.
    """
    prompts = [prompt_text(Prompt((Turn("user", text),)), template) for text in settings.prompts]
    check_prompts("evaluation.prompts", prompts, tokenizer, context)
    return prompts


def write_samples(
    model: LanguageModel,
    params: Any,
    tokenizer: Tokenizer,
    settings: EvaluationSettings,
    prompts: Sequence[str],
    lines: EvaluationLines,
    done: int,
    stop: StopRequest,
) -> None:
    """Records a continuation of each prompt. Raises Interrupted where a stop is asked for."""
    if not prompts:  # models that train together continue none
        return
    sampling = SamplingSettings(max_tokens=settings.sample_tokens, temperature=settings.temperature)
    for prompt, answer in zip(
        prompts, generate(model, params, tokenizer, prompts, sampling, between=stop.check), strict=True
    ):
        lines.write(done, {"prompt": prompt, "sample": answer.text})
