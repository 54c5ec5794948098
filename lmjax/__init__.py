"""lmjax: a JAX/Flax, TPU-first training stack for language models.

`run(recipe)` trains, `load(checkpoint)` gives back what was trained; both are imported when first used, so that
`import lmjax` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmjax.version import __version__

__all__ = ["__version__", "load", "run"]

if TYPE_CHECKING:
    from lmjax.runs.load import load
    from lmjax.runs.run import run

_HOMES = {"load": "lmjax.runs.load", "run": "lmjax.runs.run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lmjax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
