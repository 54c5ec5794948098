"""Executables in files: another process runs them as its own, and what does not fit is refused by name."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lmjax.data.batch import FIELD_DTYPES
from lmjax.errors import UserError
from lmjax.parallel import executable
from lmjax.parallel.executable import identity, load_executable, save_executable
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.placement import batch_sharding, init_state
from lmjax.plan.target import target_of
from lmjax.settings import MeshSettings
from lmjax.settings.recipe_files import to_json
from tests.tiny import pretrain

RECIPE = pretrain(model__vocab_size=258, mesh=MeshSettings(data=2, fsdp=2, tensor=2))
# What the other process does: it knows the recipe as JSON, and where to write.
OTHER = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
from pathlib import Path
from lmjax.parallel.executable import save_executable
from lmjax.settings.recipe_files import from_json
from tests.parallel.test_executable import lowered_step
mesh, lowered = lowered_step(from_json(sys.argv[1]))
save_executable(Path(sys.argv[2]), lowered, lowered.compile(), mesh, {"model.layers": 1, "train.steps": 5})
"""


def lowered_step(recipe):
    mesh = make_mesh(recipe.mesh)
    return mesh, target_of(recipe).lower(mesh)


@pytest.fixture(scope="module")
def here():
    """The mesh, and the step as this process lowers it."""
    return lowered_step(RECIPE)


@pytest.fixture
def fresh():
    """The same, lowered anew: JAX remembers what it compiled of the other."""
    return lowered_step(RECIPE)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The step as another process compiled it."""
    path = tmp_path_factory.mktemp("executable") / "step.bin"
    command = [sys.executable, "-c", OTHER, to_json(RECIPE), str(path)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    return path


@pytest.fixture
def no_compilation(monkeypatch):
    """Compiling anything is an error."""
    from jax._src import compiler

    def refuse(*_, **__):
        raise AssertionError("something was compiled")

    monkeypatch.setattr(compiler, "backend_compile_and_load", refuse)


def changed(file, tmp_path, **parts):
    """A copy of the file whose header says something else."""
    first, header, payload = file.read_bytes().split(b"\n", 2)
    copy = tmp_path / "changed.bin"
    copy.write_bytes(first + b"\n" + json.dumps(json.loads(header) | parts).encode() + b"\n" + payload)
    return copy


def steps(step, mesh):
    """The bytes of the state and the loss after three steps."""
    program = target_of(RECIPE).build(mesh)
    state = init_state(program.model, program.optimizer, 0, mesh)
    step = program.with_numbers(step, program.numbers)
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (8, 16)).astype(dtype) for name, dtype in FIELD_DTYPES.items()}
    batch = {name: jax.device_put(array, batch_sharding(mesh)) for name, array in arrays.items()}
    for _ in range(3):
        state, metrics = step(state, batch)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state, metrics["loss"]))]


def test_another_process_s_executable_gives_the_bits_of_one_compiled_here(file, here, fresh):
    mesh, lowered = fresh
    assert steps(load_executable(file, lowered, mesh, {}), mesh) == steps(here[1].compile(), mesh)


def test_loading_compiles_nothing_and_leaves_jax_s_cache_as_it_was(file, fresh, no_compilation):
    mesh, lowered = fresh
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_raise_persistent_cache_errors
    load_executable(file, lowered, mesh, {})
    assert (jax.config.jax_compilation_cache_dir, jax.config.jax_raise_persistent_cache_errors) == before
    assert executable.compilation_cache._cache is None


def test_no_object_is_read_from_a_file(file):
    source = Path(executable.__file__).read_text()
    assert "import pickle" not in source and "serialize_executable" not in source
    first, header, _ = file.read_bytes().split(b"\n", 2)
    assert first == b"lmjax executable" and json.loads(header)["format"] == 1


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("versions", {"jax": "0.0.1"}, "versions: .*jax '0.0.1', here"),
        ("device_kind", "TPU v5 lite", "devices: 'TPU v5 lite', here 'cpu'"),
        ("places", [[0, 0]] * 4, "places of the devices in the slice: 4 devices, here 8"),
        ("places", [[0, 0]] * 8, r"places .*: \[0, 0\], here \[1, 0\]"),
        ("mesh", {"fsdp": 8}, "mesh: data None, here 2, fsdp 8, here 2"),
        ("options", {"xla_vmem": "1"}, "compiler options: xla_vmem '1', here None"),
        ("format", 99, "its format is 99"),
    ],
)
def test_a_file_for_something_else_is_refused_by_name(file, here, tmp_path, no_compilation, part, value, words):
    mesh, lowered = here
    with pytest.raises(UserError, match=words):
        load_executable(changed(file, tmp_path, **{part: value}), lowered, mesh, {})


def test_another_program_is_refused_with_the_fields_that_differ(file, no_compilation):
    deeper = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, layers=2))
    mesh, lowered = lowered_step(deeper)
    with pytest.raises(UserError, match=r"differs in model\.layers 1, here 2; compile it anew"):
        load_executable(file, lowered, mesh, {"model.layers": 2, "train.steps": 5})
    with pytest.raises(UserError, match="differs in lmjax's own code"):
        load_executable(file, lowered, mesh, {"model.layers": 1, "train.steps": 5})


def test_fields_that_leave_the_program_as_it_is_do_not_matter(file, fresh, no_compilation):
    mesh, lowered = fresh
    load_executable(file, lowered, mesh, {"train.steps": 6})


def test_damage_is_told_from_other_files(file, here, tmp_path, no_compilation):
    mesh, lowered = here
    cut = tmp_path / "cut.bin"
    cut.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match="not whole"):
        load_executable(cut, lowered, mesh, {})
    other = tmp_path / "other.bin"
    other.write_bytes(b"\x80\x04\x95")  # how a pickle begins
    for path, word in ((other, "expected a file that lmjax plan --save wrote"), (tmp_path / "none", "No such file")):
        with pytest.raises(UserError, match=word):
            load_executable(path, lowered, mesh, {})


def test_an_executable_that_the_runtime_cannot_read_is_an_error_and_not_a_compilation(fresh, tmp_path, no_compilation):
    mesh, lowered = fresh

    class Broken:
        def runtime_executable(self):
            return self

        def serialize(self):
            return b"no executable"

    save_executable(tmp_path / "broken.bin", lowered, Broken(), mesh, {})
    with pytest.raises(UserError, match="does not take this executable"):
        load_executable(tmp_path / "broken.bin", lowered, mesh, {})


def test_the_same_step_is_known_again_and_others_are_not(here):
    mesh, lowered = here
    assert identity(lowered, mesh) == identity(*reversed(lowered_step(RECIPE)))
    smoother = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, label_smoothing=0.1))
    assert identity(lowered, mesh).module != identity(*reversed(lowered_step(smoother))).module
