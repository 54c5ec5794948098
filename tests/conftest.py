"""Eight CPU devices are forced before jax is imported; rank promotion is an error; real data is optional."""

import gc
import os
import signal
import time

# Where eight devices share a busy core, the last may join a collective minutes after the first; XLA would
# end the whole process after 40 s.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=900"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
# A program of eight devices that waits for the others holds a thread of XLA's for each, and by default there are just
# eight: launching one more program than the client takes would then wait for ever.
os.environ["PJRT_NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
# Tests spend most of their time in XLA's CPU compiler. Without most optimisations it takes a third less, and the
# programs compute the same up to rounding. Processes that tests start inherit this. The fixture `optimized` turns the
# optimisations on for a module, JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment for all.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell starts what it runs in the background deaf to SIGINT, which tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("tests.trained",)

SHARED_DATA = Path(os.environ.get("LMJAX_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


# Folders whose files take longest: they begin first, so that no process waits for the other at the end.
LONGEST = ("plan", "stages", "runs", "evaluate", "rl", "bucket")
LONGEST += ("commands", "tasks", "model", "invariants", "generate", "objective")


def pytest_make_parametrize_id(val, argname):
    """Bytes are no names: compressed ones hold the time, and processes would not agree on what the tests are called."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.parent.name, len(ranks)))


def pytest_runtest_setup(item):
    """Skips a slow test that would begin after LMJAX_SLOW_UNTIL, in seconds since 1970, where a run has to end."""
    until = os.environ.get("LMJAX_SLOW_UNTIL")
    if until and item.get_closest_marker("slow") and time.time() > float(until):
        pytest.skip(f"{item.nodeid}: the time for slow tests is over")


def pytest_xdist_make_scheduler(config, log):
    """One process runs all tests of a file, or of a group, and makes what they share once."""
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class FilesAndGroups(LoadGroupScheduling):
        def _split_scope(self, nodeid):
            return super()._split_scope(nodeid).split("::")[0]

    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return FilesAndGroups(config, log)


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


@pytest.fixture(scope="module")
def optimized():
    """XLA compiles as it does for users: for modules that look at the programs themselves."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def unoptimized():
    """XLA compiles without its optimisations: a third faster, and what is computed is the same."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
