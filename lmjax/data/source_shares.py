"""What the sources of a recipe are called, and how much each of them counts in a mixture.

In: the settings of sources, and how many rows each of them has. Out: names that tell them apart, and weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MOST_EPOCHS = 4  # up to which repeated text is about as good as new text


class Source(Protocol):
    """What is asked of a source's settings here."""

    @property
    def kind(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def weight(self) -> float | None: ...


def source_names(sources: Sequence[Source]) -> list[str]:
    """A name for each source: the last part of its path, or the whole path, or that with the source's number, whatever
    is the first to tell all of them apart."""
    full = [source.path or f"{source.kind} {source.split}" for source in sources]
    last = [name.rstrip("/").rsplit("/", 1)[-1] or name for name in full]
    numbered = [f"{name} #{number}" for number, name in enumerate(full)]
    return next(names for names in (last, full, numbered) if len(set(names)) == len(names))


def mixture_weights(weights: Sequence[float | None], rows: Sequence[int]) -> list[float]:
    """The weights of a mixture: those that are given, or where none is, the rows of each source in one epoch.

    Rows hold equally many tokens: sources without weights count by their tokens, and end an epoch together.
    """
    known = [weight for weight in weights if weight is not None]
    if known and len(known) < len(weights):
        raise ValueError(f"weights {list(weights)}: expected all or none")
    return known or [float(count) for count in rows]


def lines_of(sources: Sequence[Source], sizes: Sequence[int], epochs: Sequence[float], unit: str) -> list[str]:
    """A line for each source: how much it holds in `unit`, how much of it a run reads, and how many epochs that is.

    A warning follows for text, whose unit is "tokens", that is read more than MOST_EPOCHS times.
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
