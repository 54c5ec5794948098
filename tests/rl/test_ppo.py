"""PPO: where an iteration starts, what its gradient reduces to, and what cannot change it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmjax.objective.policy import ptx_weights
from lmjax.objective.weighted import Weighted
from lmjax.rl.learner import Learner, by_part
from lmjax.settings import KLSettings, RewardSettings

from .conftest import VOCABULARY, experience_of, first_state, make_learner, models, parameters, ragged_prompts, rolled

SCORES = jnp.asarray([0.5, -1.0, 2.0, 0.3])


def experienced(learner, side="left", scores=SCORES):
    state = first_state(learner)
    rollout = rolled(learner.ppo.response_tokens, learner.ppo.group, side)
    reference = parameters()["reference"]
    make = jax.jit(lambda params, rollout: experience_of(learner, params, reference, rollout, scores))
    return state, rollout, *make(state.params, rollout)


def as_numpy(data, *names):
    return [np.asarray(data[name], np.float64) for name in names]


@pytest.mark.parametrize(
    ("baseline", "side"), [("value", "left"), ("value", "right"), ("value_head", "left"), ("group", "right")]
)
def test_an_iteration_starts_at_ratio_one_and_no_divergence(baseline, side):
    learner = make_learner(baseline=baseline, group=2 if baseline == "group" else 1)
    scores = jnp.concatenate([SCORES, SCORES + 1]) if baseline == "group" else SCORES
    state, _, data, _ = experienced(learner, side, scores)
    half = {name: array[::2] for name, array in data.items()}
    _, metrics = jax.jit(learner.loss)(state.params, half, jax.random.key(3))
    assert float(metrics["ratio"].mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(metrics["ratio_variance"].mean()) < 1e-10
    assert abs(float(metrics["update_kl"].mean())) < 1e-5
    assert float(metrics["clip_fraction"].sum) == 0.0


def test_the_logged_divergence_is_that_of_the_trained_estimator():
    for kind in ("k1", "k3"):
        learner = make_learner(kl=KLSettings(coefficient=0.1, estimator=kind))
        _, rollout, data, metrics = experienced(learner)
        old, reference, mask = as_numpy(data, "old", "reference", "mask")
        apart = (old - reference) * mask
        expected = {"k1": apart, "k2": apart**2 / 2, "k3": (np.exp(-apart) - 1 + apart) * mask}
        for name, per_token in expected.items():
            assert float(metrics[f"kl_{name}"].mean()) == pytest.approx(per_token.sum(1).mean(), rel=1e-4)
        assert float(metrics["kl"].mean()) == float(metrics[f"kl_{kind}"].mean())
        assert float(metrics["sampler_gap"].mean()) < 1e-5
        assert float(metrics["finished"].mean()) == float(rollout.finished.mean())


def shaped(scores, finished, penalty=1.0):
    return np.asarray(scores, np.float64) - penalty * ~np.asarray(finished)


def test_one_token_with_lambda_one_is_reinforce_with_a_baseline():
    learner = make_learner(response_tokens=1, gae_lambda=1.0, discount=1.0, value_coefficient=1e-9)
    state, rollout, data, _ = experienced(learner)
    old, reference, values = as_numpy(data, "old", "reference", "old_values")
    assert rollout.mask.all()
    gain = shaped(SCORES, rollout.finished) - 0.1 * (old - reference)[:, 0] - values[:, 0]
    gain = (gain - gain.mean()) / np.sqrt(gain.var() + 1e-8)

    def reinforce(policy):
        model, _ = models()
        logits = model.logits(policy, rollout.rows)[:, -2, : VOCABULARY.size] / learner.ppo.temperature
        log_p = jax.nn.log_softmax(logits)[jnp.arange(4), rollout.responses[:, 0]]
        return -(log_p * gain).sum()

    got = jax.jit(jax.grad(lambda params: learner.loss(params, data, None)[0].sum))(state.params)["policy"]
    expected = jax.jit(jax.grad(reinforce))(state.params["policy"])
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest), got, expected)


def test_without_clipping_and_in_one_epoch_it_is_the_vanilla_policy_gradient():
    learner = make_learner(clip=None, minibatches=1, value_coefficient=1e-9)
    state, rollout, data, _ = experienced(learner)
    old, reference, values, mask = as_numpy(data, "old", "reference", "old_values", "mask")
    advantages = np.zeros_like(mask)
    for row in range(4):
        n, later, next_value = int(mask[row].sum()), 0.0, 0.0
        for t in reversed(range(n)):
            reward = -0.1 * (old - reference)[row, t]
            reward += shaped(SCORES, rollout.finished)[row] if t == n - 1 else 0.0
            later = reward + next_value - values[row, t] + 0.95 * later
            next_value = values[row, t]
            advantages[row, t] = later
    flat = advantages[mask > 0]
    advantages = (advantages - flat.mean()) / np.sqrt(flat.var() + 1e-8) * mask
    np.testing.assert_allclose(data["advantages"], advantages, atol=1e-4)

    def vanilla(policy):
        model, _ = models()
        logits = model.logits(policy, rollout.rows)[:, -7:-1, : VOCABULARY.size] / learner.ppo.temperature
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), rollout.responses[..., None], axis=-1)[..., 0]
        return -(log_p * advantages).sum()

    got = jax.jit(jax.grad(lambda params: learner.loss(params, data, None)[0].sum))(state.params)["policy"]
    expected = jax.jit(jax.grad(vanilla))(state.params["policy"])
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest), got, expected)


@pytest.mark.parametrize("baseline", ["value", "value_head", "group"])
def test_text_after_end_of_text_changes_no_bit_of_reward_loss_or_gradient(baseline):
    learner = make_learner(baseline=baseline, group=2 if baseline == "group" else 1)
    state = first_state(learner)
    rollout = rolled(learner.ppo.response_tokens, learner.ppo.group, "left")
    tokens = np.array(rollout.rows["tokens"])
    behind = np.zeros(tokens.shape, bool)
    behind[:, -rollout.mask.shape[1] :] = np.asarray(rollout.mask) == 0
    assert behind.any() and not np.asarray(rollout.rows["segments"])[behind].any() and not tokens[behind].any()
    tokens[behind] = np.random.default_rng(0).integers(1, 13, behind.sum())
    other = dataclasses.replace(rollout, rows=rollout.rows | {"tokens": jnp.asarray(tokens)})

    @jax.jit
    def everything(rollout):
        scores = learner.score(parameters()["reward"], rollout)
        data, _ = experience_of(learner, state.params, parameters()["reference"], rollout, scores)
        return scores, jax.value_and_grad(lambda params: learner.loss(params, data, None)[0].sum)(state.params)

    jax.tree.map(np.testing.assert_array_equal, everything(rollout), everything(other))


class ReadsTwice(Learner):
    """A learner whose only update does not spare the pass for the probabilities before it."""

    reads_once = False


@pytest.mark.parametrize("baseline", ["value", "value_head", "group"])
def test_an_only_update_is_the_same_with_and_without_a_pass_of_its_own_before_it(prompts, baseline):
    group = 2 if baseline == "group" else 1
    shaping = RewardSettings(no_eos_penalty=1.0, normalise=True, whiten=baseline != "group")
    once = make_learner(baseline=baseline, group=group, minibatches=1, shaping=shaping)
    twice = ReadsTwice(**{field.name: getattr(once, field.name) for field in dataclasses.fields(once)})
    assert once.reads_once and not make_learner(minibatches=2).reads_once
    assert not dataclasses.replace(once, microbatches=2).reads_once
    frozen = {name: parameters()[name] for name in ("reference", "reward")}
    (one, metrics), (two, others) = (
        jax.jit(learner.iterate)(first_state(learner), frozen, prompts) for learner in (once, twice)
    )
    assert metrics.keys() == others.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, two)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), metrics, others)


@pytest.mark.parametrize("minibatches", [2, 4])
def test_an_update_takes_whole_groups_where_it_can_and_every_row_once_an_epoch(minibatches):
    learner = make_learner(baseline="group", group=2, epochs=3, minibatches=minibatches)
    orders = np.asarray(learner._orders(first_state(learner), 8, together=2)).reshape(3, minibatches, -1)
    assert (np.sort(orders.reshape(3, -1), axis=1) == np.arange(8)).all() and len({str(epoch) for epoch in orders}) == 3
    pairs = orders.reshape(3, -1, 2)
    assert (pairs[..., 0] % 2 == 0).all() and (pairs[..., 1] == pairs[..., 0] + 1).all()


@pytest.mark.parametrize(("minibatches", "group"), [(2, 4), (4, 1)])
def test_groups_that_minibatches_cut_are_read_row_by_row(monkeypatch, minibatches, group):
    """Four responses to each of two prompts: two minibatches take a group each, four take half of one."""
    groups = []
    monkeypatch.setattr(Learner, "loss", lambda self, params, batch, rng, group: groups.append(group) or _zero(params))
    learner = make_learner(baseline="group", group=4, minibatches=minibatches)
    prompts = {name: array[:2] for name, array in ragged_prompts().items()}
    state = first_state(learner)
    rollout = jax.eval_shape(learner.roll, state, prompts)
    scores = jax.ShapeDtypeStruct((8,), jnp.float32)
    jax.eval_shape(learner.learn, state, parameters()["reference"], rollout, scores, prompts)
    assert set(groups) == {group}


def _zero(params):
    total = Weighted(sum(leaf.sum() * 0.0 for leaf in jax.tree.leaves(params)), jnp.float32(1))
    return total, {"update_kl": total}


def test_one_program_is_its_phases_and_keeps_the_average_and_the_coefficient(prompts):
    learner = make_learner(
        epochs=2, ema_decay=0.9, kl=KLSettings(coefficient=0.1, estimator="k3", target=0.001, horizon=40)
    )
    own = parameters()
    frozen = {"reference": own["reference"], "reward": own["reward"]}
    state = first_state(learner)
    whole, metrics = jax.jit(learner.iterate)(state, frozen, prompts)
    rollout = rolled(learner.ppo.response_tokens, 1, "left")
    scores = jax.jit(learner.score)(own["reward"], rollout)
    parts, _ = jax.jit(learner.learn)(state, own["reference"], rollout, scores, prompts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole.params, parts.params)
    assert int(whole.step) == int(state.step) + 1
    assert abs(float(metrics["first_update_kl"])) < 1e-5 < float(metrics["update_kl"].mean())
    jax.tree.map(
        lambda average, old, new: np.testing.assert_allclose(average, 0.9 * old + 0.1 * new, atol=1e-6),
        *(whole.opt_state["average"], own["policy"], whole.params["policy"]),
    )
    assert float(metrics["kl_coefficient"]) == pytest.approx(0.1)  # the one that was used
    assert float(whole.opt_state["kl_coefficient"]) == pytest.approx(0.1 * (1 + 0.2 * 4 / 40))


def test_the_policy_learns_what_the_reward_asks_for():
    free = {"kl": KLSettings(coefficient=0.0), "shaping": RewardSettings(no_eos_penalty=0.0)}  # nothing asks for an end
    learner = make_learner(optax.adam(3e-2), minibatches=1, response_tokens=3, **free)
    wanted = 9
    state, batch = first_state(learner), ragged_prompts(repeat=8)
    roll, learn = jax.jit(learner.roll), jax.jit(learner.learn)
    rewards = []
    for _ in range(25):
        rollout = roll(state, batch)
        scores = ((rollout.responses == wanted) * rollout.mask).sum(axis=1)
        rewards.append(float(scores.mean()))
        state, _ = learn(state, parameters()["reference"], rollout, scores, batch)
    assert rewards[0] < 0.6 and np.mean(rewards[-3:]) > 2.4  # of 3


def test_mixed_in_pretraining_adds_its_gradient_per_token():
    rng = np.random.default_rng(4)
    rows = {"tokens": rng.integers(4, 13, (4, 10)), "targets": rng.integers(4, 13, (4, 10))}
    rows |= {"positions": np.tile(np.arange(10), (4, 1)), "segments": np.ones((4, 10))}
    rows = {name: jnp.asarray(array, jnp.int32) for name, array in rows.items()}
    rows["weights"] = jnp.asarray(rng.random((4, 10)) < 0.5, jnp.float32)
    plain, mixed = make_learner(), make_learner(ptx_coefficient=5.0)
    state, _, data, _ = experienced(plain)
    fields = {f"mix_{name}": array for name, array in rows.items()}
    fields["mix_weights"] = ptx_weights(rows["weights"], data["mask"], 5.0)

    def entropy(policy):
        model, _ = models()
        log_p = jax.nn.log_softmax(model.logits(policy, rows)[..., : VOCABULARY.size])
        chosen = jnp.take_along_axis(log_p, rows["targets"][..., None], axis=-1)[..., 0]
        return -(chosen * rows["weights"]).sum() / rows["weights"].sum()

    def mean_loss(learner, data):
        def mean(params):
            loss, _ = learner.loss(params, data, None)
            return loss.sum / loss.weight

        return jax.jit(jax.grad(mean))(state.params)["policy"]

    added = jax.tree.map(jnp.subtract, mean_loss(mixed, data | fields), mean_loss(plain, data))
    expected = jax.jit(jax.grad(entropy))(state.params["policy"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 5.0 * b, rtol=1e-3, atol=1e-5), added, expected)


def test_microbatches_give_the_same_updates(prompts):
    rollout, states = rolled(6, 1, "left"), []
    for microbatches in (1, 2):
        learner = make_learner(microbatches=microbatches)
        learn = jax.jit(learner.learn)
        states.append(learn(first_state(learner), parameters()["reference"], rollout, SCORES, prompts)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), states[0].params, states[1].params)


def test_scores_are_normalised_clipped_and_charged_for_a_missing_end():
    learner = make_learner(shaping=RewardSettings(no_eos_penalty=2.0, clip=1.0, normalise=True))
    scores = jnp.asarray([1.0, 2.0, 3.0, 10.0])
    got = learner._shaped(scores, jnp.asarray([True, False, True, True]))
    white = (np.array([1, 2, 3, 10]) - 4) / np.std([1, 2, 3, 10])
    np.testing.assert_allclose(got, np.clip(white, -1, 1) - [0, 2, 0, 0], atol=1e-5)


def test_a_part_of_the_parameters_is_updated_by_its_own_optimizer():
    params = {"policy": jnp.ones(2), "value": jnp.ones(3)}
    optimizer = by_part({"policy": optax.sgd(0.1), "value": optax.sgd(1.0)})
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["policy"], -0.1)
    np.testing.assert_allclose(updates["value"], -1.0)
