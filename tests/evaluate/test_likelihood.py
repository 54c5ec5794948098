"""Log-probabilities of sequences through windows, against a full forward pass for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.evaluate import likelihood as module
from lmjax.evaluate.endings import Ending
from lmjax.evaluate.likelihood import Likelihood, windows
from lmjax.model.language_model import LanguageModel
from lmjax.model.stack import unstack_layers
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import abstract_params, shardings_of
from lmjax.settings import AttentionSettings, ComputeSettings, MeshSettings, ModelSettings, PositionSettings

CONTEXT, ENTRIES, START = 64, 29, 28
SETTINGS = ModelSettings(
    layers=2, width=16, context=CONTEXT, vocab_size=32, attention=AttentionSettings(heads=2), init_std=0.5
)
LENGTHS = (0, 1, 2, 31, 32, 33, 63, 64, 65, 97, 161)
SEQUENCES = [np.append(START, np.random.default_rng(length).integers(0, ENTRIES, length)) for length in LENGTHS]


def on(mesh, settings=SETTINGS):
    model = LanguageModel(settings)
    params = model.init(jax.random.key(0))
    return model, jax.device_put(params, shardings_of(abstract_params(model, mesh)))


def one_device():
    return make_mesh(MeshSettings(), jax.devices()[:1])


def log_probs(mesh=None, stride=None, settings=SETTINGS, sequences=SEQUENCES):
    mesh = mesh or one_device()
    reader = Likelihood(*on(mesh, settings), mesh, entries=ENTRIES, stride=stride)
    return [own.log_probs for own in reader.of(sequences)]


def read_one_by_one(ids, stride, settings=SETTINGS):
    """Each token by a forward pass of its own over what its window has before it; what comes after is 0."""
    model, params = on(one_device(), settings)
    found = []
    places = jnp.arange(CONTEXT, dtype=jnp.int32)[None]
    forward = jax.jit(
        lambda row: model.logits(
            params, {"tokens": row, "positions": places, "segments": jnp.ones_like(row)}, entries=ENTRIES
        )[0]
    )
    for token in range(len(ids) - 1):
        ahead = max(0, -(-(token + 1 - CONTEXT) // stride)) * stride  # how far the window has moved
        begin = max(0, min(CONTEXT + ahead, len(ids) - 1) - CONTEXT)
        before = ids[begin : token + 1]
        row = np.zeros((1, CONTEXT), np.int32)
        row[0, : len(before)] = before
        found.append(float(jax.nn.log_softmax(forward(row)[len(before) - 1])[ids[token + 1]]))
    return found


def test_every_token_is_predicted_once_and_with_the_most_before_it_that_the_stride_leaves():
    for tokens in (1, 3, 8, 9, 12, 13, 40):
        for stride in (1, 3, 8):
            found = windows(tokens, 8, stride)
            assert [at for own in found for at in range(own.first, own.end)] == list(range(tokens))
            assert all(own.end - own.begin == min(tokens, 8) for own in found)
            assert all(own.end - own.first <= stride for own in found[1:])
    assert windows(0, 8, 4) == []


@pytest.mark.parametrize("stride", [1, 20, 32, 64])
@pytest.mark.parametrize("kind", ["learned", "rotary"])
def test_windows_give_what_a_pass_for_each_token_gives(stride, kind):
    settings = dataclasses.replace(SETTINGS, positions=PositionSettings(kind=kind))
    found = log_probs(stride=stride, settings=settings)
    assert [len(own) for own in found] == list(LENGTHS)
    for length in (1, 33, 97):
        at = LENGTHS.index(length)
        np.testing.assert_allclose(found[at], read_one_by_one(SEQUENCES[at], stride, settings), atol=2e-5)


def test_the_probabilities_of_all_continuations_add_up_to_one():
    ids = SEQUENCES[LENGTHS.index(33)]
    ends = [np.append(ids, token) for token in range(ENTRIES)]
    assert sum(np.exp(own[-1]) for own in log_probs(sequences=ends)) == pytest.approx(1.0, abs=1e-5)


def test_the_likeliest_tokens_are_those_of_every_possible_continuation():
    mesh, ids = one_device(), SEQUENCES[LENGTHS.index(97)]
    reader = Likelihood(*on(mesh), mesh, entries=ENTRIES, top=ENTRIES)
    (found,) = reader.of([ids])
    assert found.top_ids.shape == found.top_log_probs.shape == (97, ENTRIES)
    np.testing.assert_allclose(np.exp(found.top_log_probs).sum(1), 1.0, atol=1e-5)
    assert (np.diff(found.top_log_probs) <= 0).all()
    ranks = (found.top_ids == ids[1:, None]).argmax(1)
    np.testing.assert_allclose(found.top_log_probs[np.arange(97), ranks], found.log_probs, atol=1e-5)
    other = int(found.top_ids[-1, 0])
    (changed,) = reader.of([np.append(ids[:-1], other)])
    assert changed.log_probs[-1] == pytest.approx(found.top_log_probs[-1, 0], abs=1e-5)


@pytest.mark.parametrize("top", [-1, 30])
def test_more_likeliest_tokens_than_there_are_is_refused(top):
    mesh = one_device()
    with pytest.raises(UserError, match=rf"^--top = {top}: expected at most the 29 tokens"):
        Likelihood(*on(mesh), mesh, entries=ENTRIES, top=top)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 2, "data": 2}])
def test_a_mesh_gives_the_same_numbers(sizes):
    for own, other in zip(log_probs(), log_probs(make_mesh(MeshSettings(**sizes))), strict=True):
        np.testing.assert_allclose(own, other, atol=2e-5)


def test_the_number_of_sequences_read_at_once_and_their_order_change_nothing(monkeypatch):
    before = log_probs()
    monkeypatch.setattr(module, "SEQUENCES_AT_ONCE", 2)
    monkeypatch.setitem(module.BATCH_TOKENS, "cpu", 64)
    for own, other in zip(before, log_probs(sequences=SEQUENCES[::-1])[::-1], strict=True):
        np.testing.assert_allclose(own, other, atol=2e-5)


def test_sequences_are_read_as_they_are_needed(monkeypatch):
    monkeypatch.setattr(module, "FIRST_AT_ONCE", 1)
    monkeypatch.setattr(module, "SEQUENCES_AT_ONCE", 4)
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield SEQUENCES[3]

    mesh = one_device()
    reader = Likelihood(*on(mesh), mesh, entries=ENTRIES).of(endless())
    read = []
    for _ in range(12):
        next(reader)
        read.append(len(asked))
    assert read == [1, *[3] * 2, *[7] * 4, *[11] * 4, 15]


@pytest.mark.parametrize("stride", [0, 65])
def test_a_stride_that_the_context_does_not_allow_is_refused(stride):
    with pytest.raises(UserError, match=rf"^--stride = {stride}: expected 1 to the context of 64 tokens"):
        log_probs(stride=stride)


def test_an_encoder_is_refused():
    attention = dataclasses.replace(SETTINGS.attention, causal=False)
    with pytest.raises(UserError, match=r"causal = False.*the probability of a text"):
        log_probs(settings=dataclasses.replace(SETTINGS, attention=attention))


ENDING = 3  # tokens that are asked for


def groups_of(beginnings, endings=4):
    """Groups whose endings differ in length; the first token of an ending may be that of another."""
    rng = np.random.default_rng(0)
    return [
        [
            Ending(np.concatenate([[START], beginning, rng.integers(0, 2, ENDING + more)]).astype(np.int64), ENDING)
            for more in range(endings)
        ]
        for beginning in (rng.integers(0, ENTRIES, length) for length in beginnings)
    ]


def after(groups, mesh=None, settings=SETTINGS, top=0):
    mesh = mesh or one_device()
    return list(Likelihood(*on(mesh, settings), mesh, entries=ENTRIES, top=top).after(groups))


@pytest.mark.parametrize(("kind", "scanned"), [("learned", True), ("rotary", False)])
def test_the_ends_of_sequences_are_as_likely_as_without_a_shared_beginning(kind, scanned, monkeypatch):
    monkeypatch.setattr(module, "BEGINNING_AT_ONCE", 24)
    attention = dataclasses.replace(SETTINGS.attention, pattern=("dense", "banded"), band=9)
    settings = dataclasses.replace(SETTINGS, positions=PositionSettings(kind=kind), attention=attention)
    groups = groups_of((0, 5, 32, 57)) + groups_of((7,), endings=1)
    mesh = one_device()
    model, params = on(mesh, settings)
    if not scanned:
        model = dataclasses.replace(model, compute=ComputeSettings(scan_layers=False))
        params = unstack_layers(params)
    found = list(Likelihood(model, params, mesh, entries=ENTRIES, top=2).after(groups))
    whole = Likelihood(*on(mesh, settings), mesh, entries=ENTRIES, top=2)
    for group, own in zip(groups, found, strict=True):
        for one, expected in zip(own, whole.of(ids for ids, _ in group), strict=True):
            np.testing.assert_allclose(one.log_probs, expected.log_probs[-ENDING:], atol=2e-5)
            np.testing.assert_allclose(one.top_log_probs, expected.top_log_probs[-ENDING:], atol=2e-5)
            np.testing.assert_array_equal(one.top_ids, expected.top_ids[-ENDING:])


@pytest.mark.parametrize("sizes", [{"data": 8}, {"fsdp": 2, "tensor": 2, "data": 2}])
def test_a_mesh_gives_the_same_endings_and_so_does_the_size_of_batches(sizes, monkeypatch):
    groups = groups_of((3, 4, 5, 20, 50))
    before = after(groups)
    monkeypatch.setitem(module.BATCH_TOKENS, "cpu", 64)
    monkeypatch.setattr(module, "GROUPS_AT_ONCE", 2)
    for own, other in zip(before, after(groups, make_mesh(MeshSettings(**sizes))), strict=True):
        for one, same in zip(own, other, strict=True):
            np.testing.assert_allclose(one.log_probs, same.log_probs, atol=2e-5)


@pytest.mark.parametrize("top", [0, 1])
def test_probabilities_that_are_no_numbers_are_an_error(top):
    mesh = one_device()
    model, params = on(mesh)
    reader = Likelihood(model, jax.tree.map(lambda x: x * 1e30, params), mesh, entries=ENTRIES, top=top)
    with pytest.raises(UserError, match=r"log-probabilities of the model = \[nan\]: expected finite"):
        list(reader.of(SEQUENCES[2:3]))
    with pytest.raises(UserError, match=r"log-probabilities of the model = \[nan\]: expected finite"):
        list(reader.after([[Ending(SEQUENCES[4], 3)]]))
