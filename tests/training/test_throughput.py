"""The table of devices, the formula of MFU, and what the meter counts."""

import pytest

from lmjax.parallel.chips import GIB, TERA, device_peak
from lmjax.training.throughput import Meter, mfu

# jax's names as its attached devices and its topologies report them; figures per chip.
KINDS = {
    "TPU v4": (275, 32),
    "TPU v5 lite": (197, 16),
    "TPU v5e": (197, 16),
    "TPU v5": (459, 95),
    "TPU v5p": (459, 95),
    "TPU v6 lite": (918, 32),
    "TPU v6e": (918, 32),
    "TPU7x": (2307, 192),
    "NVIDIA A100-SXM4-80GB": (312, 80),
    "NVIDIA A100 80GB PCIe": (312, 80),
    "NVIDIA A100-SXM4-40GB": (312, 40),
    "NVIDIA H100 80GB HBM3": (989, 80),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_has_the_makers_figures_under_jaxs_names(kind):
    peak = device_peak(kind)
    assert (peak.flops / TERA, peak.memory / GIB) == KINDS[kind]


@pytest.mark.parametrize(
    "kind", ["cpu", "TPU v2", "TPU v3", "TPU v4 lite", "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090"]
)
def test_a_device_that_is_not_in_the_table_has_no_mfu_instead_of_anothers(kind):
    assert device_peak(kind) is None
    assert mfu(1e6, 1e9, kind, 8) is None


def test_mfu_is_the_models_flops_over_the_chips_peak():
    """1,000 tokens/s of 6 x 10^9 FLOPs each on 2 v5e chips of 197 TFLOP/s."""
    assert mfu(1000.0, 6e9, "TPU v5 lite", 2) == pytest.approx(6e12 / (2 * 197e12))


def test_both_cores_of_a_tpu7x_chip_are_devices_of_jaxs():
    assert mfu(1000.0, 6e9, "TPU7x", 8) == pytest.approx(6e12 / (4 * 2307e12))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def metered(window=50, kind="TPU v4", devices=2):
    clock = Clock()
    return clock, Meter(3e9, kind, devices, window, clock)


def take(clock, meter, seconds, tokens=100, waited=0.0):
    clock.now += seconds
    meter.step(tokens, waited)


def test_before_the_second_step_there_is_no_rate():
    clock, meter = metered()
    assert meter.read() == {}
    take(clock, meter, 90.0)
    assert meter.read() == {"goodput": 0.0}


def test_rates_leave_out_the_first_step_and_what_was_paused():
    clock, meter = metered()
    take(clock, meter, 90.0, tokens=7)  # compiles
    take(clock, meter, 2.0, tokens=100, waited=0.5)
    with meter.paused():
        clock.now += 1000.0
    take(clock, meter, 4.0, tokens=500, waited=1.0)
    read = meter.read()
    assert read["tokens_per_second"] == pytest.approx(600 / 6)
    assert read["step_seconds"] == pytest.approx(3.0)
    assert read["input_wait"] == pytest.approx(1.5 / 6)
    assert read["goodput"] == pytest.approx((6 - 1.5) / 1096)
    assert read["mfu"] == pytest.approx(100 * 3e9 / (2 * 275e12))


def test_a_pause_before_the_first_step_ends_counts_for_nothing():
    clock, meter = metered()
    with meter.paused():
        clock.now += 50.0
    take(clock, meter, 10.0)
    take(clock, meter, 2.0)
    assert meter.read()["step_seconds"] == pytest.approx(2.0)


def test_rates_are_over_the_last_steps_only():
    clock, meter = metered(window=3)
    for seconds in (90.0, 50.0, 40.0, 1.0, 2.0, 3.0):
        take(clock, meter, seconds)
    assert meter.read()["step_seconds"] == pytest.approx(2.0)
    assert meter.read()["tokens_per_second"] == pytest.approx(50.0)


def test_a_device_without_a_known_peak_is_measured_without_mfu():
    clock, meter = metered(kind="cpu")
    take(clock, meter, 1.0)
    take(clock, meter, 1.0)
    assert set(meter.read()) == {"goodput", "tokens_per_second", "step_seconds", "input_wait"}
