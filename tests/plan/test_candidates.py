"""What a search chooses from: everything that divides, nothing that does not, and options that say the same."""

import dataclasses
import itertools
import math
import shlex

import pytest

from lmjax.cli import parser
from lmjax.commands.command import overridden_recipe
from lmjax.errors import UserError
from lmjax.plan.candidates import Candidate, candidates
from lmjax.plan.slices import find_slice
from lmjax.settings import ComputeSettings, MeshSettings, Pretrain, TrainSettings
from tests.tiny import changed, for_slice

RECIPE = for_slice(width=256, length=512)


def test_candidates_are_all_that_divides_devices_rows_heads_and_sequence():
    found = candidates(RECIPE, find_slice("v5e-8"))
    assert len(set(found)) == len(found)
    meshes = {each.mesh[1:] for each in found}
    expected = set()
    for data, fsdp, sequence, tensor in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), (1, 2)):
        if data * fsdp * sequence * tensor == 8 and 512 // sequence % 128 == 0:
            expected.add((data, fsdp, sequence, tensor))
    assert meshes == expected  # tensor is at most the 2 heads, sequence at most 4 x 128 tokens
    for each in found:
        assert math.prod(each.mesh) == 8 and 8 // each.microbatches % each.row_shards == 0
    microbatches = {each.microbatches for each in found if each.mesh == (1, 2, 1, 2, 2)}
    assert microbatches == {1, 2, 4}


def test_layers_are_unrolled_that_a_loop_would_take_where_they_are_few_or_it_is_asked_for():
    where = find_slice("v5e-8")

    def unrolled(layers, **compute):
        recipe = for_slice(layers=layers, width=256, length=512, compute=ComputeSettings(**compute))
        return {each.unrolled for each in candidates(recipe, where)}

    assert unrolled(24) == unrolled(26, unroll_layers=True) == {False, True}
    assert unrolled(26) == unrolled(24, scan_layers=False) == {False}  # apart already


def test_across_slices_only_rows_are_cut():
    found = candidates(RECIPE, find_slice("2xv5e-4"))
    assert {each.sizes["replica"] for each in found} == {2}


def test_a_given_mesh_is_kept():
    found = candidates(RECIPE, find_slice("v5e-8"), MeshSettings(fsdp=4))
    assert {each.mesh for each in found} == {(1, 2, 4, 1, 1)}


def test_microbatches_divide_every_batch_of_a_ramp():
    ramping = changed(RECIPE, data__ramp_from=4, data__ramp_tokens=10_000)
    found = candidates(ramping, find_slice("v5e-1"))
    assert {each.microbatches for each in found} == {1, 2, 4}


def test_a_batch_that_no_mesh_divides_is_an_error_that_says_which():
    odd = changed(RECIPE, data__sequence_length=128, data__batch_size=3)
    with pytest.raises(UserError, match=r"any mesh of 64 devices .*data\.batch_size"):
        candidates(odd, find_slice("v5e-64"))
    with pytest.raises(UserError, match=r"the mesh does not divide"):
        candidates(odd, find_slice("v5e-4"), MeshSettings(data=4))


def test_the_options_are_what_run_needs_to_be_told(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(
        "from lmjax.settings import MeshSettings, Pretrain\n"
        "def recipe():\n    return Pretrain(mesh=MeshSettings(data=1, fsdp=2))\n"
    )
    recipe = Pretrain(mesh=MeshSettings(data=1, fsdp=2))
    chosen = Candidate((1, 1, 4, 1, 2), 4, "full", 512)
    options = chosen.options(recipe)
    assert shlex.join(options) == (
        "--mesh.fsdp 4 --mesh.tensor 2 --compute.unroll_layers False --compute.remat full "
        "--compute.attention_block 512 --train.microbatches 4"
    )
    arguments, rest = parser().parse_known_args(["run", str(path), *options])
    told, applied = overridden_recipe(arguments, rest), chosen.applied(recipe)
    assert told.mesh.sizes == applied.mesh.sizes
    assert dataclasses.replace(told, mesh=applied.mesh) == applied


def test_a_block_of_the_recipes_own_can_be_taken_back(tmp_path):
    recipe = Pretrain(
        mesh=MeshSettings(data=1),
        compute=ComputeSettings(attention_block=512, remat="none", unroll_layers=False),
        train=TrainSettings(microbatches=2),
    )
    options = Candidate((1, 1, 1, 1, 1), 2, "none").options(recipe)
    assert options == ["--compute.attention_block", "None"]
