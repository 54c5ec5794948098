"""The parts of the recipes that learn from instructions, comparisons and rewards; kin of `lmjax.settings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmjax.errors import require
from lmjax.settings import DataSettings

TEXT = "{text}"  # where a turn's text goes in its template


@dataclass(frozen=True)
class TemplateSettings:
    """How a conversation is written. An answer ends with the end-of-text token, which is not part of the template."""

    system: str = "{text}\n\n"
    user: str = "User: {text}\n"
    assistant: str = "Assistant:"  # before an answer: where sampling begins
    answer: str = " {text}"  # the answer itself: what is trained on
    between: str = "\n"  # after an answer's end-of-text token, before the next turn

    def __post_init__(self) -> None:
        for name in ("system", "user", "answer"):
            value = getattr(self, name)
            once = value.count(TEXT) == 1
            require(once, f"dialogue.template.{name}", value, f"one {TEXT}, where the text goes", "write it once")
        require(bool(self.assistant), "dialogue.template.assistant", "", "some text", 'use "Assistant:"')


@dataclass(frozen=True)
class DialogueSourceSettings:
    """One file, folder or glob of JSONL (or JSON lists, or CSV) in any of the public shapes, found by their fields."""

    path: str = ""
    begin: float = 0.0  # the part of its records that is read, as fractions
    end: float = 1.0
    weight: float = 1.0  # in a mixture
    answer_end: str = ""  # text that ends every answer in the file and is left out, such as "###eos_token###"
    on_bad_record: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        require(bool(self.path), "dialogue source.path", self.path, "a file, folder or glob", "set path")
        inside = 0.0 <= self.begin < self.end <= 1.0
        require(inside, "dialogue source.begin, end", (self.begin, self.end), "0 <= begin < end <= 1", "use 0 and 1")
        require(self.weight > 0, "dialogue source.weight", self.weight, "a number above 0", "leave the source out")


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

    def __post_init__(self) -> None:
        for name, least in (("sequence_length", 2), ("batch_size", 1), ("most_answers", 2), ("prefetch", 1)):
            value = getattr(self, name)
            require(value >= least, f"dialogue.{name}", value, f"{least} or more", f"use {least}")
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
        )
