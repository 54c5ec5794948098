"""A bucket on the loopback interface, and a recipe of a few steps."""

from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lmjax
from lmjax.settings import CheckpointSettings, EvaluationSettings, Pretrain
from tests.tiny import over, pretrain, sentences


@pytest.fixture(scope="session")
def storage(tmp_path_factory):
    """The environment of processes that take this server for Google's, this one included, and what the server holds."""
    pytest.importorskip("gcsfs", reason="needs gcsfs, of the extras test and tpu")
    from .fake_bucket import environment, serve

    server, store = serve(["bucket"])
    compiled = str(tmp_path_factory.mktemp("compiled"))  # once, whatever the caches of machines are
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", compiled)
        for name, value in environment(server).items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield store
    server.shutdown()


@pytest.fixture
def bucket(storage, no_charts):
    """What the bucket holds, by name; empty."""
    storage.buckets["bucket"].clear()
    return storage.buckets["bucket"]


@pytest.fixture(scope="session")
def _whole_run(storage, tiny):
    """What the bucket holds when the run of `tiny` in gs://bucket/runs/one is done."""
    assert lmjax.run(tiny(), "gs://bucket/runs/one", quiet=True).exit_code == 0
    return dict(storage.buckets["bucket"])


@pytest.fixture(scope="session")
def here(storage, tiny, tmp_path_factory) -> Path:
    """The same run in a folder of this machine, which nothing changes."""
    folder = tmp_path_factory.mktemp("here") / "run"
    assert lmjax.run(tiny(), folder, quiet=True).exit_code == 0
    return folder


@pytest.fixture
def finished(_whole_run, bucket):
    """The bucket with that run."""
    bucket.update(_whole_run)
    return bucket


@pytest.fixture
def another_machine(tmp_path_factory, monkeypatch) -> Callable[[], None]:
    """A function after which this process is as on a machine that has seen nothing."""

    def move() -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

    return move


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[..., Pretrain]:
    """A function from values of fields to a recipe of 6 steps, saved and evaluated after every second."""
    source = sentences(tmp_path_factory.mktemp("texts") / "text.txt", 99)
    checkpoint = CheckpointSettings(every=2, keep_last=2, keep_best=1)
    own = {"model__context": 48, "model__dropout": 0.1, "train__steps": 6, "checkpoint": checkpoint}
    own["evaluation"] = EvaluationSettings(every=2, batches=1)
    return lambda **changes: pretrain(source, **over(own, changes))
