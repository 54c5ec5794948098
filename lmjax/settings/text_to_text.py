"""What a recipe says of a task whose inputs and outputs are both texts."""

from __future__ import annotations

from dataclasses import dataclass

from lmjax.errors import require
from lmjax.fields import Settings
from lmjax.settings.labelled import LabelledSettings


@dataclass(frozen=True)
class TextToTextSettings(Settings):
    """Examples of one set, and how they are written as text (Raffel et al. 2020, appendix D).

    Records with the columns "input" and "target" are
    `TextToTextSettings(LabelledSettings("file.jsonl", fields=("input",), label="target"))`.
    """

    source: LabelledSettings = LabelledSettings(path="train.jsonl", fields=("input",), label="target")
    prefix: str = ""  # before the inputs, such as "rte "
    names: tuple[str, ...] = ()  # of the texts, written "premise: " before them; () writes a single text as it is

    def check(self) -> None:
        blank = [name for name in self.names if not name.strip()]
        require(not blank, "names", self.names, "names with characters", "leave the blank ones out")
