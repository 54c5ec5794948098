"""Meshes: inferred sizes, errors that say what would fit, and axes that follow slices."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.parallel.mesh import AXES, check_mesh, make_mesh, mesh_shape
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    FeedForwardSettings,
    MeshSettings,
    ModelSettings,
    Pretrain,
    TrainSettings,
)


def settings(**sizes):
    return MeshSettings(**({"data": 1} | sizes))


@pytest.mark.parametrize("axis", AXES)
def test_minus_one_takes_what_the_other_axes_leave(axis):
    sizes = {"fsdp": 2, "tensor": 3} if axis in ("replica", "data", "sequence") else {"data": 2, "sequence": 3}
    shape = mesh_shape(settings(**sizes, **{axis: -1}), 24)
    assert shape[axis] == 4
    assert math.prod(shape.values()) == 24


def test_by_default_every_device_goes_to_data():
    assert mesh_shape(MeshSettings(), 8) == {"replica": 1, "data": 8, "fsdp": 1, "sequence": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "devices", "message"),
    [
        (
            {"data": -1, "tensor": 3},
            8,
            "mesh.tensor = 3: expected a product that divides the 8 devices; use mesh.tensor = 2 or 4",
        ),
        (
            {"data": 1, "fsdp": 4},
            8,
            "mesh.fsdp = 4: expected a product of 8, one per device; use mesh.fsdp = 8, or -1 for one axis, which then "
            "takes what is left",
        ),
        (
            {"data": -1, "fsdp": 4, "tensor": 6},
            32,
            "mesh.fsdp = 4, mesh.tensor = 6: expected a product that divides the 32 devices; use mesh.tensor = 4 or 8",
        ),
        ({"data": 1}, 4, "mesh.data = 1: expected a product of 4, one per device; use mesh.data = 4, or -1 for one"),
        (
            {"data": -1, "sequence": 3, "tensor": 3},
            8,
            "mesh.sequence = 3, mesh.tensor = 3: expected a product that divides the 8 devices; use sizes whose "
            "product is 8",
        ),
        ({"data": -1, "tensor": 16}, 8, "mesh.tensor = 16: expected a product that divides the 8 devices; use mesh.te"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_the_nearest_that_do(sizes, devices, message):
    with pytest.raises(UserError) as error:
        mesh_shape(MeshSettings(**sizes), devices)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("devices", [1, 6, 8, 12])
def test_what_an_error_suggests_is_accepted(devices):
    for fsdp, tensor, data in itertools.product(range(1, 9), range(1, 9), (1, -1)):
        asked = MeshSettings(data=data, fsdp=fsdp, tensor=tensor)
        try:
            assert math.prod(mesh_shape(asked, devices).values()) == devices
        except UserError as error:
            for part in str(error).split("; use ")[1].split(", or "):
                axis, _, near = part.removeprefix("mesh.").partition(" = ")
                for size in map(int, near.split(" or ") if near else []):
                    mesh_shape(dataclasses.replace(asked, **{axis: size}), devices)


MODEL = ModelSettings(
    width=96,
    vocab_size=120,
    attention=AttentionSettings(heads=12, kv_heads=6),
    feed_forward=FeedForwardSettings(width=144),
)
DATA = DataSettings(sequence_length=60, batch_size=48)


def shape(**sizes):
    return dict.fromkeys(AXES, 1) | sizes


def test_a_mesh_that_cuts_everything_evenly_is_accepted():
    check_mesh(shape(replica=2, data=2, fsdp=3, sequence=4, tensor=6), MODEL, DATA, microbatches=2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"replica": 2, "data": 5},
            "mesh.replica = 2, mesh.data = 5, train.microbatches = 2: expected a product that divides data.batch_size "
            "= 48; use mesh.data = 1 with mesh.sequence = 5, or data.batch_size = 40 or 60",
        ),
        ({"replica": 16, "data": 2}, "mesh.replica = 16, mesh.data = 2, train.microbatches = 2: expected a product t"),
        (
            {"sequence": 8},
            "mesh.sequence = 8: expected a divisor of data.sequence_length = 60; use mesh.data = 2 with mesh.sequence "
            "= 4, or data.sequence_length = 56 or 64",
        ),
        ({"tensor": 5}, "mesh.tensor = 5: expected a divisor of model.attention.heads = 12; use mesh.sequence = 5 wit"),
        (
            {"tensor": 4},
            "mesh.tensor = 4: expected a divisor of model.attention.kv_heads = 6; use mesh.data = 2 with mesh.tensor "
            "= 2, or model.attention.kv_heads = 4 or 12",
        ),
        ({"fsdp": 4, "data": 2}, None),
        ({"fsdp": 24}, None),
    ],
)
def test_a_mesh_that_cuts_unevenly_names_the_axes_that_are_cut_and_what_would_fit(sizes, message):
    if message is None:
        check_mesh(shape(**sizes), MODEL, DATA, microbatches=2)
        return
    with pytest.raises(UserError) as error:
        check_mesh(shape(**sizes), MODEL, DATA, microbatches=2)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "sizes", "message"),
    [
        (
            {"vocab_size": 121},
            {"tensor": 2},
            "mesh.tensor = 2: expected a divisor of model.vocab_size = 121; use mesh.data = 2 with mesh.tensor = 1, or "
            "model.vocab_size = 122",  # and not 120: the tokenizer may have all 121
        ),
        (
            {"feed_forward": FeedForwardSettings(width=143)},
            {"tensor": 3},
            "mesh.tensor = 3: .*model.feed_forward.width = 143; use .* model.feed_forward.width = 141 or 144",
        ),
        ({"width": 90, "attention": AttentionSettings(heads=6)}, {"fsdp": 4}, "mesh.fsdp = 4: .* model.width = 90"),
    ],
)
def test_vocabulary_width_and_feed_forward_must_divide_too(change, sizes, message):
    with pytest.raises(UserError, match=message):
        check_mesh(shape(**sizes), dataclasses.replace(MODEL, **change), DATA, microbatches=1)


def followed(recipe, sizes, advice):
    """The recipe and the mesh with one of an error's suggestions, as in "mesh.data = 2 with mesh.tensor = 1"."""
    for part in advice.split(" with "):
        section, _, name = part.partition(" = ")[0].partition(".")
        size = int(part.partition(" = ")[2])
        if section == "mesh":
            sizes = sizes | {name: size}
            continue
        owner, _, inner = name.rpartition(".")
        settings = getattr(recipe, section)
        if owner:
            name, size = owner, dataclasses.replace(getattr(settings, owner), **{inner: size})
        recipe = dataclasses.replace(recipe, **{section: dataclasses.replace(settings, **{name: size})})
    return recipe, sizes


def suggestions(message):
    for part in message.split("; use ")[1].split(", or "):
        field, _, sizes = part.rpartition(" = ")
        yield from (f"{field} = {size}" for size in sizes.split(" or "))


@pytest.mark.parametrize("devices", [16, 24])
def test_what_an_uneven_cut_suggests_is_accepted_on_as_many_devices(devices):
    model = dataclasses.replace(MODEL, vocab_size=258, context=64)
    refused = 0
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    for data, fsdp, tensor in itertools.product(sizes, sizes, sizes):
        rest = devices // (data * fsdp * tensor)
        if data * fsdp * tensor * rest != devices:
            continue
        mesh = shape(data=data, fsdp=fsdp, tensor=tensor, sequence=rest)
        for batch, parts in ((7, 1), (48, 2), (24, 3)):
            recipe = Pretrain(model=model, data=dataclasses.replace(DATA, batch_size=batch))
            recipe = dataclasses.replace(recipe, train=TrainSettings(microbatches=parts))
            try:
                check_mesh(mesh, recipe.model, recipe.data, parts)
            except UserError as error:
                if "no one of them" in str(error):
                    continue
                for advice in suggestions(str(error)):
                    changed, there = followed(recipe, mesh, advice)
                    refused += 1
                    assert math.prod(there.values()) == devices, advice
                    check_mesh(there, changed.model, changed.data, changed.train.microbatches)
    assert refused > 50


def test_what_no_one_change_mends_says_so():
    with pytest.raises(UserError, match="no one of them is enough"):
        check_mesh(shape(replica=5, tensor=5), MODEL, DATA, microbatches=1)


def test_every_batch_size_of_a_ramp_must_divide():
    ramped = dataclasses.replace(DATA, ramp_from=4, ramp_tokens=1000)
    with pytest.raises(
        UserError, match=r"mesh\.fsdp = 8: expected a divisor of data\.ramp_from = 4; use mesh\.fsdp = 4 with mesh"
    ):
        check_mesh(shape(fsdp=8), MODEL, ramped, microbatches=1)


def test_a_mesh_holds_every_device_once_under_the_five_names():
    mesh = make_mesh(settings(fsdp=2, sequence=2, tensor=-1))
    assert dict(mesh.shape) == shape(fsdp=2, sequence=2, tensor=2)
    assert mesh.axis_names == AXES
    assert set(mesh.devices.flat) == set(jax.devices())


@dataclasses.dataclass(frozen=True)
class Device:
    """As much of a TPU as mesh_utils looks at."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "not in mesh_utils' tables"
    core_on_chip: int = 0

    @property
    def process_index(self):
        return self.slice_index

    @property
    def coords(self):
        return (self.id % 8 % 4, self.id % 8 // 4, 0)


def slices(count):
    return [Device(id=8 * index + i, slice_index=index) for index in range(count) for i in range(8)]


@pytest.mark.parametrize("replica", [2, 4])
def test_replica_goes_across_slices_and_every_other_axis_stays_inside_one(replica):
    mesh = make_mesh(settings(replica=replica, data=-1, tensor=2), slices(2))
    index = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert dict(mesh.shape) == shape(replica=replica, data=8 // replica, tensor=2)
    for position, block in enumerate(index):
        assert set(block.flat) == {position * 2 // replica}


def test_a_replica_axis_that_cannot_span_the_slices_is_refused():
    with pytest.raises(UserError, match=r"mesh\.replica = 1: .* multiple of the 2 slices; use mesh\.replica = 2"):
        make_mesh(settings(data=-1), slices(2))
