"""The names of the sources of a recipe, and their weights in a mixture.

In: the settings of sources, and the number of rows of each. Out: distinct names, and weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MOST_EPOCHS = 4  # up to this many, repeated text is about as good as new text


class Source(Protocol):
    """The settings of a source that this module reads."""

    @property
    def kind(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def weight(self) -> float | None: ...


def source_names(sources: Sequence[Source]) -> list[str]:
    """A name for each source: the last part of its path, else the path, else the path with a number.

    The first of these forms that gives distinct names is used.
    """
    full = [source.path or f"{source.kind} {source.split}" for source in sources]
    last = [name.rstrip("/").rsplit("/", 1)[-1] or name for name in full]
    numbered = [f"{name} #{number}" for number, name in enumerate(full)]
    return next(names for names in (last, full, numbered) if len(set(names)) == len(names))


def mixture_weights(weights: Sequence[float | None], rows: Sequence[int]) -> list[float]:
    """The weights of a mixture; without any weight, the rows of each source in one epoch.

    Rows hold equally many tokens: sources without weights count by their tokens, and end an epoch together.
    """
    known = [weight for weight in weights if weight is not None]
    if known and len(known) < len(weights):
        raise ValueError(f"weights {list(weights)}: expected all or none")
    return known or [float(count) for count in rows]


def lines_of(sources: Sequence[Source], sizes: Sequence[int], epochs: Sequence[float], unit: str) -> list[str]:
    """A line for each source: its size in `unit`, how much of it a run reads, and the epochs.

    A warning follows for text (unit "tokens") that is read more than MOST_EPOCHS times.
    """
    lines = []
    for name, size, read in zip(source_names(sources), sizes, epochs, strict=True):
        lines.append(f"{name}: {size:,} {unit}, {round(size * read):,} planned, {read:.2f} epochs")
        if unit == "tokens" and read > MOST_EPOCHS:
            lines.append(
                f"warning: {name} is read {read:.1f} times; text that is repeated more than {MOST_EPOCHS} times adds "
                "little (Muennighoff et al. 2023): give more text, fewer steps or another weight"
            )
    return lines
