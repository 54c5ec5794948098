"""The auxiliary losses of a policy and of a value model are part of PPO's and GRPO's loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.model.outputs import Outputs, Weighted

from .conftest import SETTINGS, experience_of, first_state, make_learner, models, rolled


class Constant(LanguageModel):
    """An auxiliary loss whose mean over any tokens is 0.5."""

    def hidden(self, params, batch, rng=None):
        hidden_BTD, aux = super().hidden(params, batch, rng)
        real_B = (batch["segments"] != 0).sum(1).astype(jnp.float32)
        return Outputs(hidden_BTD, aux | {"half": Weighted(0.5 * real_B, real_B)})


@pytest.mark.parametrize(("baseline", "added"), [("value", 1.0), ("value_head", 0.5), ("group", 0.5)])
def test_auxiliary_losses_are_added_to_the_mean_of_the_loss(baseline, added):
    learner = make_learner(baseline=baseline, group=2 if baseline == "group" else 1)
    state, rollout = first_state(learner), rolled(learner.ppo.response_tokens, learner.ppo.group, "left")
    scores = jnp.arange(rollout.mask.shape[0], dtype=jnp.float32)
    experience = jax.jit(lambda p: experience_of(learner, p, p["policy"], rollout, scores))
    data, _ = experience(state.params)
    model = Constant(SETTINGS)
    other = dataclasses.replace(learner, policy=model, value=ScalarModel(model))
    loss, _ = jax.jit(lambda p, d: learner.loss(p, d, None))(state.params, data)
    larger, metrics = jax.jit(lambda p, d: other.loss(p, d, None))(state.params, data)
    assert float(larger.mean() - loss.mean()) == pytest.approx(added, rel=1e-4)
    assert float(larger.weight) == float(loss.weight) and float(metrics["half"].mean()) == pytest.approx(0.5)
    assert ("value_half" in metrics) == (baseline == "value")


def test_the_auxiliary_loss_of_mixed_in_text_counts_by_its_coefficient():
    learner = make_learner(ptx_coefficient=5.0)
    rng = np.random.default_rng(4)
    rows = {name: rng.integers(4, 13, (4, 10)).astype(np.int32) for name in ("tokens", "targets")}
    rows |= {"positions": np.tile(np.arange(10, dtype=np.int32), (4, 1)), "segments": np.ones((4, 10), np.int32)}
    rows["weights"] = np.full((4, 10), 5.0 / 40, np.float32)  # for a loss that weighs 1
    policy, _ = models()
    params = first_state(learner).params
    results = [
        dataclasses.replace(learner, policy=model)._ptx_loss(params, rows) for model in (policy, Constant(SETTINGS))
    ]
    (loss, _), (larger, metrics) = results
    assert float(larger.sum - loss.sum) == pytest.approx(5.0 * 0.5, rel=1e-4)
    assert float(metrics["mix_half"].mean()) == pytest.approx(0.5)
