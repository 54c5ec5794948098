"""What a recipe says of conversations: their template, their sources, and the batches that are made of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from lmjax.errors import nearest, require
from lmjax.fields import ClosedFraction, PositiveInt, Settings, at_least, check_weights, require_local
from lmjax.kinds import check_unused
from lmjax.settings.data import LoadedRows, Weight

TEXT = "{text}"  # where a turn's text goes in its template
PLACES = (  # what a field map can give to a record's fields
    *("system", "history", "messages", "prompt", "input", "answer", "label", "reward"),
    *("chosen", "rejected", "score_chosen", "score_rejected", "answers", "ranks", "scores"),
)


@dataclass(frozen=True)
class TemplateSettings(Settings):
    """How a conversation is written: by the first five fields, by a template of a name, or by one in Jinja.

    An answer ends with the end-of-text token, which is no part of the first five fields; Jinja writes it itself.
    """

    system: str = "{text}\n\n"
    user: str = "User: {text}\n"
    assistant: str = "Assistant:"  # before an answer: where sampling begins
    answer: str = " {text}"  # the answer itself: what is trained on
    between: str = "\n"  # after an answer's end-of-text token, before the next turn
    # in place of these: lmjax/data/named_templates.py; "own" is the one that an imported model came with
    name: Literal["", "alpaca", "chatml", "llama3", "gemma", "zephyr", "own"] = ""
    jinja: str = ""  # or the source of a template as transformers has them; of a name, a run fills it in
    tokens: tuple[tuple[str, str], ...] = ()  # filled in: the special tokens that Jinja reads, such as "eos_token"
    ends: tuple[int, ...] = ()  # filled in: ids of tokens that end an answer, beside the end of text

    @property
    def in_jinja(self) -> bool:
        return bool(self.name or self.jinja)

    def check(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in ("system", "user", "assistant", "answer", "between") if self.in_jinja else ():
            by = f"name = {self.name!r}" if self.name else "jinja"
            require(
                getattr(self, name) == defaults[name], name, getattr(self, name), f"none beside {by}", "leave it out"
            )
        for name in ("system", "user", "answer"):
            value = getattr(self, name)
            once = value.count(TEXT) == 1
            require(once, name, value, f"one {TEXT}, where the text goes", "write it once")


@dataclass(frozen=True)
class DialogueSourceSettings(Settings):
    """One file, folder or glob of JSONL, JSON lists, CSV or Parquet in any of the public shapes, found by their fields.

    Or, where `kind` is "embedded", openings and ends of sentences in the embedded corpus (data/openings.py).
    Where a file's fields have other names, a field map says which is which: fields={"prompt": "inputs"}.
    """

    path: str = ""
    begin: float = 0.0  # the part of its records that is read, as fractions
    end: float = 1.0
    weight: Weight | None = None  # in a mixture; where none has one, sources count by their rows
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
        super().__post_init__()

    def check(self) -> None:
        self._check_fields()
        require_local("path", self.path)
        if self.path:  # a path beside the embedded corpus, which a recipe has and a command replaces
            object.__setattr__(self, "kind", "file")
        fits = bool(self.path) or self.kind != "file"
        require(fits, "path", self.path, "a file, folder or glob where kind is 'file'", "set path")
        check_unused(self)
        inside = 0.0 <= self.begin < self.end <= 1.0
        require(inside, "begin, end", (self.begin, self.end), "0 <= begin < end <= 1", "use 0 and 1")

    def _check_fields(self) -> None:
        for place, _ in self.fields:
            require(place in PLACES, "fields", place, "a known place", nearest(place, PLACES))
        for role, names in zip(("place", "field"), zip(*self.fields, strict=True), strict=False):
            twice = sorted({name for name in names if names.count(name) > 1})
            require(not twice, "fields", twice, f"each {role} once", "leave one out")

    @property
    def name(self) -> str:
        return self.path or f"{self.kind} {self.split}"


@dataclass(frozen=True)
class DialogueSettings(LoadedRows, Settings):
    """What a batch of conversations holds. A batch is a pure function of these settings and the step."""

    train: tuple[DialogueSourceSettings, ...] = ()
    validation: tuple[DialogueSourceSettings, ...] = ()
    template: TemplateSettings = TemplateSettings()
    sequence_length: Annotated[int, at_least(2)] = 256  # tokens of a row; of PPO's prompts, the most tokens of a prompt
    batch_size: PositiveInt = 8  # rows, prompts or rankings per step, over all devices
    packing: bool = True  # demonstrations: several conversations in a row, each its own segment
    too_long: Literal["left", "right", "skip", "error"] = "left"  # the side that is cut, or what is done instead
    prompt_weight: ClosedFraction = 0.0  # of each token that is not the assistant's, in the loss
    most_answers: Annotated[int, at_least(2)] = 9  # of a ranking; what the file has beyond them is left out and counted
    shuffle: bool = True
    seed: int = 0
    prefetch: PositiveInt = 2  # batches prepared ahead
    earlier_batches: tuple[tuple[int, int, int, int, int, int], ...] = ()  # as in DataSettings

    def check(self) -> None:
        check_weights("train", self.train)
