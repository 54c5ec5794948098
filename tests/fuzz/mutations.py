"""Damage for files: to bytes, to JSON values, to words of a command. Everything is drawn from one seeded generator."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

DEEP = 100_000  # levels, at which readers that recurse run out of stack
JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, -0.5, float("nan"), float("inf")),
    *("", " ", "\0", "\ud800", "../../etc/passwd", "/dev/zero", "x" * 10_000, "a\nb", "~nosuchuser", "a**b"),
    *([], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": []}}),
)
RAW = ("9" * 5_000, "[" * DEEP, '{"a":' * DEEP, "", "\ufeff", "{", "nul", "1e999", '"\\ud800"')
JUNK_BYTES = (b"\xff", b"\xfe\xff", b"\0", b"\n", b"\r", b"\xe2\x80\xa8", b'"', b",", b"}", b"\x1f\x8b", b"PAR1")


def damaged_bytes(data: bytes, rng: Random) -> bytes:
    """One to three of: a flipped bit, a cut, bytes put in, a part removed or written twice; now and then only junk."""
    if rng.random() < 0.02:
        return rng.choice([b"", rng.randbytes(200), *(raw.encode(errors="surrogatepass") for raw in RAW)])
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at, end = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        match rng.randrange(5):
            case 0 if out:
                out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = rng.choice(JUNK_BYTES) * rng.choice((1, 1, 100))
            case 3:
                del out[at : min(end, at + 50)]
            case _:
                out[at:at] = out[at : min(end, at + 200)]
    return bytes(out)


def damaged_value(value: Any, rng: Random) -> Any:
    """The JSON value with one to three of its places replaced by junk, removed, or moved from elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return rng.choice(JUNK)
        holder, key = rng.choice(places)
        action = rng.random()
        if action < 0.6:
            holder[key] = copy.deepcopy(rng.choice(JUNK))
        elif action < 0.8:
            del holder[key]
        else:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name])
    return rng.choice(JUNK) if rng.random() < 0.02 else value


def damaged_json(text: str, rng: Random) -> bytes:
    """JSON text, damaged as a value or as bytes; of lines, one is."""
    if rng.random() < 0.35:
        return damaged_bytes(text.encode(), rng)
    try:
        values = [json.loads(text)]
    except ValueError:
        values = [json.loads(line) for line in text.splitlines()]
    place = rng.randrange(len(values))
    values[place] = damaged_value(values[place], rng)
    lines = [json.dumps(value) for value in values]
    if rng.random() < 0.1:
        lines[place] = lines[place].replace("1", rng.choice(RAW), 1)
    return "\n".join(lines).encode(errors="surrogatepass")


def _places(value: Any) -> Any:
    """Every (holder, key) of a nested value."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items:
        yield value, key
        yield from _places(inner)
