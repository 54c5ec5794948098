"""Pretraining of encoder-decoders: what is learned and recorded, that it resumes, and that examples stay apart."""

import random

import jax
import numpy as np
import pytest

from lmjax.errors import FieldError
from lmjax.parallel.mesh import make_mesh
from lmjax.plan.target import target_of
from lmjax.runs.recipe_changes import kinds_of
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    HeadSettings,
    ModelSettings,
    NormSettings,
    PositionSettings,
    PretrainSpans,
    TokenizerSettings,
)
from lmjax.settings.masking import sentinel_symbols
from lmjax.settings.recipe_files import from_json, to_json
from lmjax.stages.changes import Kind
from lmjax.stages.registry import kind_of
from lmjax.tasks.resolved import resolve
from lmjax.tasks.task import Session
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest
from tests.running import assert_same_bits, at_line, on_devices, values_of
from tests.tiny import LOG, RATE, changed, over, text

LENGTH, TARGETS, ROWS, STEPS = 32, 8, 8, 16  # 32 tokens of inputs are 35 of text, of which 5 are in 2 spans
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "sea")
MODEL = ModelSettings(
    layers=1,
    encoder_layers=1,
    width=16,
    context=LENGTH,
    vocab_size=300,
    attention=AttentionSettings(heads=2, scaled=False, bias=False),
    norm=NormSettings(kind="rmsnorm"),
    positions=PositionSettings(kind="relative"),
    head=HeadSettings(scaled=True),
    dropout=0.1,
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A function from values of fields to a recipe of a tiny T5."""
    folder, rng = tmp_path_factory.mktemp("spans"), random.Random(0)
    for name, count in (("train", 300), ("validation", 40)):
        lines = (" ".join(rng.choices(WORDS, k=12)) + ".\n" for _ in range(count))
        (folder / f"{name}.txt").write_text("".join(lines))
    sources = [text(folder / f"{name}.txt", documents="line") for name in ("train", "validation")]
    base = PretrainSpans(
        name="tiny",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=280, user_symbols=sentinel_symbols(4)),
        data=DataSettings(train=sources[0], validation=sources[1], sequence_length=LENGTH, batch_size=ROWS),
        model=MODEL,
        optimizer=RATE,
        log=LOG,
    )
    own = {"train__steps": STEPS, "train__microbatches": 2, "evaluation__every": 8, "checkpoint__every": 4}
    return lambda **changes: changed(base, **over(own, changes))


def train(recipe, folder, stop=None):
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        on_devices(patch)
        session = Session(stop or StopRequest(), ProgressDisplay(silent=True))
        return kind_of(recipe).train(resolve(recipe, folder=folder), session)


@pytest.fixture(scope="module")
def whole(recipe, compiled_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(recipe(), folder)


def test_it_learns_to_write_what_is_missing_and_counts_the_tokens_of_both_sides(whole):
    folder, outcome = whole
    losses = values_of(folder, "loss")
    assert losses[1] == pytest.approx(np.log(280), abs=0.3)
    assert losses[STEPS] < losses[1] - 0.3
    assert sorted(values_of(folder, "validation_loss")) == [8, STEPS]
    assert 0 < values_of(folder, "validation_accuracy")[STEPS] <= 1
    assert outcome.tokens == STEPS * ROWS * (LENGTH + TARGETS)


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(recipe, whole, tmp_path):
    folder, outcome = whole
    stop = StopRequest()
    with at_line(6, lambda: setattr(stop, "signal", 15)):
        assert int(train(recipe(), tmp_path, stop).state.step) == 7
    assert_same_bits(train(recipe(), tmp_path).state, outcome.state)
    for name in ("loss", "validation_loss", "grad_norm"):
        assert values_of(tmp_path, name) == values_of(folder, name), name


def test_it_is_planned_as_it_runs(recipe):
    target = target_of(recipe(train__microbatches=1))
    lowered = target.lower(make_mesh(recipe().mesh, jax.devices()[:1])).as_text()
    assert f"tensor<{ROWS}x{LENGTH}xi32>" in lowered and f"tensor<{ROWS}x{TARGETS}xi32>" in lowered
    assert target.cost.tokens == ROWS * (LENGTH + TARGETS) and target.cost.flops > 0


def test_its_recipe_is_read_back_and_what_changes_a_run_is_said(recipe):
    assert from_json(to_json(recipe())) == recipe()
    assert kinds_of(recipe(), "spans.density") == [Kind.CONSEQUENTIAL]
    assert kinds_of(recipe(), "model.encoder_layers") == [Kind.BREAKING]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelSettings()}, "model.encoder_layers = None: expected an encoder's depth for pretrain_spans"),
        ({"evaluation__prompts": ("a",)}, "evaluation.prompts.*continues no text"),
        ({"data__isolate_documents": True}, "data.isolate_documents = True: expected false.*first_fit"),
    ],
)
def test_what_does_not_go_together_is_refused(recipe, changes, message):
    with pytest.raises(FieldError, match=message):
        recipe(**changes)
