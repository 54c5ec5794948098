"""Slices by the names that people write."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmjax.errors import UserError
from lmjax.parallel.chips import CHIPS, GIB
from lmjax.parallel.mesh import make_mesh
from lmjax.plan.compile import slice_devices
from lmjax.plan.hlo import costs, parse
from lmjax.plan.slices import find_slice, names
from lmjax.settings import MeshSettings


@pytest.mark.parametrize(
    ("name", "library", "chips", "devices"),
    [
        ("v5e-1", "v5e:1x1", 1, 1),
        ("v5e-16", "v5e:4x4", 16, 16),
        ("v5litepod-16", "v5e:4x4", 16, 16),
        ("v6e-256", "v6e:16x16", 256, 256),
        ("v4-8", "v4:2x2x1", 4, 4),  # counted in TensorCores; two of them are one device
        ("v5p-1024", "v5:8x8x8", 512, 512),
        ("tpu7x-8", "tpu7x:2x2x1", 4, 8),  # counted in TensorCores, each a device
        ("2xv5e-256", "v5e:16x16", 512, 512),
        ("V5E-16", "v5e:4x4", 16, 16),
    ],
)
def test_a_name_gives_its_chips_and_devices(name, library, chips, devices):
    found = find_slice(name)
    assert (found.library_name, found.chips, found.devices) == (library, chips, devices)


@pytest.mark.parametrize(
    ("name", "wraps"),
    [
        ("v5e-64", (False, False, False)),
        ("v5e-128", (False, True, False)),  # 8 x 16
        ("v6e-256", (True, True, False)),
        ("v5p-64", (False, False, False)),  # 2 x 4 x 4
        ("v5p-128", (True, True, True)),
        ("v4-384", (True, True, True)),  # 4 x 4 x 12
        ("2xv5p-1024", (True, True, True)),
    ],
)
def test_cubes_and_axes_of_sixteen_chips_have_links_that_join_both_ends(name, wraps):
    found = find_slice(name)
    assert found.wraps == wraps and found.library_options.get("wrap", (False,) * 3) == wraps


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e-17", ["v5e-8 or v5e-16", "counts chips"]),
        ("v5p-1022", ["v5p-1024", "TensorCores"]),
        ("v5ee-16", ["'v5ee'", "did you mean 'v5e'?"]),
        ("big", ["'big'", "v5e-256"]),
        ("0xv5e-16", ["at least one slice"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, words):
    with pytest.raises(UserError) as refusal:
        find_slice(name)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_figures_of_a_device_are_its_share_of_the_chip():
    v5e, tpu7x = find_slice("v5e-4"), find_slice("tpu7x-8")
    assert v5e.device_flops == 197e12 and v5e.device_hbm == 15.75 * GIB
    assert tpu7x.device_flops == 2307e12 / 2 and tpu7x.device_hbm == 94.75 * GIB


def test_peaks_are_whole_matrix_units_at_the_clock():
    # FLOPs in a cycle: 128 x 128 units of two FLOPs a cell, or 256 x 256 ones
    for generation, chip in CHIPS.items():
        units = chip.flops / chip.clock / (2 * chip.unit**2)
        assert units == pytest.approx(round(units), rel=0.01), generation


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_libtpu_knows_every_usual_slice():
    for generation in CHIPS:
        for name in names(generation):
            found = find_slice(name)
            if found.chips <= 512:
                assert len(slice_devices(found)) == found.devices, name


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_several_slices_are_told_apart():
    devices = slice_devices(find_slice("2xv5e-16"))
    assert sorted(device.slice_index for device in devices) == [0] * 16 + [1] * 16


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
@pytest.mark.parametrize("name", ["v5p-64", "v5p-128", "v5e-256"])
def test_weights_that_a_whole_slice_shares_are_gathered_and_not_summed(name):
    where = find_slice(name)
    mesh = make_mesh(MeshSettings(data=1, fsdp=where.devices), slice_devices(where))
    whole, cut = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("fsdp",)))
    weights = jax.ShapeDtypeStruct((where.devices * 128, 1024), jnp.bfloat16, sharding=cut)
    gather = jax.jit(lambda x: 2 * jax.lax.with_sharding_constraint(x, whole))
    (collective,) = {each.kind for each in costs(parse(gather.lower(weights).compile().as_text())).collectives}
    assert collective == "all-gather"
