"""What reports show of PPO, and which fields of its recipe may change between two runs of one workdir."""

from __future__ import annotations

from typing import Any

from lmjax.data.ramp import BatchRamp
from lmjax.notation import decimals, exact, percent, rounded
from lmjax.stages.changes import Kind, Table
from lmjax.stages.shown import TRAINED, Drawn, Shown, Told, one_curve, two_curves

CHANGES: Table = {
    Kind.CONSEQUENTIAL: (
        *("reference", "reward.", "kl.", "mix.", "mix_length"),
        *("ppo.response_tokens", "ppo.temperature", "ppo.group", "ppo.epochs", "ppo.minibatches", "ppo.clip"),
        *("ppo.value_clip", "ppo.value_coefficient", "ppo.discount", "ppo.gae_lambda"),
        *("ppo.ptx_coefficient", "ppo.ptx_rows"),
        *(f"value_optimizer.{name}" for name in ("learning_rate", "schedule.", "b1", "b2", "eps", "weight_decay")),
        *(f"value_optimizer.{name}" for name in ("bias_correction", "parameter_scale", "decay_embeddings")),
        "value_optimizer.clip_norm",
    ),
    Kind.BREAKING: ("ppo.baseline", "ppo.ema_decay", "value_optimizer.name", "value_optimizer.state_dtype"),
}
CHARTS = (
    two_curves("reward", "Reward"),
    two_curves("gold", "Gold reward"),
    Drawn("kl", "KL to the start, nats", (("kl", "training", False), ("validation_kl", "validation", True)), True),
    one_curve("entropy", "Entropy, nats per token", "entropy"),
    one_curve("clip_fraction", "Clipped share of the ratios", "clip_fraction", True),
    one_curve("value_explained", "Variance that the value explains", "value_explained"),
    Drawn(
        "length",
        "Response length, tokens",
        (("response_length", "training", False), ("validation_length", "validation", True)),
        True,
    ),
    Drawn(
        "finished",
        "Responses that end by themselves",
        (("finished", "training", False), ("validation_finished", "validation", True)),
        True,
    ),
    one_curve("kl_coefficient", "KL coefficient", "kl_coefficient", True),
    one_curve("mix", "Loss on pretraining text", "mix_cross_entropy"),
)
TILES = (
    Told("validation_gold", "gold reward", lambda value: decimals(value, 3), "validation"),
    Told("validation_reward", "reward", lambda value: decimals(value, 3), "validation"),
    Told("validation_kl", "KL to the start", rounded, "nats per response"),
    Told("validation_length", "length", rounded, "tokens per response"),
    Told("validation_finished", "ended", percent, "by themselves"),
)
LEARNED = (
    Told("reward", "reward", decimals),
    Told("gold", "gold reward", decimals),
    Told("shaped_reward", "reward as it was learned from", decimals),
    Told("kl", "KL to the start, nats", decimals),
    Told("kl_k1", "KL by k1", decimals),
    Told("kl_k2", "KL by k2", decimals),
    Told("kl_k3", "KL by k3", decimals),
    Told("kl_coefficient", "KL coefficient", rounded),
    Told("entropy", "entropy, nats per token", decimals),
    Told("ratio", "ratio", decimals),
    Told("ratio_variance", "variance of the ratio", rounded),
    Told("clip_fraction", "clipped", percent),
    Told("value_explained", "variance that the value explains", percent),
    Told("response_length", "tokens per response", rounded),
    Told("finished", "ended by themselves", percent),
    Told("policy_loss", "policy loss", rounded),
    Told("value_loss", "value loss", rounded),
    Told("mix_cross_entropy", "loss on pretraining text", decimals),
    Told("sampler_gap", "sampler against full pass", rounded),
)


def _batch(recipe: Any) -> str:
    responses = exact(recipe.dialogue.batch_size * recipe.ppo.group)
    return f"{responses} responses of at most {exact(recipe.ppo.response_tokens)} tokens"


def _seen(recipe: Any, reached: int) -> tuple[int, str]:
    return BatchRamp(recipe.loading).rows_at(reached) * recipe.ppo.group, "responses"


def _left_out(recipe: Any) -> set[str]:
    return {"kl_coefficient"} if recipe.kl.target is None else set()  # it stays what the recipe says


SHOWN = Shown(charts=CHARTS, tiles=TILES, numbers=(*LEARNED, *TRAINED), batch=_batch, seen=_seen, left_out=_left_out)
