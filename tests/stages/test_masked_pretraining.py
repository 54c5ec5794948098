"""Pretraining of encoders: what is learned and recorded, that it resumes, and what it refuses."""

import random

import jax
import numpy as np
import pytest

import lmjax
from lmjax.errors import FieldError
from lmjax.parallel.mesh import make_mesh
from lmjax.plan.target import target_of
from lmjax.runs.recipe_changes import kinds_of
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    HeadSettings,
    MaskingSettings,
    ModelSettings,
    PairSettings,
    PositionSettings,
    PretrainMasked,
    PretrainSpans,
    TokenizerSettings,
)
from lmjax.settings.recipe_files import from_json, to_json
from lmjax.stages.changes import Kind
from lmjax.stages.registry import kind_of
from lmjax.tasks.resolved import resolve
from lmjax.tasks.task import Session
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest
from tests.running import assert_same_bits, at_line, on_devices, values_of
from tests.tiny import LOG, RATE, changed, over, text

LENGTH, ROWS, STEPS = 24, 8, 16
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "sea")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A function from values of fields to a recipe of a tiny BERT over documents of a few sentences."""
    folder, rng = tmp_path_factory.mktemp("masked"), random.Random(0)
    for name, count in (("train", 60), ("validation", 8)):
        documents = (". ".join(" ".join(rng.choices(WORDS, k=4)) for _ in range(8)) + ".\n" for _ in range(count))
        (folder / f"{name}.txt").write_text("".join(documents))
    sources = [text(folder / f"{name}.txt", documents="line") for name in ("train", "validation")]
    model = ModelSettings(
        layers=1,
        width=16,
        context=LENGTH,
        vocab_size=72,
        attention=AttentionSettings(heads=2, causal=False),
        positions=PositionSettings(segment_types=2),
        head=HeadSettings(transform=True, bias=True, pooler=True),
        dropout=0.1,
    )
    data = DataSettings(train=sources[0], validation=sources[1], sequence_length=LENGTH, batch_size=ROWS)
    base = PretrainMasked(
        name="tiny",
        data=data,
        tokenizer=TokenizerSettings(kind="wordpiece", vocab_size=38),
        model=model,
        masking=MaskingSettings(share=0.3, whole_words=True),
        optimizer=RATE,
        log=LOG,
    )
    own = {
        "train__steps": STEPS,
        "train__microbatches": 2,
        "evaluation__every": 8,
        "checkpoint__every": 4,
    }
    return lambda **changes: changed(base, **over(own, changes))


def train(recipe, folder, stop=None):
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        on_devices(patch)
        session = Session(stop or StopRequest(), ProgressDisplay(silent=True))
        return kind_of(recipe).train(resolve(recipe, folder=folder), session).state


@pytest.fixture(scope="module")
def whole(recipe, compiled_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(recipe(), folder)


def test_both_losses_are_recorded_apart_and_as_their_sum(whole):
    folder, _ = whole
    for prefix, count in (("", STEPS), ("validation_", 2)):
        names = ("loss", "masked_loss", "next_sentence_loss", "masked_accuracy", "next_sentence_accuracy")
        loss, masked, following, *accuracies = (values_of(folder, f"{prefix}{name}") for name in names)
        assert len(loss) == count
        for step, value in loss.items():
            assert value == pytest.approx(masked[step] + following[step], rel=1e-5)
        assert all(0 <= value <= 1 for accuracy in accuracies for value in accuracy.values())
    masked = values_of(folder, "masked_loss")
    assert masked[1] == pytest.approx(np.log(38), abs=0.1), "a uniform guess over the tokenizer's entries"
    assert masked[STEPS] < masked[1] - 0.5
    assert values_of(folder, "next_sentence_loss")[1] == pytest.approx(np.log(2), abs=0.1)


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(recipe, whole, tmp_path):
    folder, state = whole
    stop = StopRequest()
    with at_line(6, lambda: setattr(stop, "signal", 15)):
        assert int(train(recipe(), tmp_path, stop).step) == 7
    assert_same_bits(train(recipe(), tmp_path), state)
    for name in ("loss", "masked_loss", "validation_loss", "grad_norm"):
        assert values_of(tmp_path, name) == values_of(folder, name), name


def test_full_rows_without_pairs_have_no_labels_and_one_loss(recipe, no_charts, tmp_path):
    full = recipe(pairs=False, train__steps=2, train__microbatches=1, masking=MaskingSettings())
    target = target_of(full)
    fields = set(target.build(make_mesh(full.mesh, jax.devices()[:1])).spec)
    assert fields == {
        *("tokens", "positions", "segments"),
        *("predicted", "predicted_targets", "predicted_weights"),
    }
    lmjax.run(full, tmp_path / "run", quiet=True)
    assert values_of(tmp_path / "run", "loss") == values_of(tmp_path / "run", "masked_loss")
    assert not values_of(tmp_path / "run", "next_sentence_loss")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "An encoder" in page and "hidden token" in page and "Pairs" not in page


def test_full_rows_are_read_by_the_encoder_that_pairs_have_trained(recipe, whole, no_charts, tmp_path):
    still = {"optimizer__learning_rate": 1e-30, "optimizer__weight_decay": 0.0, "train__microbatches": 1}
    further = recipe(start=str(whole[0]), pairs=False, train__steps=1, masking=MaskingSettings(), **still)
    lmjax.run(further, tmp_path / "further", quiet=True)
    before, after = lmjax.load(whole[0]), lmjax.load(tmp_path / "further")
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    assert values_of(tmp_path / "further", "masked_loss")[1] < values_of(whole[0], "masked_loss")[1] - 0.5


def test_it_is_planned_as_it_runs_and_its_head_counts_predicted_tokens(recipe):
    target = target_of(recipe(train__microbatches=1))
    lowered = target.lower(make_mesh(recipe().mesh, jax.devices()[:1])).as_text()
    columns = MaskingSettings(share=0.3).columns(LENGTH)
    assert f"tensor<{ROWS}x{LENGTH}xi32>" in lowered and f"tensor<{ROWS}x{columns}xi32>" in lowered
    assert f"{LENGTH}x72xf32" not in lowered, "no logits for the other columns"
    more = target_of(recipe(train__microbatches=1, masking=MaskingSettings(most=20, share=0.9)))
    head = 3 * 2 * 72 * 16  # FLOPs of a training step for each predicted token
    assert more.cost.flops - target.cost.flops == pytest.approx((20 - columns) * ROWS * head)


def test_its_recipe_is_read_back_with_where_its_encoder_is(recipe):
    again = from_json(to_json(recipe()))
    assert again == recipe() and again.language_model == ("params", "trunk")
    assert recipe(pairs=False).language_model == ("params",)


def test_what_changes_a_workdirs_run_is_said(recipe):
    kinds = {name: kinds_of(recipe(), name) for name in ("masking.share", "next_sentence.short", "pairs")}
    assert kinds == {
        "masking.share": [Kind.CONSEQUENTIAL],
        "next_sentence.short": [Kind.CONSEQUENTIAL],
        "pairs": [Kind.BREAKING],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelSettings()}, "model.attention.causal = True: expected False for pretrain_masked"),
        ({"model": PretrainSpans().model}, "model.attention.causal = True: expected False for pretrain_masked"),
        ({"evaluation__prompts": ("a",)}, "evaluation.prompts.*continues no text"),
        ({"data__packing": "first_fit"}, "data.packing = 'first_fit': expected 'split' with pairs"),
        ({"data__isolate_documents": True}, "data.isolate_documents = True: expected False with pairs"),
        ({"pairs": False, "next_sentence": PairSettings(short=0.5)}, "next_sentence.*its default without pairs"),
    ],
)
def test_what_does_not_go_together_is_refused(recipe, changes, message):
    with pytest.raises(FieldError, match=message):
        recipe(**changes)
