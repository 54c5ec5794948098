"""Estimates from hand-made costs: every figure can be worked out on paper."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.parallel.chips import GIB
from lmjax.plan import attention_blocks
from lmjax.plan.attention_blocks import SPLASH_PRODUCTS
from lmjax.plan.compile import Compiled, OutOfMemory
from lmjax.plan.estimate import (
    AxisTraffic,
    ImpossibleEstimateError,
    _bound,
    _kernel_seconds,
    _phases,
    collective_traffic,
    estimate,
    kernel_work,
)
from lmjax.plan.hlo import Array, Collective, KernelCall
from lmjax.plan.slices import find_slice
from lmjax.plan.target import target_of
from lmjax.settings import AttentionSettings, MeshSettings, ModelSettings
from tests.tiny import for_slice

AXES = ("replica", "data", "fsdp", "sequence", "tensor")


def mesh_of(shape, coords, slices=None):
    devices = np.empty(len(coords), object)
    for i, place in enumerate(coords):
        devices[i] = SimpleNamespace(coords=place, slice_index=slices[i] if slices else 0)
    return SimpleNamespace(devices=devices.reshape(shape), axis_names=AXES)


SQUARE = [(x, y, 0) for x in range(4) for y in range(4)]  # v5e-16


def test_phases_have_shares_of_what_their_operations_take():
    seconds = [("jit(iterate)/phase.rollout/while", 3.0), ("transpose(jvp(phase.updates))/dot", 4.0)]
    seconds += [("jit(iterate)/phase.rollout/add", 2.0), ("add", 1.0)]
    assert _phases(seconds) == {"rollout": 0.5, "updates": 0.4, "other": 0.1}
    assert _phases([("jit(step)/jvp(OneStack)/phases/add", 1.0)]) is None


def test_traffic_goes_to_the_axes_that_a_group_runs_along():
    mesh = mesh_of((1, 4, 4, 1, 1), SQUARE)
    collectives = [
        Collective("all-gather", (0, 1, 2, 3), 3 * GIB, 6),
        Collective("all-reduce", (0, 4, 8, 12), GIB, 1),
        Collective("all-reduce", tuple(range(16)), GIB, 2),
        Collective("reduce-scatter", (0, 1, 2, 3), GIB, 4),
        Collective("all-reduce", (5,), GIB, 1),  # of a device with itself: nothing is sent
    ]
    traffic = {each.axis: each for each in collective_traffic(collectives, mesh, find_slice("v5e-16"))}
    assert set(traffic) == {"fsdp", "data", "dataxfsdp"}
    assert traffic["fsdp"].gib == 4 and traffic["fsdp"].kinds == {"all-gather": 6, "reduce-scatter": 4}
    # Of a gather each sends 3/4 of the result, of an all-reduce twice as much; a reduce-scatter's result is one quarter
    # of the sum, of which each sends the other three. Along an axis go two links of 50 GB/s.
    assert traffic["fsdp"].sent_gib == 3 * 3 / 4 + 3
    assert traffic["fsdp"].seconds == pytest.approx((3 * 3 / 4 + 3) * GIB / 100e9)
    assert traffic["data"].sent_gib == 2 * 3 / 4
    assert traffic["data"].seconds == pytest.approx(2 * GIB * 3 / 4 / 100e9)
    assert traffic["dataxfsdp"].seconds == pytest.approx(2 * GIB * 15 / 16 / 200e9)  # along both physical axes


def test_traffic_between_slices_goes_at_the_rate_of_the_network():
    mesh = mesh_of((2, 1, 2, 1, 1), [(0, 0, 0), (1, 0, 0)] * 2, slices=[0, 0, 1, 1])
    (each,) = collective_traffic([Collective("all-reduce", (0, 2), GIB, 1)], mesh, find_slice("2xv5e-4"))
    assert each.axis == "replica"
    assert each.seconds == pytest.approx(GIB / 6.25e9)


def splash(part):
    q = Array("bf16", (2, 12, 4096, 64))
    mask = Array("s8", (1, 4, 4))
    return KernelCall("tpu_custom_call", f"splash_mha_{part}_no_residuals", (mask, mask, q, q, q), (q,), 1)


@pytest.mark.parametrize(("part", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_splash_kernels_do_the_products_of_the_blocks_that_the_mask_leaves(part, products):
    whole = 2 * 2 * 12 * 4096 * 4096 * 64
    dense = AttentionSettings(heads=12)
    assert kernel_work(splash(part), dense) == products * whole * 10 / 16  # blocks of 1,024: 1 + 2 + 3 + 4 of 16
    assert kernel_work(splash(part), dense, 2048) == products * whole * 3 / 4
    assert kernel_work(splash(part), dataclasses.replace(dense, causal=False)) == products * whole
    banded = AttentionSettings(heads=12, pattern=("dense", "banded"), band=256)
    assert kernel_work(splash(part), banded) == products * whole * (10 + 7) / 2 / 16
    banded = dataclasses.replace(banded, causal=False)
    assert kernel_work(splash(part), banded) == products * whole * (16 + 10) / 2 / 16  # and the block after


@pytest.mark.parametrize(("part", "products"), [("fwd", 2), ("dkv", 5)])
def test_one_kernel_makes_all_gradients_of_rows_of_one_block(part, products):
    whole = 2 * 2 * 12 * 4096 * 4096 * 64
    assert kernel_work(splash(part), AttentionSettings(heads=12), 4096) == products * whole


def test_a_splash_kernel_that_should_not_be_there_is_an_internal_error():
    with pytest.raises(ImpossibleEstimateError, match="splash_mha_dq_no_residuals: none of the kernels fwd, dkv of 40"):
        kernel_work(splash("dq"), AttentionSettings(heads=12), 4096)


@pytest.mark.parametrize(("part", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
@pytest.mark.parametrize(
    ("queries", "keys", "scores"),
    [
        ((12, 2048, 64), (12, 2048, 64), 12 * 2048**2),  # one row on a device
        ((1, 2048, 64), (1, 2048, 64), 2048**2),  # and one head
        ((2048, 64), (2048, 64), 2048**2),
        ((2, 6, 2048, 64), (2, 2048, 64), 12 * 2048**2),  # one row, six queries to a key
        ((12, 512, 64), (12, 2048, 64), 12 * 512 * 2048),  # a quarter of one row's queries
        ((3, 2, 6, 2048, 64), (3, 2, 2048, 64), 36 * 2048**2),
    ],
)
def test_splash_kernels_are_counted_whatever_axes_of_size_one_were_dropped(part, products, queries, keys, scores):
    q, kv, mask = Array("bf16", queries), Array("bf16", keys), Array("s8", (1, 2, 2))
    row = Array("f32", (*queries[:-2], 8, queries[-2]))  # log-sums, of as many axes as the keys may have
    segments = Array("s32", (2048, 128))
    operands = (mask, mask, q, kv, kv, row, q, row, segments)
    call = KernelCall("tpu_custom_call", f"splash_mha_{part}_residuals", operands, (q,), 1)
    assert kernel_work(call, AttentionSettings(heads=12)) == 2 * products * scores * 64 * 3 / 4


@pytest.mark.parametrize(
    ("head", "slice_name", "wide"),
    [(64, "v5e-4", 128), (80, "v5p-8", 128), (128, "v5e-4", 128), (192, "v5e-4", 256), (128, "v6e-4", 256)],
)
def test_narrow_heads_take_the_time_of_matrix_units_that_they_do_not_fill(head, slice_name, wide):
    """As the arithmetic of `--auto` has it."""
    where = find_slice(slice_name)
    model = ModelSettings(layers=1, width=head, context=4096, attention=AttentionSettings(heads=1))
    q = Array("bf16", (4096, head))
    calls = [KernelCall("tpu_custom_call", f"splash_mha_{part}", (q, q, q), (q,), 1) for part in SPLASH_PRODUCTS]
    whole = 9 * 2 * 4096**2 * wide * 10 / 16
    assert sum(kernel_work(call, model.attention, None, where.chip.unit) for call in calls) == whole
    seconds = sum(_kernel_seconds(call, model.attention, None, where) for call in calls)
    assert seconds == pytest.approx(whole / where.device_flops)
    predicted = attention_blocks.kernel_seconds(model, 4096, 1, None, where, 1)
    assert seconds == pytest.approx(predicted)


def test_a_splash_kernel_without_queries_and_keys_is_an_internal_error():
    call = KernelCall("tpu_custom_call", "splash_mha_fwd", (Array("bf16", (12, 2048, 64)),), (), 1)
    with pytest.raises(ImpossibleEstimateError, match=r"splash_mha_fwd: .*2048, 64"):
        kernel_work(call, AttentionSettings(heads=12))


RECIPE = for_slice(width=64, data__batch_size=32, mesh=MeshSettings(fsdp=4))
TEXT = """\
HloModule m
ENTRY %main (a: bf16[16,64], b: bf16[64,32]) -> bf16[16,32] {
  %a = bf16[16,64] parameter(0)
  %b = bf16[64,32] parameter(1)
  ROOT %c = bf16[16,32] dot(%a, %b), lhs_contracting_dims={1}, backend_config={"estimated_cycles":"3000000"}
}
"""


def test_a_program_becomes_seconds_tokens_and_mfu():
    mesh = mesh_of((1, 4, 4, 1, 1), SQUARE)
    found = estimate(target_of(RECIPE), find_slice("v5e-16"), mesh, Compiled(None, TEXT, GIB, 2 * GIB, 3 * GIB, 9.0))
    assert found.fits and found.peak_hbm_gib == 3 and found.arguments_gib == 1
    assert found.step_seconds == pytest.approx(3e6 / 1.5e9)
    assert found.tokens_per_second == pytest.approx(32 * 128 / 0.002)
    matrices = 2 * (4 * 64 * 64 + 2 * 64 * 256) + 512 * 64
    scores = 12 * 64 * 2 * 64.5
    assert found.mfu == pytest.approx((6 * matrices + scores) * 256 / 0.002 / 197e12)
    assert found.mfu_without_attention == pytest.approx(6 * matrices * 256 / 0.002 / 197e12)
    assert found.executed_tflop == pytest.approx(2 * 16 * 64 * 32 / 1e12)
    assert found.bound_by == "HBM and vector units"


@pytest.mark.parametrize(
    ("dot", "cycles", "named"),
    [
        # the model's own products and scores at 197 TFLOP/s and 1.5 GHz take 1,726 cycles on each of 16 devices
        ((16, 64, 32), 1700, r"^mfu 1\.0153, where"),
        ((16, 64, 32), 1500, r"^mfu 1\.1507, mfu_without_attention 1\.0220, where"),
        ((1024, 1024, 512), 8000, r"^share of the matrix units 1\.0220, where"),
    ],
)
def test_a_share_above_a_chip_s_peak_is_an_internal_error_that_names_the_numbers(dot, cycles, named):
    """What a loop or a kernel did and no line counted would otherwise be printed as an MFU of more than 1."""
    (a, b, c), mesh = dot, mesh_of((1, 4, 4, 1, 1), SQUARE)
    text = TEXT.replace("16,64", f"{a},{b}").replace("64,32", f"{b},{c}").replace("16,32", f"{a},{c}")
    program = Compiled(None, text.replace("3000000", str(cycles)), GIB, 2 * GIB, 3 * GIB, 9.0)
    with pytest.raises(ImpossibleEstimateError, match=named) as raised:
        estimate(target_of(RECIPE), find_slice("v5e-16"), mesh, program)
    assert not isinstance(raised.value, UserError)
    assert f"{cycles} cycles" in str(raised.value) and "0 loops of unknown length" in str(raised.value)


@pytest.mark.parametrize(
    ("busy", "kernels", "seconds", "answer"),
    [
        (0.7, 0.5, {}, "matrix units"),
        (0.5, 0.5, {}, "HBM and vector units"),
        (0.7, 1.1, {}, "Pallas kernels"),
        (0.7, 1.1, {"fsdp": 2.0}, "Pallas kernels"),  # the links are done before
        (0.7, 0.5, {"fsdp": 1.0, "data": 0.4}, "matrix units"),
        *((0.7, 1.1, {axis: 1.5, "dataxfsdp": 1.0}, f"collectives over {axis}") for axis in AXES),
        (0.7, 0.5, {"tensor": 0.5, "dataxfsdp": 1.1}, "collectives over dataxfsdp"),
    ],
)
def test_a_step_is_bound_by_what_takes_longest(busy, kernels, seconds, answer):
    where, compute = find_slice("v5e-16"), 1.0
    traffic = [AxisTraffic(axis, {"all-gather": 1}, 1.0, 1.0, each) for axis, each in seconds.items()]
    assert _bound(where, busy * compute * where.device_flops, compute, kernels, traffic) == answer


def test_a_refusal_says_by_how_much():
    mesh = mesh_of((1, 4, 4, 1, 1), SQUARE)
    found = estimate(target_of(RECIPE), find_slice("v5e-16"), mesh, OutOfMemory(20 * GIB, 15 * GIB, "no"))
    assert not found.fits
    assert (found.peak_hbm_gib, found.over_by_gib, found.step_seconds) == (20, 5, None)
