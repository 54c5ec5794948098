"""What a recipe says of reinforcement learning: where rewards come from, the KL penalty, and PPO's updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lmjax.errors import require
from lmjax.fields import (
    ClosedFraction,
    NonNegativeFloat,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Settings,
    at_least,
    require_local,
)

Penalty = Annotated[float, at_least(0, "use 0 for none: it is subtracted")]


def is_function(source: str) -> bool:
    """Whether a reward's source names a function, as "package.module:function" or "file.py:function"."""
    place, _, name = source.rpartition(":")
    return bool(place) and name.isidentifier()


@dataclass(frozen=True)
class RewardSettings(Settings):
    """Where a response's reward comes from, and what is done to it before it is learned from."""

    source: str = ""  # a reward model's stage or checkpoint, or a Python function (prompts, responses) -> scores,
    # named "package.module:function" or "file.py:function" (lmjax/rl/reward_function.py says what else it may be given)
    functions: tuple[str, ...] = ()  # more of them, beside a source that is one: the scores of all are added up, and
    # None, which all but one may give for a response, is no opinion
    timeout: PositiveFloat | None = None  # seconds that one call of a function may take; None waits for it
    known_reward: str = (
        ""  # a known reward, a Python function: logged beside the reward that is learned from, never part of it
    )
    no_eos_penalty: Penalty = 0.0  # taken from the score of a response that did not end by itself
    clip: PositiveFloat | None = None  # scores beyond +- this are cut
    normalise: bool = False  # scores of an iteration to mean 0 and deviation 1
    whiten: bool = False  # per-token rewards to deviation 1, their mean kept (Ziegler et al. 2019)

    def check(self) -> None:
        for number, function in enumerate(self.functions):
            named = is_function(function)
            require(named, f"functions[{number}]", function, "a Python function", 'name it "file.py:function"')
        alone = not self.functions or is_function(self.source)
        require(alone, "source", self.source, "a function beside functions", "move one of those here")
        require_local("source", self.source, bucket=True)
        require_local("known_reward", self.known_reward)

    @property
    def functions_by_field(self) -> dict[str, str]:
        """The functions whose scores are added up, by the fields that name them; none where a model is the source."""
        own = {"reward.source": self.source} if is_function(self.source) else {}
        return own | {f"reward.functions[{number}]": name for number, name in enumerate(self.functions)}


@dataclass(frozen=True)
class KLSettings(Settings):
    """The per-token penalty for leaving the reference policy."""

    coefficient: NonNegativeFloat = 0.02  # of the penalty, per nat; where it adapts, at the beginning
    estimator: Literal["k1", "k2", "k3"] = "k1"  # of the penalty, and of the divergence that is logged; GRPO's is k3
    target: PositiveFloat | None = None  # nats per response that the coefficient is adapted to; None keeps it fixed
    horizon: PositiveFloat = 10_000.0  # episodes over which it adapts


@dataclass(frozen=True)
class PPOSettings(Settings):
    """How responses are sampled and how often each is learned from. A prompt is answered `group` times."""

    response_tokens: PositiveInt = 64  # at most, per response
    temperature: PositiveFloat = 1.0
    group: PositiveInt = 1  # responses per prompt
    baseline: Literal["value", "value_head", "group"] = "value"  # a value model of its own, a head on the policy (both
    # learn by value_optimizer), or the mean of the prompt's group (GRPO)
    epochs: PositiveInt = 1  # over the responses of an iteration
    minibatches: PositiveInt = 1  # per epoch
    clip: PositiveFloat | None = 0.2  # of the ratio; None clips nothing
    value_clip: PositiveFloat = 0.2
    value_coefficient: float = 0.1  # of the value loss beside the policy loss
    discount: ClosedFraction = 1.0
    gae_lambda: ClosedFraction = 0.95  # of generalised advantage estimation
    # of the average of the policy's weights over iterations; None keeps no average
    ema_decay: OpenFraction | None = None
    # gamma of PPO-ptx: the weight of the pretraining log-likelihood per token beside the policy loss
    ptx_coefficient: NonNegativeFloat = 0.0
    ptx_rows: PositiveInt = 1  # pretraining rows per response

    def check(self) -> None:
        grouped = self.baseline != "group" or self.group > 1
        require(grouped, "group", self.group, "2 or more responses where they are the baseline", "use 8")
