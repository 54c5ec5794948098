"""Reading HLO: every number here can be worked out by hand from the text."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmjax.plan.device_groups import device_group
from lmjax.plan.hlo import costs, parse

JUDGE = Path(__file__).parents[3] / "shared" / "tools" / "hlo_cost.py"

PROGRAM = Path(__file__).with_name("program.hlo").read_text()


@pytest.fixture(scope="module")
def spent():
    return costs(parse(PROGRAM))


def test_cycles_are_multiplied_through_nested_loops(spent):
    assert spent.cycles == 3 * 12 * 100 + 7
    assert spent.unknown_loops == 0
    assert spent.sources["fusion", "layer/dot", True] == 3600


def test_products_inside_of_fusions_are_counted(spent):
    assert spent.flops == 3 * 12 * 2 * 16 * 32 * 64


def test_an_asynchronous_collective_counts_once_although_it_stands_twice(spent):
    gathers = [c for c in spent.collectives if c.kind == "all-gather"]
    assert sum(c.count for c in gathers) == 36
    assert sum(c.bytes for c in gathers) == 36 * 64 * 32 * 2
    assert gathers[0].group == (0, 2, 4, 6)


def test_iota_groups_are_read(spent):
    (reduced,) = [c for c in spent.collectives if c.kind == "all-reduce"]
    assert reduced.group == (0, 1, 4, 5)
    assert reduced.bytes == 4 * 8 * 4


def test_a_sum_of_which_a_fusion_keeps_a_slice_is_scattered():
    """As libtpu writes it in a fusion that it calls all-reduce-scatter."""
    text = """\
HloModule m
%all-reduce-scatter (input: bf16[128,1024,2048]) -> bf16[128,64,2048] {
  %input = bf16[128,1024,2048] parameter(0)
  %all-reduce.1 = bf16[128,1024,2048] all-reduce(%input), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}, to_apply=%add
  %constant.1 = u32[] constant(0)
  %partition-id.1 = u32[] partition-id()
  ROOT %dynamic-slice.1 = bf16[128,64,2048] dynamic-slice(%all-reduce.1, %constant.1, %partition-id.1, %constant.1), dynamic_slice_sizes={128,64,2048}
}
ENTRY %main (a: bf16[128,1024,2048]) -> bf16[128,64,2048] {
  %a = bf16[128,1024,2048] parameter(0)
  ROOT %fusion = bf16[128,64,2048] fusion(%a), kind=kCustom, calls=%all-reduce-scatter
}
"""  # noqa: E501
    (scattered,) = costs(parse(text)).collectives
    assert (scattered.kind, scattered.bytes) == ("reduce-scatter", 128 * 64 * 2048 * 2)
    assert scattered.sent == 15 * scattered.bytes


def test_a_kernel_is_listed_with_its_shapes_and_own_estimate(spent):
    (kernel,) = spent.kernels
    assert (kernel.target, kernel.name, kernel.count) == ("tpu_custom_call", "kernel", 1)
    assert [a.dims for a in kernel.result] == [(2, 4, 128, 64), (2, 4, 128)]
    assert (kernel.flops, kernel.bytes) == (1000, 64)


def one_convolution(left, right, out, attributes):
    text = f"""\
HloModule m
ENTRY %main (a: bf16[{left}], b: bf16[{right}]) -> bf16[{out}] {{
  %a = bf16[{left}] parameter(0)
  %b = bf16[{right}] parameter(1)
  ROOT %c = bf16[{out}] convolution(%a, %b), {attributes}
}}
"""
    return costs(parse(text)).flops


@pytest.mark.parametrize(
    ("left", "right", "out", "attributes", "multiplications"),
    [
        ("16,64", "64,32", "16,32", "dim_labels=bf_io->bf", 16 * 64 * 32),
        # [4, 8, 64] x [64, 12, 16] -> [4, 8, 12, 16], the 12 heads as a window of which one place meets the input
        (
            "4,8,64,1",
            "64,12,16,1",
            "4,8,12,16",
            "window={size=1x12 pad=0_0x11_11 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f",
            4 * 8 * 64 * 12 * 16,
        ),
        # [4, 8, 12, 16] x [12, 16, 64] -> [4, 8, 64], summed over the window of 12 heads
        (
            "4,8,12,16",
            "12,16,64,1",
            "4,8,64,1",
            "window={size=1x12}, dim_labels=0b1f_1io0->0bf1",
            4 * 8 * 12 * 16 * 64,
        ),
        # a plain convolution along one axis of 10, window 3, padded to keep its length: the ends have two taps
        ("2,10,5", "3,5,7", "2,10,7", "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", 2 * 5 * 7 * (8 * 3 + 2 * 2)),
    ],
)
def test_convolutions_count_only_what_meets_the_input(left, right, out, attributes, multiplications):
    assert one_convolution(left, right, out, attributes) == 2 * multiplications


def test_mesh_groups_are_read():
    assert device_group("replica_groups=mesh['a'=2,'b'=4] {'b'}, x") == (0, 1, 2, 3)
    assert device_group("replica_groups=mesh['a'=2,'b'=4] {'a'}, x") == (0, 4)
    assert device_group("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, x") == (0, 2)  # the major part of b
    assert device_group("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, x") == (0, 1)  # the minor part of b


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("HloModule m\n")


@pytest.mark.skipif(not JUDGE.exists(), reason=f"{JUDGE} is absent")
def test_an_independent_reader_finds_the_same_cycles(spent, tmp_path):
    file = tmp_path / "program.hlo"
    file.write_text(PROGRAM)
    answer = subprocess.run([sys.executable, JUDGE, file], capture_output=True, text=True, check=True).stdout
    assert f'"gcycles": {round(spent.cycles / 1e9, 4)}' in answer
    assert f'"dot_tflop": {round(spent.flops / 1e12, 3)}' in answer


def across_slices(kind, target, shape="f32[2,128]"):
    attributes = f'_xla_megascale_target="{target}",_xla_megascale_transfer_type="{kind}"'
    text = f"""\
HloModule m, num_partitions=4
ENTRY %main (a: {shape}) -> {shape} {{
  %a = {shape} parameter(0)
  %after = token[] after-all()
  %send = ({shape}, u32[], token[]) send(%a, %after), is_host_transfer=true, frontend_attributes={{{attributes}}}
  %recv = ({shape}, u32[], token[]) recv(%after), is_host_transfer=true, frontend_attributes={{{attributes}}}
  %done = ({shape}, token[]) recv-done(%recv), is_host_transfer=true
  ROOT %b = {shape} get-tuple-element(%done), index=0
}}
"""
    (found,) = costs(parse(text)).collectives
    return found.kind, found.group, found.bytes, found.count


def test_a_collective_across_slices_is_counted_once_with_a_device_of_each_slice():
    assert across_slices("ALL_REDUCE", "{1,2}x{0:3}") == ("all-reduce", (0, 4), 1024, 1)
    assert across_slices("ALL_GATHER", "{1:3}x{0:255}", "bf16[64]") == ("all-gather", (0, 256, 512), 128, 1)


def test_a_transfer_to_the_host_that_is_no_collective_is_not_taken_for_one():
    text = """\
HloModule m
ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2] parameter(0)
  %after = token[] after-all()
  %recv = (f32[2], u32[], token[]) recv(%after), is_host_transfer=true
  %done = (f32[2], token[]) recv-done(%recv), is_host_transfer=true
  ROOT %b = f32[2] get-tuple-element(%done), index=0
}
"""
    assert costs(parse(text)).collectives == []
