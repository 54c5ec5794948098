"""Eight CPU devices are forced before jax is imported; rank promotion is an error; real data is optional."""

import gc
import os

# Where eight devices share a busy core, the last may join a collective minutes after the first; XLA would
# end the whole process after 40 s.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=900"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
# A program of eight devices that waits for the others holds a thread of XLA's for each, and by default there are just
# eight: launching one more program than the client takes would then wait for ever.
os.environ["PJRT_NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED_DATA = Path(os.environ.get("LMJAX_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_for_later_modules():
    """A process that runs every module would hold gigabytes of compiled programs at the end.

    What asyncio lost in a module is also told of in it: tracebacks that are written while Python 3.11 builds a syntax
    tree break the tree (test_architecture.py builds them; "AST constructor recursion depth mismatch").
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def shared_data():
    """A function from a data set's name to its folder; skips the test where the folder is absent."""

    def folder(name: str) -> Path:
        if not (SHARED_DATA / name).is_dir():
            pytest.skip(f"needs the public data set {name!r}: {SHARED_DATA / name} is absent")
        return SHARED_DATA / name

    return folder


@pytest.fixture
def unoptimized():
    """XLA compiles without its optimisations: a third faster, and what is computed is the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
