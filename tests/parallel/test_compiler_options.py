"""What the compiler of each kind of chip is told."""

from types import SimpleNamespace

import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.parallel.compiler_options import compiler_options
from lmjax.settings import ComputeSettings


@pytest.mark.parametrize(
    ("kind", "given", "kibibytes"),
    [
        ("TPU v5 lite", None, "32768"),
        ("TPU v5 lite", 48, "49152"),
        ("TPU v5", None, "49152"),
        ("TPU v6 lite", 64, "65536"),
        ("TPU v4", None, None),
        ("TPU v4", 20, "20480"),
        ("cpu", None, None),
        ("NVIDIA H100", 48, None),
    ],
)
def test_a_tpu_fusion_gets_the_vector_memory_of_the_recipe_or_what_is_usual_for_its_kind(kind, given, kibibytes):
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(device_kind=kind)]))
    found = compiler_options(mesh, ComputeSettings(vector_memory=given))
    assert found == ({} if kibibytes is None else {"xla_tpu_scoped_vmem_limit_kib": kibibytes})


def test_no_vector_memory_is_refused():
    with pytest.raises(UserError, match=r"^ComputeSettings\.vector_memory = 0: expected"):
        ComputeSettings(vector_memory=0)
