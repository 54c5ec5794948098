"""What a recipe leaves open is chosen for a slice, and what it gives is kept."""

import dataclasses

import jax
import pytest

from lmjax.errors import UserError
from lmjax.parallel.mesh import mesh_shape
from lmjax.plan.candidates import candidates
from lmjax.plan.compile import slice_devices
from lmjax.plan.layout import FILLED, best, laid_out
from lmjax.plan.predict import Analyst
from lmjax.plan.slices import find_slice, slice_of
from lmjax.settings import SFT, ComputeSettings, DialogueSettings, MeshSettings, TrainSettings
from tests.tiny import for_slice

WHERE = find_slice("v5e-4")
OPEN = {"mesh": MeshSettings(), "compute": ComputeSettings(), "train": TrainSettings()}
RECIPE = for_slice(**OPEN, layers=6, width=512, length=512, data__batch_size=32)
LARGE = for_slice(**OPEN, layers=48, width=4096, length=2048, model__attention__heads=32, data__batch_size=64)


def test_what_is_open_is_the_candidate_that_is_predicted_to_fit_and_be_quickest():
    found = best(RECIPE, WHERE)
    analyst = Analyst(RECIPE, WHERE)
    predicted = {each: analyst.predict(each) for each in candidates(RECIPE, WHERE)}
    fitting = [each for each in predicted.values() if each.memory <= FILLED * WHERE.device_hbm]
    assert predicted[found].memory <= FILLED * WHERE.device_hbm
    assert predicted[found].step_seconds <= 1.02 * min(each.step_seconds for each in fitting)
    chosen = laid_out(RECIPE, WHERE)
    assert chosen == found.applied(RECIPE)
    assert dataclasses.replace(chosen, mesh=RECIPE.mesh, compute=RECIPE.compute, train=RECIPE.train) == RECIPE


def test_more_layers_than_fit_are_computed_again_or_cut_further():
    where = find_slice("v5e-64")
    chosen = laid_out(LARGE, where)
    assert not chosen.compute.unroll_layers  # each of 48 layers would be compiled apart
    assert chosen.compute.remat != "none" and mesh_shape(chosen.mesh, where.devices)["fsdp"] > 1


@pytest.mark.parametrize(
    "given",
    [
        {"mesh": MeshSettings(fsdp=2)},
        {"compute": ComputeSettings(remat="full", vector_memory=16, loss_chunk=512)},
        {"compute": ComputeSettings(unroll_layers=False, attention_block=256)},
        {"train": TrainSettings(microbatches=4)},
    ],
    ids=["mesh", "remat", "loop", "microbatches"],
)
def test_what_is_given_is_kept(given):
    chosen = laid_out(dataclasses.replace(RECIPE, **given), WHERE)
    for part, settings in given.items():
        found, default = getattr(chosen, part), type(settings)()
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            assert value in (getattr(default, field.name), getattr(found, field.name)), field.name
    sizes = mesh_shape(chosen.mesh, WHERE.devices)
    assert sizes["fsdp"] == 2 or "mesh" not in given
    assert chosen.compute.remat != "auto" and chosen.train.microbatches is not None


@pytest.mark.parametrize(
    ("part", "given"),
    [("compute", {"unroll_layers": True}), ("compute", {"remat": "dots"}), ("train", {"microbatches": 128})],
    ids=["many_layers_unrolled", "a_policy_that_is_another_s_program", "more_microbatches_than_are_searched"],
)
def test_what_no_search_would_try_is_kept_where_it_is_given(part, given):
    recipe = for_slice(**OPEN, layers=26, length=256, data__batch_size=256)
    settings = dataclasses.replace(getattr(recipe, part), **given)
    chosen = getattr(laid_out(dataclasses.replace(recipe, **{part: settings}), WHERE), part)
    assert {name: getattr(chosen, name) for name in given} == given


def test_microbatches_that_leave_devices_without_rows_are_refused():
    recipe = for_slice(**OPEN, width=64, length=128, data__batch_size=8, model__attention__heads=1)
    with pytest.raises(UserError, match=r"train\.microbatches = 8: expected a number that leaves the 4 devices"):
        laid_out(dataclasses.replace(recipe, train=TrainSettings(microbatches=8)), WHERE)


def test_a_recipe_that_leaves_nothing_open_stays_as_it_is():
    compute, mesh = ComputeSettings(remat="full", unroll_layers=False), MeshSettings(data=4)
    whole = dataclasses.replace(RECIPE, compute=compute, mesh=mesh, train=TrainSettings(microbatches=2))
    assert laid_out(whole, WHERE) is whole
    offloading = dataclasses.replace(RECIPE, compute=ComputeSettings(remat="up_offloaded"))
    assert laid_out(offloading, WHERE) is offloading
    uneven = dataclasses.replace(RECIPE, mesh=MeshSettings(fsdp=3))
    assert laid_out(uneven, WHERE) is uneven  # whoever builds its step says what does not divide
    other = SFT(dialogue=DialogueSettings())
    assert laid_out(other, WHERE) is other


def test_a_batch_that_no_mesh_divides_is_said():
    odd = for_slice(**OPEN, data__batch_size=1, length=100)
    with pytest.raises(UserError, match="any mesh of 64 devices does not divide the batch and the model"):
        laid_out(odd, find_slice("v5e-64"))


def test_where_nothing_fits_what_needs_the_least_is_chosen():
    huge = for_slice(**OPEN, layers=96, width=12288, length=2048, model__attention__heads=96, data__batch_size=8)
    found = best(huge, WHERE)
    analyst = Analyst(huge, WHERE)
    least = min(analyst.predict(each).memory for each in candidates(huge, WHERE))
    assert analyst.predict(found).memory == least > WHERE.device_hbm


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
@pytest.mark.parametrize("name", ["v5e-1", "v5e-8", "v5e-256", "2xv5e-16", "v4-8", "v5p-64", "2xv5p-128", "tpu7x-16"])
def test_attached_devices_are_known_for_the_slice_that_they_are(name):
    where = find_slice(name)
    devices = slice_devices(where)
    assert slice_of(devices) == where
    if where.chips > 2:
        assert slice_of(devices[1:]) != where


def test_other_devices_are_no_slice():
    assert slice_of(jax.devices()) is None
