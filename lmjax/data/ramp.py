"""How many rows a step has, and how many rows and tokens came before it, while the batch size ramps up.

GPT-3 raised its batch size linearly over the first 4 to 12 billion tokens (Brown et al. 2020, appendix B). Here the
line is cut into `ramp_sizes` constant pieces, so that few shapes are compiled, and everything is O(1) in the step.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from lmjax.settings import DataSettings


class RampTable(NamedTuple):
    """One entry per piece of the ramp; the last piece never ends."""

    first_steps: tuple[int, ...]
    batch_sizes: tuple[int, ...]  # rows
    tokens_before: tuple[int, ...]  # the tokens of all steps before the piece


class BatchRamp:
    """The pieces of the ramp. Tokens are counted as rows x sequence_length, padding included.

    With n sizes, the i-th (from 0) begins once i / (n - 1) of `ramp_tokens` have been seen, so the full batch size
    begins where the ramp ends. Sizes are rounded to multiples of `ramp_from`, except the full one; equal ones merge.
    """

    def __init__(self, settings: DataSettings) -> None:
        sizes = _sizes(settings)
        row_tokens = settings.sequence_length
        first_steps, tokens_before = [0], [0]
        for piece, size in enumerate(sizes[:-1], start=1):
            ends_at = settings.ramp_tokens * piece / (len(sizes) - 1)
            steps = max(1, -int(-(ends_at - tokens_before[-1]) // (size * row_tokens)))
            first_steps.append(first_steps[-1] + steps)
            tokens_before.append(tokens_before[-1] + steps * size * row_tokens)
        self.table = RampTable(tuple(first_steps), tuple(sizes), tuple(tokens_before))
        self._row_tokens = row_tokens

    def batch_size_at(self, step: int) -> int:
        """Rows of this step."""
        return self.table.batch_sizes[self._piece(step)]

    def tokens_at(self, step: int) -> int:
        """Tokens of all steps before this one."""
        piece = self._piece(step)
        steps = step - self.table.first_steps[piece]
        return self.table.tokens_before[piece] + steps * self.table.batch_sizes[piece] * self._row_tokens

    def rows_at(self, step: int) -> int:
        """Rows of all steps before this one."""
        return self.tokens_at(step) // self._row_tokens

    def _piece(self, step: int) -> int:
        if step < 0:
            raise ValueError(f"step {step} is before the first one, 0")
        return bisect_right(self.table.first_steps, step) - 1


def _sizes(settings: DataSettings) -> list[int]:
    """Increasing batch sizes, the full one last."""
    start, full, count = settings.ramp_from, settings.batch_size, settings.ramp_sizes
    if start is None or count == 1:
        return [full]
    line = [start + (full - start) * piece / (count - 1) for piece in range(count - 1)]
    return sorted({round(size / start) * start for size in line} - {full} | {full})
