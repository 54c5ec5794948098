"""How the report writes numbers: exact counts, rounded quantities, durations and shares."""

from __future__ import annotations

import math

_UNITS = (("", 1.0), ("k", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12))


def exact(value: float) -> str:
    """A whole number with separators: 124,439,808."""
    return f"{value:,.0f}"


def decimals(value: float, places: int = 4) -> str:
    """A fixed number of decimals; NaN and infinity by name."""
    return f"{value:.{places}f}" if math.isfinite(value) else str(value)


def rounded(value: float) -> str:
    """Three digits and a unit up to trillions, and powers of ten beyond and below: 124M, 5.3k, 0.25, 2.5e-4."""
    size = abs(value)
    if not math.isfinite(value) or size == 0:
        return f"{value:g}"
    if size < 1e-3 or size >= 1e15:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size < 1e3 and float(f"{size:.3g}") < 1e3:
        return f"{value:.3g}"
    unit, scale = next(pair for pair in reversed(_UNITS) if float(f"{size:.3g}") >= pair[1])
    return f"{float(f'{value:.3g}') / scale:.10g}{unit}"


def percent(share: float) -> str:
    """A share of one: 37.5%. A share that is not zero never reads as 0%."""
    return "under 0.01%" if 0 < share < 1e-4 else f"{100 * share:.3g}%" if math.isfinite(share) else str(share)


def duration(seconds: float) -> str:
    """A time in its two largest units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 59.5:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for name, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {name}" + (f" {rest} {below}" if rest else "")
    raise AssertionError("unreachable: a minute or more has a unit")


def setting(value: object) -> str:
    """A recipe's value as a reader takes it in: yes and no, separators in large integers, strings as they are."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple | list):
        return ", ".join(f"\u201c{item}\u201d" if isinstance(item, str) else setting(item) for item in value) or "none"
    return "empty" if value == "" else str(value)
