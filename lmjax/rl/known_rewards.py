"""Known rewards, for experiments without people: a simulated labeler ranks by one, and it is reported beside the reward
model's score.

Each is a function (prompts, responses) -> scores, named in a recipe as "lmjax.rl.known_rewards:NAME".
"""

from __future__ import annotations

from collections.abc import Sequence

WORDS = 8  # the length at which `short_sentence` is highest


def short_sentence(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Rewards a complete, short sentence without repeated words; at most 2.

    The sum of: 1 if the response ends with a full stop; the number of distinct words divided by the number of words;
    and minus an eighth for every word more or less than 8, at most 1.
    """
    return [_short_sentence(response) for response in responses]


def _short_sentence(response: str) -> float:
    words = response.lower().split()
    complete = float(response.rstrip().endswith("."))
    distinct = len(set(words)) / len(words) if words else 0.0
    return complete + distinct - min(1.0, abs(len(words) - WORDS) / WORDS)
