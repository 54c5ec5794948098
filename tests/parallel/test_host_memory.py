"""The CPU backend's memory is kept between steps, or left alone where the user has set up malloc."""

import json
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")

PROGRAM = """
import json, resource
{call}
import jax, jax.numpy as jnp
step = jax.jit(lambda x: x[:, None] * x[None, :])
x = jnp.arange(4000.0)
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(dict(kept=kept, faults=min(faults[2:]))))
"""
KEEP = "from lmjax.parallel.host_memory import keep_freed_memory; kept = keep_freed_memory()"


def run(call, **variables):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "XLA_"))}
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    done = subprocess.run(command, env=plain | variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_program_meets_no_page_faults_once_it_has_run():
    """The program's result of 4,000 x 4,000 takes 15,625 pages of 4 KiB, or 31 of 2 MiB."""
    without, found = run("kept = False"), run(KEEP)
    assert found["kept"]
    assert without["faults"] > 10 * max(1, found["faults"])


@pytest.mark.parametrize(
    "variable",
    [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=3"}],
    ids=lambda v: next(iter(v)),
)
def test_a_malloc_that_the_user_has_set_up_is_left_alone(variable):
    assert not run(KEEP, **variable)["kept"]
