"""Damaged files of the planner: what a search has compiled, and saved executables."""

import json

import jax
import jax.numpy as jnp
import pytest

from lmjax.parallel.executable import load_executable, save_executable
from lmjax.parallel.mesh import make_mesh
from lmjax.plan.cache import Cache, Result
from lmjax.settings import MeshSettings, ModelSettings, Pretrain
from tests.plan.test_search_cache import ESTIMATE

from .harness import survives, written
from .mutations import damaged_bytes, damaged_json

pytestmark = pytest.mark.slow


def test_what_a_search_has_compiled(tmp_path, monkeypatch):
    """An entry that cannot be read is compiled again, and what is read can be shown and kept."""
    recipe, said = Pretrain(name="one", model=ModelSettings(vocab_size=512)), []
    cache = Cache(tmp_path, say=said.append)
    cache.put(recipe, "v5e-4", Result(ESTIMATE))
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(Cache, "_path", lambda self, recipe, topology: path)
    text = path.read_text()

    def read():
        found = cache.get(recipe, "v5e-4")
        if found is not None and found.estimate is not None:
            json.dumps(found.estimate.to_dict())
        if found is not None:
            found.to_json()

    survives(written(path, read), lambda rng: damaged_json(text, rng), 1200, 1, always="taken")
    assert len(said) > 600 and max(map(len, said)) < 2_000


def test_saved_executables(tmp_path):
    mesh = make_mesh(MeshSettings())

    def lowered():
        """Anew, for JAX remembers what it compiled."""
        return jax.jit(lambda x: x + 1).lower(jnp.zeros(8))

    path = tmp_path / "step"
    step = lowered()
    save_executable(path, step, step.compile(), mesh, {"model.layers": 1})
    whole = path.read_bytes()
    first, header, payload = whole.split(b"\n", 2)
    assert json.loads(header)["about"] == {"model.layers": 1}
    read = written(path, lambda: load_executable(path, lowered(), mesh, {"model.layers": 1}))

    def make(rng):
        if rng.random() < 0.2:
            return damaged_bytes(whole, rng)
        return b"\n".join([first, damaged_json(header.decode(), rng), payload])

    survives(read, make, 600, 2, always="either")
