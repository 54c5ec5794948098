"""The parts of the recipes that learn from instructions, comparisons and rewards; kin of `lmjax.settings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmjax.errors import nearest, require
from lmjax.fields import check_types, check_weights, require_local
from lmjax.kinds import check_unused
from lmjax.settings import DataSettings

TEXT = "{text}"  # where a turn's text goes in its template
PLACES = (  # what a field map can give to a record's fields
    *("system", "history", "messages", "prompt", "input", "answer", "label", "reward"),
    *("chosen", "rejected", "score_chosen", "score_rejected", "answers", "ranks", "scores"),
)


@dataclass(frozen=True)
class TemplateSettings:
    """How a conversation is written. An answer ends with the end-of-text token, which is not part of the template."""

    system: str = "{text}\n\n"
    user: str = "User: {text}\n"
    assistant: str = "Assistant:"  # before an answer: where sampling begins
    answer: str = " {text}"  # the answer itself: what is trained on
    between: str = "\n"  # after an answer's end-of-text token, before the next turn

    def __post_init__(self) -> None:
        check_types("dialogue.template", self)
        for name in ("system", "user", "answer"):
            value = getattr(self, name)
            once = value.count(TEXT) == 1
            require(once, f"dialogue.template.{name}", value, f"one {TEXT}, where the text goes", "write it once")
        require(bool(self.assistant), "dialogue.template.assistant", "", "some text", 'use "Assistant:"')


@dataclass(frozen=True)
class DialogueSourceSettings:
    """One file, folder or glob of JSONL, JSON lists, CSV or Parquet in any of the public shapes, found by their fields.

    Or, where `kind` is "embedded", openings of sentences in the embedded corpus and how they go on (data/openings.py).
    Where a file's fields have other names, a field map says which is which: fields={"prompt": "inputs"}.
    """

    path: str = ""
    begin: float = 0.0  # the part of its records that is read, as fractions
    end: float = 1.0
    weight: float | None = None  # in a mixture; where none has one, sources count by their rows
    answer_end: str = ""  # text that ends every answer in the file and is left out, such as "###eos_token###"
    on_bad_record: Literal["error", "skip"] = "error"
    kind: Literal["file", "embedded"] = "file"
    split: Literal["train", "validation"] = "train"  # of the embedded corpus
    # which field of the file holds what: pairs of a name of PLACES and the file's name, or the same as a dict
    fields: tuple[tuple[str, str], ...] = ()
    ignore: tuple[str, ...] = ()  # fields of records or messages that mean something and are left out all the same

    def __post_init__(self) -> None:
        if isinstance(self.fields, dict):
            object.__setattr__(self, "fields", tuple(self.fields.items()))
        check_types("dialogue source", self)
        self._check_fields()
        require_local("dialogue source.path", self.path)
        if self.path:  # a path beside the embedded corpus, which a recipe has and a command replaces
            object.__setattr__(self, "kind", "file")
        fits = bool(self.path) or self.kind != "file"
        require(fits, "dialogue source.path", self.path, "a file, folder or glob where kind is 'file'", "set path")
        check_unused("dialogue source", self)
        inside = 0.0 <= self.begin < self.end <= 1.0
        require(inside, "dialogue source.begin, end", (self.begin, self.end), "0 <= begin < end <= 1", "use 0 and 1")
        weight = self.weight
        require(weight is None or weight > 0, "dialogue source.weight", weight, "a number above 0", "leave it out")

    def _check_fields(self) -> None:
        for place, _ in self.fields:
            require(place in PLACES, "dialogue source.fields", place, "a known place", nearest(place, PLACES))
        for role, names in zip(("place", "field"), zip(*self.fields, strict=True), strict=False):
            twice = sorted({name for name in names if names.count(name) > 1})
            require(not twice, "dialogue source.fields", twice, f"each {role} once", "leave one out")

    @property
    def name(self) -> str:
        return self.path or f"{self.kind} {self.split}"


@dataclass(frozen=True)
class DialogueSettings:
    """What a batch of conversations holds. A batch is a pure function of these settings and the step."""

    train: tuple[DialogueSourceSettings, ...] = ()
    validation: tuple[DialogueSourceSettings, ...] = ()
    template: TemplateSettings = TemplateSettings()
    sequence_length: int = 256  # tokens of a row; of PPO's prompts, the most tokens of a prompt
    batch_size: int = 8  # rows, prompts or rankings per step, over all devices
    packing: bool = True  # demonstrations: several conversations in a row, each its own segment
    too_long: Literal["left", "right", "skip", "error"] = "left"  # the side that is cut, or what is done instead
    prompt_weight: float = 0.0  # of each token that is not the assistant's, in the loss
    most_answers: int = 9  # of a ranking; what the file has beyond them is left out and counted
    shuffle: bool = True
    seed: int = 0
    prefetch: int = 2  # batches prepared ahead
    earlier_batches: tuple[tuple[int, int, int, int, int, int], ...] = ()  # as in DataSettings

    def __post_init__(self) -> None:
        check_types("dialogue", self)
        for name, least in (("sequence_length", 2), ("batch_size", 1), ("most_answers", 2), ("prefetch", 1)):
            value = getattr(self, name)
            require(value >= least, f"dialogue.{name}", value, f"{least} or more", f"use {least}")
        check_weights("dialogue.train", self.train)
        require(0 <= self.prompt_weight <= 1, "dialogue.prompt_weight", self.prompt_weight, "0 to 1", "use 0")

    @property
    def loading(self) -> DataSettings:
        """The same sizes and order, as the loader takes them."""
        return DataSettings(
            sequence_length=self.sequence_length,
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.seed,
            prefetch=self.prefetch,
            earlier_batches=self.earlier_batches,
        )


def is_function(source: str) -> bool:
    """Whether a reward's source names a function, as "package.module:function" or "file.py:function"."""
    place, _, name = source.rpartition(":")
    return bool(place) and name.isidentifier()


@dataclass(frozen=True)
class RewardSettings:
    """Where a response's reward comes from, and what is done to it before it is learned from."""

    source: str = ""  # a reward model's stage or checkpoint, or a Python function (prompts, responses) -> scores,
    # named "package.module:function" or "file.py:function" (rlhf/reward_function.py says what else it may be given)
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
