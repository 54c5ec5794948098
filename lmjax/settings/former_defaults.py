"""Defaults that have changed. What a run or a checkpoint began with stays, whether its recipe has the field or not."""

from __future__ import annotations

import dataclasses
from typing import Any

FORMER: dict[str, dict[str, Any]] = {  # by the settings' class: the default of before, of fields that now say None
    "ScheduleSettings": {"warmup_from": 0.0},
}


def with_former(part: type, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a saved recipe's part, with those that it was written without as they were then."""
    return FORMER.get(part.__name__, {}) | fields


def as_begun(old: Any, new: Any) -> Any:
    """The settings `new` of a run that began with `old`: where they leave a field open whose default changed, `old`'s.

    Only a value that was the default is taken over: another one was chosen, and leaving it out is a change.
    """
    if type(old) is not type(new) or not dataclasses.is_dataclass(new) or isinstance(new, type):
        return new
    former, values = FORMER.get(type(new).__name__, {}), {}
    for field in dataclasses.fields(new):
        before, now = getattr(old, field.name), getattr(new, field.name)
        kept = now is None and field.name in former and before == former[field.name]
        value = before if kept else as_begun(before, now)
        if value is not now:
            values[field.name] = value
    return dataclasses.replace(new, **values) if values else new
