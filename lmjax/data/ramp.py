"""The rows of a step, and the rows and tokens before it, under a ramp of the batch size.

GPT-3 raised its batch size linearly over the first 4 to 12 billion tokens (Brown et al. 2020, appendix B). Here the
line is cut into `ramp_sizes` constant pieces, so that few shapes are compiled; all queries are O(1) in the step.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from lmjax.settings import DataSettings


class RampTable(NamedTuple):
    """One entry per piece of the ramp; the last piece has no end."""

    first_steps: tuple[int, ...]
    batch_sizes: tuple[int, ...]  # rows
    tokens_before: tuple[int, ...]  # the tokens of all steps before the piece


class _Piece(NamedTuple):
    first_step: int
    batch_size: int
    tokens_before: int
    step_tokens: int


class BatchRamp:
    """The pieces of the ramp. Tokens are counted as rows x sequence_length, padding included.

    With n sizes, the i-th (from 0) begins after i / (n - 1) of `ramp_tokens`, so that the full batch size begins where
    the ramp ends. Sizes are rounded to multiples of `ramp_from`, except the full one; equal ones merge.
    `earlier_batches` come first, each with its own ramp; the current settings continue from their tokens.
    """

    def __init__(self, settings: DataSettings) -> None:
        pieces: list[_Piece] = []
        step, tokens = 0, 0
        for until, batch_size, length, ramp_from, ramp_tokens, ramp_sizes in settings.earlier_batches:
            earlier = DataSettings(
                batch_size=batch_size,
                sequence_length=length,
                ramp_from=ramp_from or None,
                ramp_tokens=ramp_tokens,
                ramp_sizes=ramp_sizes,
            )
            pieces += [piece for piece in _pieces(earlier, step, tokens) if piece.first_step < until]
            step, tokens = until, pieces[-1].tokens_before + (until - pieces[-1].first_step) * pieces[-1].step_tokens
        pieces += _pieces(settings, step, tokens)
        first_steps, batch_sizes, tokens_before, self.step_tokens = zip(*pieces, strict=True)  # one entry per piece
        self.table = RampTable(first_steps, batch_sizes, tokens_before)
        self._row_tokens = settings.sequence_length

    def batch_size_at(self, step: int) -> int:
        """Rows of this step."""
        return self.table.batch_sizes[self._piece(step)]

    def tokens_at(self, step: int) -> int:
        """Tokens of all steps before this one."""
        piece = self._piece(step)
        steps = step - self.table.first_steps[piece]
        return self.table.tokens_before[piece] + steps * self.step_tokens[piece]

    def rows_at(self, step: int) -> int:
        """Rows of all steps before this one."""
        return self.tokens_at(step) // self._row_tokens

    def _piece(self, step: int) -> int:
        if step < 0:
            raise ValueError(f"step {step}: expected 0 or more")
        return bisect_right(self.table.first_steps, step) - 1


def _pieces(settings: DataSettings, step: int, tokens: int) -> list[_Piece]:
    """The pieces of a ramp from `step` on, before which `tokens` were read; the last one has no end."""
    sizes, read = _sizes(settings), tokens
    pieces = []
    for number, size in enumerate(sizes, start=1):
        pieces.append(_Piece(step, size, tokens, size * settings.sequence_length))
        if number < len(sizes):
            ends_at = settings.ramp_tokens * number / (len(sizes) - 1)
            if ends_at <= read:  # before the first step of these settings
                pieces.pop()
                continue
            steps = max(1, -int(-(ends_at - tokens) // pieces[-1].step_tokens))
            step, tokens = step + steps, tokens + steps * pieces[-1].step_tokens
    return pieces


def _sizes(settings: DataSettings) -> list[int]:
    """Increasing batch sizes, the full one last."""
    start, full, count = settings.ramp_from, settings.batch_size, settings.ramp_sizes
    if start is None or count == 1:
        return [full]
    line = [start + (full - start) * piece / (count - 1) for piece in range(count - 1)]
    return sorted({round(size / start) * start for size in line} - {full} | {full})
