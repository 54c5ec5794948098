"""Known rewards, for experiments without people: a simulated labeler ranks by one, and its value is told beside a
reward model's.

Each is a function (prompts, responses) -> scores, named in a recipe as "lmjax.rl.known_rewards:NAME".
"""

from __future__ import annotations

from collections.abc import Sequence

WORDS = 8  # that `short_sentence` likes best


def short_sentence(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Likes a whole, short sentence that does not repeat itself; at most 2.

    The sum of: 1 where the response ends with a full stop; the share of its words that are different ones; and minus
    an eighth for every word that it is longer or shorter than 8 words, at most 1.
    """
    return [_short_sentence(response) for response in responses]


def _short_sentence(response: str) -> float:
    words = response.lower().split()
    whole = float(response.rstrip().endswith("."))
    different = len(set(words)) / len(words) if words else 0.0
    return whole + different - min(1.0, abs(len(words) - WORDS) / WORDS)
