"""Losses over ranked answers, from tokens to numbers: each answer read alone and unpadded, the rest loops in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.data.conversation_rows import AnswerRows
from lmjax.data.conversations import Encoded
from lmjax.model.heads import ScalarModel
from lmjax.model.language_model import LanguageModel
from lmjax.objective.preferences import answer_log_probs, preference_loss, reward_loss
from lmjax.settings import AttentionSettings, ModelSettings

VOCAB = 13  # of the 16 rows of the table
MODEL = LanguageModel(
    ModelSettings(layers=1, width=16, context=12, vocab_size=16, attention=AttentionSettings(heads=2), init_std=0.4)
)
RANKS_BK = np.array([[2, 0, 1], [1, 0, -1], [0, 0, 1], [0, 0, -1]])  # -1: no answer; ties in the last two
LENGTHS = [
    [(3, 2), (3, 6), (4, 1)],
    [(6, 3), (1, 4)],
    [(1, 4), (1, 8), (3, 2)],
    [(2, 3), (2, 7)],
]  # prompt, answer: 5 or 9


@functools.cache
def conversations():
    """Of each prompt, its answers as tokens, and which of them are the answer's."""
    rng = np.random.default_rng(0)
    return [
        [Encoded(rng.integers(0, VOCAB, p + a).astype(np.int32), np.arange(p + a) >= p) for p, a in lengths]
        for lengths in LENGTHS
    ]


@functools.cache
def batch():
    rows = AnswerRows(conversations(), RANKS_BK.astype(np.int32), length=12)
    return {name: jnp.asarray(array) for name, array in rows.batch(np.arange(4)).items()}


@functools.cache
def parameters(seed=0):
    return jax.jit(ScalarModel(MODEL).init)(jax.random.key(seed))


def alone(read, params, encoded):
    """What `read` makes of one conversation, in float64."""
    ids = jnp.asarray(encoded.ids)[None]
    row = {"tokens": ids, "positions": jnp.arange(ids.shape[1])[None], "segments": jnp.ones_like(ids)}
    return np.asarray(jax.jit(read)(params, row)[0], np.float64)


@functools.cache
def plain_scores():
    return [[alone(ScalarModel(MODEL).values, parameters(), x)[-1] for x in own] for own in conversations()]


@functools.cache
def plain_log_probs(seed):
    """The sum of log p over each answer's tokens, by a softmax over the real entries of the vocabulary."""

    def of_answer(encoded):
        logits_TV = alone(MODEL.logits, parameters(seed)["trunk"], encoded)[:-1, :VOCAB]
        log_p_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
        log_p_T = log_p_TV[np.arange(len(log_p_TV)), encoded.ids[1:]]
        return log_p_T[encoded.is_answer[1:]].sum()

    return [[of_answer(encoded) for encoded in own] for own in conversations()]


def pairwise(scores, loss):
    """The sum over prompts of the loss of their ordered pairs over C(K, 2), and how many prompts have such pairs."""
    total, prompts = 0.0, 0
    for own, ranks in zip(scores, RANKS_BK, strict=True):
        K = len(own)
        pairs = [(i, j) for i in range(K) for j in range(K) if ranks[i] < ranks[j]]
        total += sum(loss(own[i], own[j], int(ranks[j] - ranks[i])) for i, j in pairs) / math.comb(K, 2)
        prompts += bool(pairs)
    return total, prompts


def smoothed(x, smoothing):
    """-log sigmoid(x) if the label is right, -log sigmoid(-x) if it is wrong."""
    return (1 - smoothing) * math.log1p(math.exp(-x)) + smoothing * math.log1p(math.exp(x))


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("centring", [0.0, 0.3])
def test_a_reward_models_loss_asks_for_a_margin_per_step_of_rank(margin, smoothing, centring):
    loss_fn = reward_loss(ScalarModel(MODEL), label_smoothing=smoothing, margin=margin, centring=centring)
    loss, _ = jax.jit(loss_fn)(parameters(), batch(), None)

    def of_pair(better, worse, steps):
        return smoothed(better - worse - margin * steps, smoothing) + centring * (better + worse) ** 2

    total, prompts = pairwise(plain_scores(), of_pair)
    assert float(loss.sum) == pytest.approx(total, rel=1e-5)
    assert float(loss.weight) == prompts == 3  # the last one's answers are tied


def test_the_log_probability_of_an_answer_is_that_of_its_tokens_and_not_of_its_prompt():
    params = parameters()["trunk"]
    got = np.asarray(answer_log_probs(MODEL, params, batch(), valid_vocab=VOCAB)[0])
    for row, own in enumerate(plain_log_probs(0)):
        np.testing.assert_allclose(got[row, : len(own)], own, rtol=1e-5)
        assert not got[row, len(own) :].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_compares_how_far_answers_have_moved_from_the_reference(smoothing):
    params, reference = parameters()["trunk"], parameters(seed=1)["trunk"]
    loss_fn = preference_loss(MODEL, reference, beta=0.3, label_smoothing=smoothing, valid_vocab=VOCAB)
    loss, metrics = jax.jit(loss_fn)(params, batch(), None)
    both = zip(plain_log_probs(0), plain_log_probs(1), strict=True)
    rewards = [0.3 * np.subtract(own, others) for own, others in both]
    total, prompts = pairwise(rewards, lambda better, worse, _: smoothed(better - worse, smoothing))
    assert float(loss.sum) == pytest.approx(total, rel=1e-5)
    assert float(loss.weight) == prompts == 3
    pairs = [(1, 2, 0), (1, 0, 0), (2, 0, 0), (1, 0, 1), (0, 2, 2), (1, 2, 2)]  # better, worse, prompt
    margins = [rewards[row][better] - rewards[row][worse] for better, worse, row in pairs]
    assert float(metrics["margin"].mean()) == pytest.approx(np.mean(margins), rel=1e-4)
    assert float(metrics["accuracy"].mean()) == pytest.approx(np.mean(np.array(margins) > 0))


def test_dpo_has_no_gradient_in_its_reference():
    params, reference = parameters()["trunk"], parameters(seed=1)["trunk"]

    def loss(params, reference):
        return preference_loss(MODEL, reference, beta=0.3)(params, batch(), None)[0].sum

    own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, reference)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(own)) > 0
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), others)
