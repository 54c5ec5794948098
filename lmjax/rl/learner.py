"""One iteration of PPO (or GRPO): sample, score, penalise, estimate advantages, update; each phase a pure function.

In: the training state, the frozen models and a batch of prompts, for PPO-ptx with rows of pretraining text. Out: the
state after all updates, and metrics. `iterate` is one program of all phases; where the reward is a Python function,
`roll` and `learn` are two programs, and the function is called between them.

The state's `step` counts iterations. Its `params` are those of the "policy" and, unless the baseline is the group,
of the "value" model or head; its `opt_state` holds an optimizer state for each, the exponential moving "average" of the
policy's weights and the "kl_coefficient".
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lmjax.data.batch import LANGUAGE_FIELDS, POSITIONS, SEGMENTS, TARGETS, TOKENS, WEIGHTS, Batch
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.objective.advantage import (
    KLEstimator,
    adapted_coefficient,
    advantages_and_returns,
    estimate_kl,
    penalised_rewards,
    whiten,
)
from lmjax.objective.cross_entropy import cross_entropy
from lmjax.objective.policy import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    group_advantages,
    grpo_loss,
    masked,
    ptx_weights,
)
from lmjax.objective.weighted import Weighted, with_auxiliary
from lmjax.optim.schedules import Schedule
from lmjax.optim.train_state import TrainState
from lmjax.rl.rollout import Readings, Rollout, Vocabulary, read_responses, sample, values_before
from lmjax.settings import KLSettings, PPOSettings, RewardSettings
from lmjax.training.phases import phase
from lmjax.training.step import make_train_step

POLICY, VALUE, AVERAGE, COEFFICIENT = "policy", "value", "average", "kl_coefficient"
MASK, OLD, OLD_VALUES, ADVANTAGES, RETURNS, REFERENCE = (
    "mask",
    "old",
    "old_values",
    "advantages",
    "returns",
    "reference",
)
SCORES = "scores"  # a batch field, of rewards that no model gives
SAMPLED, FINISHED = "sampled", "finished"  # of `Rollout`
MIX = "mix_"  # prefix of the batch fields of pretraining rows (PPO-ptx)

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Learner:
    """The models, settings and optimizers of a run; arrays are arguments of its methods."""

    policy: LanguageModel
    value: ScalarModel
    reward: ScalarModel | None
    vocabulary: Vocabulary
    ppo: PPOSettings
    kl: KLSettings
    shaping: RewardSettings
    optimizers: dict[str, optax.GradientTransformation]
    schedule: Schedule | None = None
    microbatches: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for models that see the tokens they predict, or whose value they predict."""
        self.policy.require_decoder("a policy")
        if self.ppo.baseline == "value":
            self.value.language_model.require_decoder("a value model")

    @property
    def updates(self) -> int:
        """Optimizer steps per iteration."""
        return self.ppo.epochs * self.ppo.minibatches

    @property
    def reads_once(self) -> bool:
        """Whether the trained models' readings before the update are those of the update itself.

        So it is where one update takes all responses at once, without microbatches: their log-probabilities and values
        need no pass of their own.
        """
        return self.updates == 1 and self.microbatches == 1

    @property
    def estimator(self) -> KLEstimator:
        """The estimator of the divergence that is penalised and logged; GRPO's is always k3."""
        return "k3" if self.ppo.baseline == "group" else self.kl.estimator

    @property
    def _clip(self) -> float:
        return math.inf if self.ppo.clip is None else self.ppo.clip

    def create(self, policy: Any, value: Any) -> TrainState:
        """The state before the first iteration; `value` is a value model's parameters, a head's, or None."""
        params = {POLICY: policy} | ({} if value is None else {VALUE: value})
        states = {name: self.optimizers[name].init(params[name]) for name in params}
        ema = {} if self.ppo.ema_decay is None else {AVERAGE: jax.tree.map(jnp.copy, policy)}
        coefficient = {COEFFICIENT: jnp.float32(self.kl.coefficient)}
        return TrainState(jnp.zeros((), jnp.int32), params, states | ema | coefficient)

    def iterate(self, state: TrainState, frozen: dict[str, Any], batch: Batch) -> tuple[TrainState, Metrics]:
        """All phases; `frozen` holds the parameters of the "reference" policy and of the "reward" model.

        Without a reward model the batch has the "scores" [B], as of a Python function that has seen the responses.
        """
        with phase("rollout"):
            rollout = self.roll(state, batch)
        with phase("scoring"):
            scores_B = batch[SCORES] if self.reward is None else self.score(frozen["reward"], rollout)
        return self.learn(state, frozen["reference"], rollout, scores_B, batch)

    def roll(self, state: TrainState, batch: Batch) -> Rollout:
        """Samples `group` responses to each prompt; those to one prompt are consecutive."""
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        ppo, policy = self.ppo, state.params[POLICY]
        options: Any = {"tokens": ppo.response_tokens, "temperature": ppo.temperature, "group": ppo.group}
        return sample(self.policy, policy, batch, key, self.vocabulary, **options)

    def score(self, reward_params: Any, rollout: Rollout) -> jax.Array:
        """The reward model's score of each response, [B]: the scalar at its last token."""
        assert self.reward is not None
        return self.reward.scores(reward_params, rollout.rows)

    def divergence(self, state: TrainState, reference: Any, rollout: Rollout) -> jax.Array:
        """The policy's divergence from the reference policy in each response, [B] nats, by the trained estimator."""
        mask_BN, rows = rollout.mask, rollout.rows
        policies = ({POLICY: state.params[POLICY]}, {POLICY: reference})
        policy_BN, reference_BN = (
            self._read(params, rows, mask_BN.shape[1], self.ppo.group).log_probs for params in policies
        )
        return jnp.where(mask_BN > 0, estimate_kl(policy_BN, reference_BN, self.estimator), 0.0).sum(axis=1)

    def learn(
        self, state: TrainState, reference: Any, rollout: Rollout, scores_B: jax.Array, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """All updates of an iteration, from scored responses."""
        coefficient = state.opt_state[COEFFICIENT]
        metrics: Metrics = {}
        with phase("reading"):
            data = self.scored(reference, rollout, scores_B, coefficient)
            if not self.reads_once:
                readings = self._read(state.params, data, rollout.mask.shape[1], self.ppo.group)
                data, metrics = self.experience(data, readings)
        with phase("updates"):
            inner, updates = self._update(state, data, batch)
        metrics |= updates
        opt_state = dict(inner.opt_state)
        if self.ppo.ema_decay is not None:
            ema_decay = self.ppo.ema_decay
            opt_state[AVERAGE] = optax.incremental_update(
                inner.params[POLICY], state.opt_state[AVERAGE], 1.0 - ema_decay
            )
        if self.kl.target is not None:
            episodes = scores_B.shape[0]
            coefficient = adapted_coefficient(
                coefficient, metrics["kl"].mean(), target=self.kl.target, episodes=episodes, horizon=self.kl.horizon
            )
        opt_state[COEFFICIENT] = coefficient
        metrics |= {"kl_coefficient": state.opt_state[COEFFICIENT]}
        return TrainState(state.step + 1, inner.params, opt_state), metrics

    def scored(self, reference: Any, rollout: Rollout, scores_B: jax.Array, coefficient: jax.Array) -> Batch:
        """What is known of the responses before the trained models read them; see `experience`."""
        rows, mask_BN = rollout.rows, rollout.mask
        fields = {MASK: mask_BN, SAMPLED: rollout.sampled, FINISHED: rollout.finished, SCORES: scores_B}
        fields[REFERENCE] = self._read({POLICY: reference}, rows, mask_BN.shape[1], self.ppo.group).log_probs
        return rows | fields | {COEFFICIENT: coefficient}

    def experience(self, scored: Batch, before: Readings) -> tuple[Batch, dict[str, Weighted]]:
        """The arrays of the updates, [B, P + N] and [B, N], and metrics of the responses.

        `before` are the trained models' readings before the first update; no gradient passes through them.
        """
        before = jax.lax.stop_gradient(before)
        old_BN, values_BN, mask_BN, scores_B = before.log_probs, before.values, scored[MASK], scored[SCORES]
        shaped_B = self._shaped(scores_B, scored[FINISHED])
        kl_BN = estimate_kl(old_BN, scored[REFERENCE], self.estimator)
        data = {name: scored[name] for name in (TOKENS, POSITIONS, SEGMENTS, MASK, REFERENCE)} | {OLD: old_BN}
        metrics: dict[str, Weighted] = {}
        if self.ppo.baseline == "group":
            advantages_B1 = group_advantages(shaped_B, self.ppo.group)[:, None]
            data |= {ADVANTAGES: jnp.broadcast_to(advantages_B1, mask_BN.shape)}
        else:
            rewards_BN = penalised_rewards(shaped_B, kl_BN, mask_BN, scored[COEFFICIENT])
            if self.shaping.whiten:
                rewards_BN = whiten(rewards_BN, mask_BN, centre=False)
            advantages_BN, returns_BN = advantages_and_returns(
                rewards_BN, values_BN, mask_BN, discount=self.ppo.discount, gae_lambda=self.ppo.gae_lambda
            )
            whitened_BN = whiten(advantages_BN, mask_BN, centre=True)
            data |= {ADVANTAGES: whitened_BN, RETURNS: returns_BN, OLD_VALUES: values_BN}
            metrics = {"value_explained": _one(explained_variance(values_BN, returns_BN, mask_BN))}
        per_response = {
            "reward": scores_B,
            "shaped_reward": shaped_B,
            "response_length": mask_BN.sum(axis=1),
            "finished": scored[FINISHED].astype(jnp.float32),
        }
        for name, kind in (("kl", self.estimator), ("kl_k1", "k1"), ("kl_k2", "k2"), ("kl_k3", "k3")):
            per_token_BN = estimate_kl(old_BN, scored[REFERENCE], kind)
            per_response[name] = jnp.where(mask_BN > 0, per_token_BN, 0.0).sum(axis=1)
        metrics |= {name: masked(value_B, jnp.ones_like(scores_B)) for name, value_B in per_response.items()}
        metrics |= {"entropy": masked(before.entropy, mask_BN)}
        metrics |= {"sampler_gap": _one(jnp.where(mask_BN > 0, jnp.abs(old_BN - scored[SAMPLED]), 0.0).max())}
        return data, metrics

    def loss(
        self, params: Any, batch: Batch, rng: jax.Array | None, group: int = 1
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss of a minibatch, for `make_train_step`. `rng` is not used: there is no dropout.

        Each `group` of consecutive rows has one prompt.
        """
        return self._loss(params, batch, self._read(params, batch, batch[MASK].shape[1], group))

    def only_loss(self, params: Any, batch: Batch, rng: jax.Array | None) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss of an iteration's only update, from `scored` responses, and the metrics of `experience`."""
        readings = self._read(params, batch, batch[MASK].shape[1], self.ppo.group)
        data, metrics = self.experience(batch, readings)
        loss, of_loss = self._loss(params, batch | data, readings)
        return loss, metrics | of_loss

    def _loss(self, params: Any, batch: Batch, readings: Readings) -> tuple[Weighted, dict[str, Weighted]]:
        mask_BN = batch[MASK]
        log_probs_BN, _, values_BN, aux = readings
        if self.ppo.baseline == "group":
            loss, metrics = grpo_loss(
                log_probs_BN,
                batch[OLD],
                batch[REFERENCE],
                batch[ADVANTAGES][:, 0],
                mask_BN,
                clip=self._clip,
                kl_coefficient=self.kl.coefficient,
            )
            return with_auxiliary(loss, metrics, aux, mask_BN.max(axis=1))
        loss, metrics = clipped_policy_loss(log_probs_BN, batch[OLD], batch[ADVANTAGES], mask_BN, clip=self._clip)
        value_loss, value_metrics = clipped_value_loss(
            values_BN, batch[OLD_VALUES], batch[RETURNS], mask_BN, clip=self.ppo.value_clip
        )
        metrics |= value_metrics | {"policy_loss": loss, "value_loss": value_loss}
        loss = Weighted(loss.sum + self.ppo.value_coefficient * value_loss.sum, loss.weight)
        if self.ppo.ptx_coefficient:
            ptx_rows = {name: batch[MIX + name] for name in LANGUAGE_FIELDS}
            ptx_loss, ptx_metrics = self._ptx_loss(params, ptx_rows)
            loss = Weighted(loss.sum + ptx_loss.sum, loss.weight)
            metrics |= ptx_metrics
        return with_auxiliary(loss, metrics, aux, mask_BN)

    def _ptx_loss(self, params: Any, rows: Batch) -> tuple[Weighted, dict[str, Weighted]]:
        """The cross-entropy of pretraining rows under weights from `ptx_weights`; logged per token."""
        hidden_BTD, aux = self.policy.hidden(params[POLICY], rows)
        loss, _ = cross_entropy(
            hidden_BTD,
            self.policy.head(params[POLICY]),
            rows[TARGETS],
            rows[WEIGHTS],
            chunking=self.policy.chunking,
            valid_vocab=self.vocabulary.size,
        )
        aux = {f"mix_{name}": pair for name, pair in aux.items()}
        return with_auxiliary(loss, {"mix_cross_entropy": loss}, aux, rows[WEIGHTS])

    def _read(self, params: Any, rows: Batch, tokens: int, group: int = 1) -> Readings:
        """Evaluates the policy, and the value model or head if `params` hold one; a group baseline has no values."""
        head = params.get(VALUE) if self.ppo.baseline == "value_head" else None
        readings = read_responses(
            self.policy, params[POLICY], rows, tokens, self.vocabulary, self.ppo.temperature, head, group
        )
        if self.ppo.baseline == "value" and VALUE in params:
            values_BN, aux = values_before(self.value, params[VALUE], rows, tokens)
            named = {f"value_{name}": pair for name, pair in aux.items()}
            return readings._replace(values=values_BN, aux=readings.aux | named)
        return readings

    def _shaped(self, scores_B: jax.Array, finished_B: jax.Array) -> jax.Array:
        shaping = self.shaping
        if shaping.normalise:
            scores_B = whiten(scores_B[:, None], jnp.ones_like(scores_B)[:, None], centre=True)[:, 0]
        if shaping.clip is not None:
            scores_B = jnp.clip(scores_B, -shaping.clip, shaping.clip)
        return jnp.where(finished_B, scores_B, scores_B - shaping.no_eos_penalty)

    def _update(self, state: TrainState, data: Batch, batch: Batch) -> tuple[TrainState, Metrics]:
        """The minibatch updates; every epoch permutes the groups anew, or the rows, where minibatches cut groups."""
        names, rows = list(state.params), len(data[MASK])
        together = self.ppo.group if rows // self.ppo.group % self.ppo.minibatches == 0 else 1
        loss = functools.partial(self.loss, group=together if self.microbatches == 1 else 1)
        ptx = {name: array for name, array in batch.items() if name.startswith(MIX)}
        ptx = {name: x.reshape(self.updates, x.shape[0] // self.updates, *x.shape[1:]) for name, x in ptx.items()}
        step = make_train_step(
            self.only_loss if self.reads_once else loss,
            by_part({name: self.optimizers[name] for name in names}),
            microbatches=self.microbatches,
            seed=self.seed,
            schedule=self.schedule,
        )

        def update(inner: TrainState, at: tuple[jax.Array | None, Batch]) -> tuple[TrainState, Metrics]:
            order_M, ptx_rows = at
            minibatch = data if order_M is None else {name: array[order_M] for name, array in data.items()}
            if ptx_rows:
                minibatch = minibatch | ptx_rows
                weights = ptx_weights(ptx_rows[MIX + WEIGHTS], minibatch[MASK], self.ppo.ptx_coefficient)
                minibatch[MIX + WEIGHTS] = weights
            return step(inner, minibatch)

        opt_state = {name: state.opt_state[name] for name in names}
        inner = TrainState(state.step * self.updates, state.params, opt_state)
        inner, stacked = jax.lax.scan(update, inner, (self._orders(state, rows, together), ptx), self.updates)
        return inner, _over_updates(stacked)

    def _orders(self, state: TrainState, rows: int, together: int) -> jax.Array | None:
        """The rows of each update, [U, M], of which so many stay together; None where one update takes all of them."""
        if self.reads_once:
            return None
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), state.step), 1)
        keys = [jax.random.fold_in(key, epoch) for epoch in range(self.ppo.epochs)]
        groups_EG = jnp.stack([jax.random.permutation(key, rows // together) for key in keys])
        order_EGK = groups_EG[:, :, None] * together + jnp.arange(together)[None, None]
        return order_EGK.reshape(self.updates, rows // self.ppo.minibatches)


def by_part(optimizers: dict[str, optax.GradientTransformation]) -> optax.GradientTransformationExtraArgs:
    """One optimizer for each top-level entry of the parameters; the state is a dict of their states."""
    full = {name: optax.with_extra_args_support(optimizer) for name, optimizer in optimizers.items()}

    def init(params: Any) -> Any:
        return {name: optimizer.init(params[name]) for name, optimizer in full.items()}

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        assert params is not None
        out = {name: o.update(updates[name], state[name], params[name], **extra) for name, o in full.items()}
        return {name: pair[0] for name, pair in out.items()}, {name: pair[1] for name, pair in out.items()}

    return optax.GradientTransformationExtraArgs(init, update)


def _one(value: jax.Array) -> Weighted:
    """A figure that is no mean over rows, as the metrics of a loss are."""
    return Weighted(value, jnp.ones_like(value))


def _over_updates(stacked: Metrics) -> Metrics:
    """The metrics of an iteration: pairs are summed over updates, scalars averaged, skipped updates counted."""
    out: Metrics = {}
    for name, value in stacked.items():
        if isinstance(value, Weighted):
            out[name] = Weighted(value.sum.sum(), value.weight.sum())
        else:
            out[name] = value.sum() if name == "skipped" else value.mean()
    first = stacked["update_kl"]
    return out | {"first_update_kl": Weighted(first.sum[0], first.weight[0]).mean()}
