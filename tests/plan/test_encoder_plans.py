"""The steps of an encoder and of an encoder-decoder, compiled for a slice of TPUs."""

import pytest

from lmjax.model.flops import count
from lmjax.plan.planner import plan
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    FeedForwardSettings,
    HeadSettings,
    MaskingSettings,
    MeshSettings,
    ModelSettings,
    NormSettings,
    OptimizerSettings,
    PositionSettings,
    PretrainMasked,
    PretrainSpans,
)

pytestmark = [pytest.mark.tpu, pytest.mark.xdist_group("tpu")]

ENCODER = PretrainMasked(
    data=DataSettings(sequence_length=128, batch_size=8),
    masking=MaskingSettings(most=20),
    model=ModelSettings(
        layers=2,
        width=128,
        context=128,
        vocab_size=512,
        attention=AttentionSettings(heads=2, causal=False),
        norm=NormSettings(position="post", final=False, embeddings=True),
        positions=PositionSettings(segment_types=2),
        head=HeadSettings(transform=True, bias=True, pooler=True),
    ),
    mesh=MeshSettings(fsdp=2),
)
BOTH = PretrainSpans(
    data=DataSettings(sequence_length=128, batch_size=8),
    model=ModelSettings(
        layers=2,
        encoder_layers=2,
        width=128,
        context=128,
        vocab_size=512,
        attention=AttentionSettings(heads=2, scaled=False, bias=False),
        feed_forward=FeedForwardSettings(activation="relu", bias=False),
        norm=NormSettings(kind="rmsnorm"),
        positions=PositionSettings(kind="relative"),
        head=HeadSettings(scaled=True),
    ),
    optimizer=OptimizerSettings(name="adafactor", weight_decay=0.0),
    mesh=MeshSettings(fsdp=2),
)


@pytest.mark.parametrize(("recipe", "tokens"), [(ENCODER, 128), (BOTH, 128 + 29)], ids=["encoder", "encoder-decoder"])
def test_a_step_fits_a_slice_and_its_flops_are_those_that_are_executed(recipe, tokens):
    found = plan(recipe, "v5e-4").estimate
    assert (found.chips, found.mesh["data"], found.mesh["fsdp"]) == (4, 2, 2)
    assert found.parameters == count(recipe.model).parameters
    assert found.fits and found.gcycles > 0 and 0 < found.mfu < 1
    assert found.tokens_per_second == pytest.approx(8 * tokens / found.step_seconds, rel=1e-3)
    assert found.executed_tflop == pytest.approx(found.model_tflop, rel=0.1)
