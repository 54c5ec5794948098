"""Where the cycles of a compiled step go: products, norms, attention's rest, the stack of layers, loss, optimizer.

In: cycles by operation, which the compiler names after the modules and functions that they were traced from. Out:
cycles by part. An operation that several parts were fused in counts for that of its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from lmjax.plan.hlo import Source

PRODUCTS, COPIES, REST = "products", "copies", "optimizer and casts"
# The first that fits counts. Names read as in transpose(jvp(OneStack))/stack/stack._layers/while/body/...
_NAMED = (
    ("norms", re.compile(r"norm/")),
    ("attention's rest", re.compile("/(cross_)?attention/")),
    ("activations", re.compile("/feed_forward/")),
    ("layers' slices", re.compile("_layers/while/body/(?!closed_call)")),
    ("residuals and embeddings", re.compile(r"jvp\((One|Two)Stacks?\)")),
    ("loss", re.compile(r"jvp\(")),
)


def parts(sources: Mapping[Source, int]) -> dict[str, int]:
    """Cycles by part, the most first."""
    found = Counter[str]()
    for source, cycles in sources.items():
        found[_part(source)] += cycles
    return dict(found.most_common())


def _part(source: Source) -> str:
    if source.product:
        return PRODUCTS
    if source.opcode.startswith("copy"):
        return COPIES
    return next((name for name, pattern in _NAMED if pattern.search(source.name)), REST)
