"""A run whose step comes from a file: the same end as one that compiles, and what does not fit ends it."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lmjax
from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.parallel.executable import save_executable
from lmjax.parallel.mesh import make_mesh
from lmjax.plan.target import target_of
from lmjax.settings import CheckpointSettings, Pipeline
from lmjax.settings.recipe_files import to_json
from lmjax.stages import pretrain as stage
from lmjax.stages.train_stage import about_step, by_rows
from lmjax.tasks.resolved import resolve
from lmjax.tasks.task import Session
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest
from tests.running import assert_same_bits


@pytest.fixture(scope="module")
def mesh(tiny):
    return make_mesh(tiny().mesh, jax.devices()[:2])


def write(path, recipe, mesh):
    """What `lmjax plan --save` does, for devices that are here."""
    target = target_of(recipe)
    lowered, about = target.lower(mesh), about_step(target.resolved)
    jax.config.update("jax_enable_compilation_cache", False)  # a CPU program that was loaded cannot be written again
    compilation_cache.reset_cache()
    compiled = lowered.compile()
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
    save_executable(path, lowered, compiled, mesh, about)


@pytest.fixture(scope="module")
def file(tiny, mesh, tmp_path_factory):
    path = tmp_path_factory.mktemp("executable") / "step.bin"
    write(path, tiny(), mesh)
    return path


@pytest.fixture
def pretrain(mesh, monkeypatch):
    """A function (recipe, workdir, executable) -> the state at the end, and what was said."""
    monkeypatch.setattr("lmjax.tasks.resolved.make_mesh", lambda settings: mesh)
    said: list[str] = []
    monkeypatch.setattr(ProgressDisplay, "say", lambda self, line: said.append(line))

    def run(recipe, workdir, executable=None):
        workdir.mkdir()
        session = Session(StopRequest(), ProgressDisplay(silent=True), executable)
        return stage.pretrain(resolve(recipe, folder=workdir), session).state, said

    return run


def test_a_loaded_step_trains_to_the_bits_of_a_compiled_one(tiny, file, pretrain, tmp_path):
    loaded, said = pretrain(tiny(), tmp_path / "loaded", file)
    assert f"the step was loaded from {file}" in said
    compiled, _ = pretrain(tiny(), tmp_path / "compiled")
    assert_same_bits(loaded, compiled)


def test_only_full_batches_are_given_to_the_loaded_step():
    step = by_rows(8, lambda state, batch: "loaded", lambda state, batch: "compiled")
    assert [step(None, {"tokens": np.zeros((rows, 2))}) for rows in (4, 8)] == ["compiled", "loaded"]


def test_what_does_not_decide_the_step_may_differ_and_what_does_is_named(tiny, file, pretrain, tmp_path):
    other = dataclasses.replace(tiny(), name="other", checkpoint=CheckpointSettings(every=5))
    pretrain(other, tmp_path / "other", file)
    optimizer = dataclasses.replace(tiny().optimizer, weight_decay=0.2)
    with pytest.raises(UserError, match=r"differs in optimizer\.weight_decay 0\.1, here 0\.2; compile it anew"):
        pretrain(tiny(optimizer=optimizer), tmp_path / "decay", file)
    with pytest.raises(UserError, match=r"differs in data\.batch_size 8, here 16"):
        pretrain(tiny(data__batch_size=16), tmp_path / "rows", file)


def test_the_file_is_no_part_of_the_recipe(tiny, file):
    assert "executable" not in to_json(tiny())


def test_a_pipeline_takes_no_executable(tiny, file, tmp_path):
    with pytest.raises(UserError, match=r"--executable .*: expected a recipe that pretrains"):
        lmjax.run(Pipeline("both", (tiny(),)), tmp_path / "workdir", executable=file)
    assert not (tmp_path / "workdir").exists()


def test_a_mistake_ends_the_command_with_2(file, tmp_path, capsys):
    assert main(["run", "instructgpt", "--workdir", str(tmp_path / "run"), "--executable", str(file)]) == 2
    assert "--executable" in capsys.readouterr().err
