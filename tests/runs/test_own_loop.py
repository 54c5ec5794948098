"""A training loop of one's own: devices, batches and checkpoints, without a recipe."""

import jax
import numpy as np
import optax
import pytest

import lmjax
from lmjax.data.loader import Loader
from lmjax.errors import UserError
from lmjax.settings import CheckpointSettings, DataSettings, TokenizerSettings
from tests import tiny
from tests.running import assert_same_bits, saved_steps

STEPS = 6


@pytest.fixture(scope="module")
def batches(compiled_once, sources, tmp_path_factory):
    data = DataSettings(**sources, sequence_length=16, batch_size=8)
    return lmjax.token_batches(
        data, tmp_path_factory.mktemp("own"), TokenizerSettings(kind="bpe", vocab_size=270), quiet=True
    )


def loop(batches, folder, mesh, steps):
    """The state after so many steps, from wherever the folder's checkpoints stand; one is written every second step."""
    model = lmjax.model_of(tiny.model(vocab_size=batches.tokenizer.vocab_size))
    optimizer = optax.adam(0.01)
    state = lmjax.init_state(model, optimizer, 0, mesh)
    step = lmjax.jit_step(lmjax.make_train_step(lmjax.language_loss(model), optimizer), state, mesh)
    with lmjax.checkpointer(folder, model, batches.tokenizer, CheckpointSettings(keep_last=1)) as checkpoints:
        state = checkpoints.restore(state) or state
        for number in range(int(state.step), steps):
            state, _ = step(state, lmjax.placed_batch(batches.train, number, mesh))
            if number % 2:
                checkpoints.save(state, number + 1)
    return state


def test_a_loop_resumes_from_its_checkpoints_bit_for_bit_and_load_reads_them(batches, tmp_path):
    mesh = lmjax.mesh(fsdp=2, data=-1)
    whole = loop(batches, tmp_path / "whole", mesh, STEPS)
    loop(batches, tmp_path / "parts", mesh, 4)
    assert_same_bits(loop(batches, tmp_path / "parts", mesh, STEPS), whole)
    assert saved_steps(tmp_path / "parts", "own_loop") == [6]
    trained = lmjax.load(tmp_path / "parts")
    assert_same_bits(trained.params, whole.params)
    assert trained.step == 6 and trained.tokenizer.decode(trained.tokenizer.encode("the cat")) == "the cat"


def test_the_batches_are_those_of_a_recipe_and_lie_over_the_devices(batches, tmp_path):
    mesh, host = lmjax.mesh(), batches.train.batch_at(3)
    placed = lmjax.placed_batch(batches.train, 3, mesh)
    assert isinstance(batches.train, Loader) and host["tokens"].shape == (8, 16)
    for name, array in placed.items():
        np.testing.assert_array_equal(array, host[name])
        assert {shard.data.shape for shard in array.addressable_shards} == {(1, 16)}
    held_out = lmjax.placed_batch(batches.validation, 0, mesh)
    np.testing.assert_array_equal(held_out["targets"], batches.validation[0]["targets"])


def test_a_mesh_has_the_axes_that_are_named_and_fits_the_devices():
    assert dict(lmjax.mesh(fsdp=4, data=-1).shape) == {"replica": 1, "data": 2, "fsdp": 4, "sequence": 1, "tensor": 1}
    assert lmjax.mesh().shape["data"] == len(jax.devices()) == 8
    with pytest.raises(UserError, match=r"mesh\.fsdp = 3"):
        lmjax.mesh(fsdp=3)


def test_a_model_is_of_the_attached_platform_unless_another_is_named(monkeypatch):
    settings = tiny.model(vocab_size=8)
    assert lmjax.model_of(settings).platform == "cpu" and lmjax.model_of(settings, platform="tpu").dtype == "bfloat16"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert lmjax.model_of(settings).platform == "gpu" and lmjax.model_of(settings).dtype == "bfloat16"
