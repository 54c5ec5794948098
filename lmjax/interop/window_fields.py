"""The fields of a config.json that say which layers see a window of the latest keys, or have no positions.

In: the fields. Out: the kind of each layer, in the words of `AttentionSettings.pattern`, and the width of the window;
and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmjax.interop.config_fields import ConfigFields
from lmjax.interop.rotary_fields import GLOBAL, LOCAL
from lmjax.settings import ModelSettings

LayerKind = Literal["dense", "banded", "nope"]
Kinds = tuple[LayerKind, ...]  # of each layer
DENSE: LayerKind = "dense"
BANDED: LayerKind = "banded"
_NAMES = {GLOBAL: DENSE, LOCAL: BANDED}


@dataclass(frozen=True)
class Windows:
    """How a model type says which of its layers have a window, and how wide that is.

    `read` takes the width where the field is absent, and the number of layers; it returns the kind of each layer.
    """

    read: Callable[[ConfigFields, int | None, int], tuple[Kinds, int | None]]
    write: Callable[[ModelSettings], dict[str, Any]]


def _kinds(fields: ConfigFields, implied: Kinds, *, follows: bool = True) -> Kinds:
    """The kinds that `layer_types` says, one for each layer, or else those that other fields imply.

    A model type that does not read the field may have it if it says what is so anyway.
    """
    said = fields.get("layer_types", None)
    if said is None:
        return implied
    if not isinstance(said, list) or len(said) != len(implied) or not all(name in _NAMES for name in map(str, said)):
        expected = f"{len(implied)} of {', '.join(map(repr, _NAMES))}, one for each layer"
        raise fields.error("layer_types", expected, "take it from the model's own config.json")
    kinds = tuple(_NAMES[name] for name in said)
    if not follows and kinds != implied:
        names = {kind: name for name, kind in _NAMES.items()}
        expected = f"what the other fields say, {sorted({names[kind] for kind in implied})}"
        raise fields.error("layer_types", expected, "this model type does not read it: remove it")
    return kinds


def _no_window(fields: ConfigFields, _: int | None, layers: int) -> tuple[Kinds, None]:
    return _kinds(fields, (DENSE,) * layers, follows=False), None


def _window_everywhere(fields: ConfigFields, default: int | None, layers: int) -> tuple[Kinds, int | None]:
    band = _band(fields, default)
    implied = DENSE if band is None else BANDED
    return _kinds(fields, (implied,) * layers, follows=False), band


def _window_in_late_layers(fields: ConfigFields, default: int | None, layers: int) -> tuple[Kinds, int | None]:
    """Qwen's: from max_window_layers on, where use_sliding_window is set, or as layer_types says."""
    fields.expect("use_mrope", False)
    used, first = fields.flag("use_sliding_window", False), fields.get("max_window_layers", 28)
    fields.get("sliding_window", None)  # which says nothing where no window is used
    band = _band(fields, default) if used else None
    if type(first) is not int or first < 0:
        raise fields.error("max_window_layers", "a whole number from 0", "the default is 28")
    late = 0 if band is None else layers - min(first, layers)
    kinds = _kinds(fields, (DENSE,) * (layers - late) + (BANDED,) * late)
    return _with_band(fields, kinds, band)


def _window_or_no_positions(fields: ConfigFields, default: int | None, layers: int) -> tuple[Kinds, int | None]:
    """SmolLM3's: no rotation in every fourth layer, which would have the window, were there one."""
    interval = fields.get("no_rope_layer_interval", 4)
    if type(interval) is not int or interval < 1:
        raise fields.error("no_rope_layer_interval", "a whole number above 0", "the default is 4")
    rotated = fields.get("no_rope_layers", None)
    rotated = [int((i + 1) % interval != 0) for i in range(layers)] if rotated is None else rotated
    if not isinstance(rotated, list) or len(rotated) < layers or any(rotates not in (0, 1) for rotates in rotated):
        raise fields.error("no_rope_layers", f"{layers} times 0 or 1, one for each layer", "take the model's own")
    fields.get("sliding_window", None)  # which says nothing where no window is used
    band = _band(fields, default) if fields.flag("use_sliding_window", False) else None
    windows = _kinds(fields, tuple(DENSE if rotates or band is None else BANDED for rotates in rotated[:layers]))
    windows, band = _with_band(fields, windows, band)
    kinds: Kinds = tuple(window if rotates else "nope" for window, rotates in zip(windows, rotated, strict=False))
    if any(window == "banded" and not rotates for window, rotates in zip(windows, rotated, strict=False)):
        raise fields.error("use_sliding_window", "false", "lmjax has no window in a layer without positions")
    return kinds, band


def _window_in_turns(period: int) -> Callable[[ConfigFields, int | None, int], tuple[Kinds, int | None]]:
    """Gemma's: in every layer but the last of each `period`."""

    def read(fields: ConfigFields, default: int | None, layers: int) -> tuple[Kinds, int | None]:
        every = fields.get("sliding_window_pattern", period) if period == 6 else period
        if type(every) is not int or every < 1:
            raise fields.error("sliding_window_pattern", "a whole number above 0", f"the default is {period}")
        band = _band(fields, default)
        implied = tuple(BANDED if (i + 1) % every else DENSE for i in range(layers))
        return _with_band(fields, _kinds(fields, implied), band)

    return read


def _band(fields: ConfigFields, default: int | None) -> int | None:
    """Null is no window; an absent field has the type's own."""
    if not fields.says("sliding_window"):
        return default
    return fields.size("sliding_window") if fields.has("sliding_window") else None


def _with_band(fields: ConfigFields, kinds: Kinds, band: int | None) -> tuple[Kinds, int | None]:
    """The kinds and the band, which banded layers need and others do not have."""
    if "banded" not in kinds:
        return kinds, None
    if band is None:
        raise fields.error("sliding_window", f"a width for the layers of {LOCAL!r}", "take it from the model's own")
    return kinds, band


def period_of(kinds: Kinds) -> Kinds:
    """The shortest pattern that, repeated to the depth, has these kinds."""
    layers = len(kinds)
    lengths = (n for n in range(1, layers + 1) if layers % n == 0)
    return next(kinds[:n] for n in lengths if kinds[:n] * (layers // n) == kinds)


def layer_kinds(settings: ModelSettings) -> Kinds:
    """The kind of each layer."""
    pattern = settings.attention.pattern
    return pattern * (settings.layers // len(pattern))


def _layer_types(settings: ModelSettings) -> dict[str, Any]:
    names = {"dense": GLOBAL, "banded": LOCAL, "nope": GLOBAL}
    return {"layer_types": [names[kind] for kind in layer_kinds(settings)]}


def _write_late(settings: ModelSettings) -> dict[str, Any]:
    kinds = layer_kinds(settings)
    first = kinds.index("banded") if "banded" in kinds else len(kinds)
    window = {"use_sliding_window": "banded" in kinds, "sliding_window": settings.attention.band}
    return window | {"max_window_layers": first} | _layer_types(settings)


def _write_nope(settings: ModelSettings) -> dict[str, Any]:
    kinds = layer_kinds(settings)
    window = {"use_sliding_window": "banded" in kinds, "sliding_window": settings.attention.band}
    return window | {"no_rope_layers": [int(kind != "nope") for kind in kinds]} | _layer_types(settings)


def _write_turns(settings: ModelSettings) -> dict[str, Any]:
    return {"sliding_window": settings.attention.band} | _layer_types(settings)


WINDOWS: Mapping[str, Windows] = {
    "none": Windows(_no_window, lambda settings: {}),
    "all": Windows(_window_everywhere, lambda settings: {"sliding_window": settings.attention.band}),
    "late": Windows(_window_in_late_layers, _write_late),
    "nope": Windows(_window_or_no_positions, _write_nope),
    "alternate": Windows(_window_in_turns(2), _write_turns),
    "sixth": Windows(_window_in_turns(6), _write_turns),
}
