"""A bucket on the loopback interface, and a recipe of a few steps."""

import random
from collections.abc import Callable

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lmjax
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    SourceSettings,
    TrainSettings,
)


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
def bucket(storage):
    """What the bucket holds, by name; empty."""
    storage.buckets["bucket"].clear()
    return storage.buckets["bucket"]


@pytest.fixture(scope="session")
def _whole_run(storage, tiny):
    """What the bucket holds when the run of `tiny` in gs://bucket/runs/one is done."""
    assert lmjax.run(tiny(), "gs://bucket/runs/one", quiet=True).exit_code == 0
    return dict(storage.buckets["bucket"])


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
    """A function from parts of a recipe to a recipe of 6 steps, saved and evaluated after every second."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    rng = random.Random(0)
    path.write_text("".join(" ".join(rng.choices(("the", "cat", "sat", "on", "mats"), k=9)) + "\n" for _ in range(99)))
    source = (SourceSettings(kind="text", path=str(path), documents="line"),)

    def make(**changes) -> Pretrain:
        parts = {
            "name": "tiny",
            "data": DataSettings(train=source, validation=source, sequence_length=16, batch_size=8),
            "model": ModelSettings(layers=1, width=16, context=48, attention=AttentionSettings(heads=2), dropout=0.1),
            "optimizer": OptimizerSettings(learning_rate=1e-2),
            "train": TrainSettings(steps=6),
            "evaluation": EvaluationSettings(every=2, batches=1),
            "checkpoint": CheckpointSettings(every=2, keep_last=2, keep_best=1),
            "log": LogSettings(every=1, tensorboard=False),
        }
        return Pretrain(**(parts | changes))

    return make
