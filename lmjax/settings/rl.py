"""What a recipe says of reinforcement learning: where rewards come from, the KL penalty, and PPO's updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmjax.errors import require
from lmjax.fields import check_types, require_local


def is_function(source: str) -> bool:
    """Whether a reward's source names a function, as "package.module:function" or "file.py:function"."""
    place, _, name = source.rpartition(":")
    return bool(place) and name.isidentifier()


@dataclass(frozen=True)
class RewardSettings:
    """Where a response's reward comes from, and what is done to it before it is learned from."""

    source: str = ""  # a reward model's stage or checkpoint, or a Python function (prompts, responses) -> scores,
    # named "package.module:function" or "file.py:function" (lmjax/rl/reward_function.py says what else it may be given)
    functions: tuple[str, ...] = ()  # more of them, beside a source that is one: the scores of all are added up, and
    # None, which all but one may give for a response, is no opinion
    timeout: float | None = None  # seconds that one call of a function may take; None waits for it
    gold: str = ""  # a known reward, a Python function: told beside the one that is learned from, which it never enters
    missing_end_penalty: float = 0.0  # taken from the score of a response that did not end by itself
    clip: float | None = None  # scores beyond +- this are cut
    normalise: bool = False  # scores of an iteration to mean 0 and deviation 1
    whiten: bool = False  # per-token rewards to deviation 1, their mean kept (Ziegler et al. 2019)

    def __post_init__(self) -> None:
        check_types("reward", self)
        for number, function in enumerate(self.functions):
            named = is_function(function)
            require(named, f"reward.functions.{number}", function, "a Python function", 'name it "file.py:function"')
        alone = not self.functions or is_function(self.source)
        require(alone, "reward.source", self.source, "a function beside reward.functions", "move one of those here")
        require(self.timeout is None or self.timeout > 0, "reward.timeout", self.timeout, "seconds above 0", "use 60")
        require_local("reward.source", self.source, bucket=True)
        require_local("reward.gold", self.gold)
        penalty = self.missing_end_penalty
        require(penalty >= 0, "reward.missing_end_penalty", penalty, "0 or more; it is subtracted", "use 1.0")
        require(self.clip is None or self.clip > 0, "reward.clip", self.clip, "a number above 0", "leave it out")

    @property
    def functions_by_field(self) -> dict[str, str]:
        """The functions whose scores are added up, by the fields that name them; none where a model is the source."""
        own = {"reward.source": self.source} if is_function(self.source) else {}
        return own | {f"reward.functions.{number}": name for number, name in enumerate(self.functions)}


@dataclass(frozen=True)
class KLSettings:
    """The per-token penalty for leaving the reference policy."""

    coefficient: float = 0.02  # of the penalty, per nat; where it adapts, at the beginning
    estimator: Literal["k1", "k2", "k3"] = "k1"  # of the penalty, and of the divergence that is logged; GRPO's is k3
    target: float | None = None  # nats per response that the coefficient is adapted to; None keeps it fixed
    horizon: float = 10_000.0  # episodes over which it adapts

    def __post_init__(self) -> None:
        check_types("kl", self)
        require(self.coefficient >= 0, "kl.coefficient", self.coefficient, "0 or more", "use 0.02")
        require(self.target is None or self.target > 0, "kl.target", self.target, "nats above 0", "use 6.0")
        require(self.horizon > 0, "kl.horizon", self.horizon, "episodes above 0", "use 10000")


@dataclass(frozen=True)
class PPOSettings:
    """How responses are sampled and how often each is learned from. A prompt is answered `group` times."""

    response_tokens: int = 64  # at most, per response
    temperature: float = 1.0
    group: int = 1  # responses per prompt
    baseline: Literal["value", "value_head", "group"] = "value"  # a value model of its own, a head on the policy (both
    # learn by value_optimizer), or the mean of the prompt's group (GRPO)
    epochs: int = 1  # over the responses of an iteration
    minibatches: int = 1  # per epoch
    clip: float | None = 0.2  # of the ratio; None clips nothing
    value_clip: float = 0.2
    value_coefficient: float = 0.1  # of the value loss beside the policy loss
    discount: float = 1.0
    decay: float = 0.95  # lambda of the advantages
    average: float | None = None  # of the policy's weights over iterations: how much of the average is kept each time
    mix_coefficient: float = 0.0  # gamma of PPO-ptx: pretraining log-likelihood per token beside the policy loss
    mix_rows: int = 1  # pretraining rows per response

    def __post_init__(self) -> None:
        check_types("ppo", self)
        for name in (
            "response_tokens",
            "temperature",
            "group",
            "epochs",
            "minibatches",
            "clip",
            "value_clip",
            "mix_rows",
        ):
            value = getattr(self, name)
            require(value is None or value > 0, f"ppo.{name}", value, "a number above 0", "use 1")
        for name in ("discount", "decay"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"ppo.{name}", value, "0 to 1", "use 1.0")
        require(self.average is None or 0 < self.average < 1, "ppo.average", self.average, "0 to 1", "use 0.992")
        require(self.mix_coefficient >= 0, "ppo.mix_coefficient", self.mix_coefficient, "0 or more", "use 27.8")
        grouped = self.baseline != "group" or self.group > 1
        require(grouped, "ppo.group", self.group, "2 or more responses where they are the baseline", "use 8")
