"""Tiny recipes, compiled for every kind of chip, for two slices, and as other programs than a training step."""

import dataclasses

import pytest

from lmjax.model.flops import count
from lmjax.parallel.chips import GIB
from lmjax.plan.planner import plan
from lmjax.plan.target import target_of
from lmjax.settings import (
    AttentionSettings,
    DialogueSettings,
    DialogueSourceSettings,
    MeshSettings,
    PositionSettings,
    RewardModel,
)
from tests.tiny import for_slice

pytestmark = [pytest.mark.tpu, pytest.mark.xdist_group("tpu")]

TINY = for_slice(mesh=MeshSettings(fsdp=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "replica", "chips", "devices", "hbm"),
    [
        ("v4-8", 1, 4, 4, 30.75),
        ("v5p-8", 1, 4, 4, 95.74),
        ("v6e-4", 1, 4, 4, 31.25),
        ("tpu7x-8", 1, 4, 8, 94.75),
        ("2xv5e-4", 2, 8, 8, 15.75),
    ],
)
def test_every_kind_of_chip_and_two_slices_are_compiled_for(topology, replica, chips, devices, hbm):
    found = plan(dataclasses.replace(TINY, mesh=MeshSettings(replica=replica, fsdp=2)), topology).estimate
    assert (found.chips, found.devices, found.hbm_gib) == (chips, devices, hbm)
    data = devices // (2 * replica)
    assert found.mesh == {"replica": replica, "data": data, "fsdp": 2, "sequence": 1, "tensor": 1}
    state = 12 * found.parameters / 2 / GIB  # float32 parameters and two moments, cut in two
    assert found.fits and state < found.arguments_gib < found.peak_hbm_gib < 0.02
    assert found.gcycles > 0 and 0 < found.mfu < 1 and found.unknown_loops == 0
    traffic = {each.axis: each for each in found.collectives}
    assert {"data", "fsdp"} <= traffic.keys() and ("replica" in traffic) == (replica > 1)
    if replica > 1:  # every gradient once, of which a device has a part by then: in bfloat16 or float32
        part = found.parameters / (data * 2)
        assert 2 * part <= traffic["replica"].gib * GIB <= 2 * 4 * part
        assert traffic["replica"].seconds == pytest.approx(traffic["replica"].sent_gib * GIB / 6.25e9)


@pytest.mark.parametrize(
    "heads",
    [
        pytest.param(AttentionSettings(heads=1), id="one head"),
        pytest.param(AttentionSettings(heads=4, kv_heads=2), marks=pytest.mark.slow, id="grouped"),
    ],
)
def test_attention_of_one_row_of_one_layer_on_one_device_is_counted(heads):
    """A device's only row has no axis of rows in the compiled kernels."""
    stage = for_slice(layers=1, width=64, length=4096, data__batch_size=1, model__attention=heads)
    model = stage.model
    found = plan(stage, "v5e-1").estimate
    scores = 12 * model.attention.heads * model.head_dim * 4097 / 2 * 4096 / 1e12  # all that causal queries need
    assert scores > 0.6 * found.model_tflop
    # forward and two backward kernels make 9 products where 6 are needed, of 10 blocks of 1,024 where 8 would do
    kernels = scores * 9 / 6 * (10 / 16) / (4097 / 8192)
    assert found.executed_tflop == pytest.approx(found.model_tflop - scores + kernels, rel=0.02)
    assert 0 < found.mfu < 1 and found.kernel_seconds > 0.999 * kernels * 1e12 / 197e12


def test_a_validation_is_a_third_of_a_step_s_work_and_holds_no_moments():
    found = plan(TINY, step="eval").estimate
    assert found.step == "eval" and found.fits
    assert found.model_tflop == pytest.approx(target_of(TINY).cost.flops / 3 / found.devices / 1e12)
    parameters = 4 * count(TINY.model).parameters / 2  # float32, cut in two; heads of 64 fill half of a register
    assert parameters < found.arguments_gib * GIB < 1.5 * parameters
    assert found.executed_tflop == pytest.approx(found.model_tflop, rel=0.1)


def test_a_stage_that_learns_from_rankings_is_planned_for_all_its_answers():
    dialogue = DialogueSettings(
        train=(DialogueSourceSettings(path="rows.jsonl"),), sequence_length=128, batch_size=4, most_answers=3
    )
    stage = RewardModel(start="sft", model=TINY.model, dialogue=dialogue, mesh=TINY.mesh, plan=TINY.plan)
    found = plan(stage).estimate
    assert found.fits and found.recipe == "reward" and found.rows_per_step == 4 * 3
    assert found.tokens_per_second == pytest.approx(4 * 3 * 128 / found.step_seconds)
    assert {"data", "fsdp"} <= {each.axis for each in found.collectives}


@pytest.mark.slow
def test_a_relative_bias_is_made_in_blocks_of_which_a_step_holds_less_than_all_scores():
    """What `auto` takes beside all scores at once: T5's way of telling positions, on rows of 2,048 tokens."""

    def planned(implementation):
        attention = AttentionSettings(heads=8, head_dim=16, implementation=implementation)
        relative = PositionSettings(kind="relative")
        shape = {"layers": 1, "width": 64, "length": 2048, "data__batch_size": 2}
        return plan(for_slice(**shape, model__attention=attention, model__positions=relative), "v5e-1").estimate

    blocked, einsum = planned("auto"), planned("einsum")
    scores = 2 * 8 * 2048 * 2048 * 4 / GIB  # float32, of every pair of every row's heads
    assert einsum.peak_hbm_gib > scores and blocked.peak_hbm_gib < 0.6 * scores
    assert blocked.step_seconds < 0.8 * einsum.step_seconds
