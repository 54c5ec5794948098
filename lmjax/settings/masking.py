"""What a recipe says of the pretraining of encoders and encoder-decoders: masks, sentence pairs, corrupted spans."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from lmjax.errors import require
from lmjax.fields import Bound, ClosedFraction, OpenFraction, PositiveInt, Settings

SpanLength = Annotated[float, Bound(lambda value: value >= 1, "1 or more tokens")]


@dataclass(frozen=True)
class MaskingSettings(Settings):
    """Which tokens a masked language model predicts, and what it reads in their places (Devlin et al. 2019, 3.1)."""

    share: OpenFraction = 0.15  # of a row's tokens that are selected; recipes of today take 0.3
    most: PositiveInt | None = None  # selected in a row; None: the share of a full row
    masked: ClosedFraction = 0.8  # of the selected tokens that are read as [MASK]
    random: ClosedFraction = 0.1  # of the selected tokens that are read as a random entry; the others stay
    whole_words: bool = False  # all pieces of a word are selected, or none
    # different maskings of a row: 1 is static, 10 are BERT's copies of its data, None draws anew in every epoch
    maskings: PositiveInt | None = None

    def check(self) -> None:
        both = self.masked + self.random
        require(both <= 1, "masked + random", both, "at most 1", "lower one; the others stay")

    def columns(self, length: int) -> int:
        """The most tokens that are predicted in a row of so many."""
        return min(length, self.most or max(1, math.ceil(self.share * length)))


@dataclass(frozen=True)
class PairSettings(Settings):
    """Pairs of texts for next-sentence prediction (Devlin et al. 2019, 3.1 and appendix A.2)."""

    random: OpenFraction = 0.5  # of the pairs whose second text is from another document
    short: ClosedFraction = 0.1  # of the rows that are shorter: 2 tokens to a full row


@dataclass(frozen=True)
class SpanSettings(Settings):
    """Which spans an encoder-decoder writes anew (Raffel et al. 2020, "Exploring the limits ...", 3.1.4)."""

    density: OpenFraction = 0.15  # of a row's tokens that are in spans
    mean_length: SpanLength = 3.0  # of a span, in tokens
    corruptions: PositiveInt | None = None  # different ones of a row; None draws anew in every epoch


def sentinel_symbols(count: int = 100) -> tuple[str, ...]:
    """The names of sentinels for tokenizer.user_symbols, in T5's order: sentinel 0 is last, at the vocabulary's end."""
    return tuple(sentinel(number) for number in reversed(range(count)))


def sentinel(number: int) -> str:
    """The name of a sentinel, as T5's tokenizers have it."""
    return f"<extra_id_{number}>"
