"""What a recipe says of a source of labelled examples, which fine-tuning tasks read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmjax.errors import require
from lmjax.fields import Settings, require_local


@dataclass(frozen=True)
class LabelledSettings(Settings):
    """One file, folder or glob of a published set, or of records whose columns are named here."""

    path: str = ""
    form: str = ""  # the reader of lmjax/data/labelled_sets, by name; "" is "records": columns with names
    fields: tuple[str, ...] = ()  # of records: the columns of the texts; () is the first known pair or name of a text
    label: str = ""  # of records: the column of the label; "" is the first known name, or no label
    begin: float = 0.0  # the part of its examples that is read, as fractions
    end: float = 1.0
    on_bad_record: Literal["error", "skip"] = "error"

    def check(self) -> None:
        require_local("path", self.path)
        require(bool(self.path), "path", self.path, "a file, a folder or a glob", "name one")
        inside = 0.0 <= self.begin < self.end <= 1.0
        require(inside, "begin, end", (self.begin, self.end), "0 <= begin < end <= 1", "use 0 and 1")
        named = self.form in ("", "records")
        for name, value in (("fields", self.fields), ("label", self.label)):
            expected = f"its default, as form = {self.form!r} knows its columns"
            require(named or not value, name, value, expected, "leave it out, or leave form out")
