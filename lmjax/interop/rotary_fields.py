"""The fields of a config.json that say how rotary positions turn, in the words of transformers 4 and 5."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from lmjax.fields import fits
from lmjax.interop.config_fields import ConfigFields
from lmjax.settings import ModelSettings, RotaryScaling

# What each type says beside its base, by lmjax's names; what it may leave out has RotaryScaling's default.
_BLENDED = {"factor": "factor", "original_max_position_embeddings": "original_context"}
_KEYS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": _BLENDED | {"low_freq_factor": "slow_turns", "high_freq_factor": "fast_turns"},
    "yarn": _BLENDED
    | {
        "beta_slow": "slow_turns",
        "beta_fast": "fast_turns",
        "attention_factor": "amplitude",
        "truncate": "whole_pairs",
    },
}
_MAY_LACK = {"llama3": {"original_max_position_embeddings"}, "yarn": set(_KEYS["yarn"]) - {"factor"}}
_AMPLITUDES = ("mscale", "mscale_all_dim")  # yarn's two other ways to say its attention_factor
LOCAL, GLOBAL = "sliding_attention", "full_attention"


def read_rotary(fields: ConfigFields, default_base: float) -> tuple[float, RotaryScaling]:
    """The base and the scaling of rotary positions. Raises UserError for a type that lmjax has not, and for two."""
    scaling = RotaryScaling()
    bases = {fields.positive("rope_theta", default_base)} if fields.has("rope_theta") else set()
    for name in ("rope_parameters", "rope_scaling"):
        said = fields.get(name, None)
        if said is None:
            continue
        base, found = _read(fields, name, said)
        bases |= set() if base is None else {base}
        if scaling.kind not in ("none", found.kind) or (scaling.kind == found.kind and scaling != found):
            raise fields.error(name, "what rope_parameters says", "keep one of the two")
        scaling = found if scaling.kind == "none" else scaling
    return _only(fields, "rope_theta", bases, default_base), scaling


def read_rotary_of_kinds(
    fields: ConfigFields, default_global: float, default_local: float
) -> tuple[float, RotaryScaling, float]:
    """The base and the scaling of global layers, and the base of local ones, which nothing scales (Gemma 3)."""
    of_kinds = fields.get("rope_parameters", None)
    locals_ = {fields.positive("rope_local_base_freq", default_local)} if fields.has("rope_local_base_freq") else set()
    if not isinstance(of_kinds, dict) or not of_kinds.keys() & {LOCAL, GLOBAL}:
        return *read_rotary(fields, default_global), _only(fields, "rope_local_base_freq", locals_, default_local)
    if of_kinds.keys() - {LOCAL, GLOBAL}:
        raise fields.error("rope_parameters", f"{LOCAL!r} and {GLOBAL!r} alone", "lmjax has no other kind of layer")
    globals_ = {fields.positive("rope_theta", default_global)} if fields.has("rope_theta") else set()
    base, scaling = _read(fields, "rope_parameters", of_kinds.get(GLOBAL) or {})
    local_base, local_scaling = _read(fields, "rope_parameters", of_kinds.get(LOCAL) or {})
    if local_scaling != RotaryScaling():
        raise fields.error("rope_parameters", f"no scaling of {LOCAL!r}", "lmjax scales global layers alone")
    repeated = fields.get("rope_scaling", None)
    if repeated is not None and _read(fields, "rope_scaling", repeated)[1] != scaling:
        raise fields.error("rope_scaling", "what rope_parameters says", "keep one of the two")
    globals_ |= set() if base is None else {base}
    locals_ |= set() if local_base is None else {local_base}
    return (
        _only(fields, "rope_theta", globals_, default_global),
        scaling,
        _only(fields, "rope_local_base_freq", locals_, default_local),
    )


def write_rotary(settings: ModelSettings, of_kinds: bool = False) -> dict[str, Any]:
    """The fields that `read_rotary` reads, or with `of_kinds` those of `read_rotary_of_kinds`."""
    positions = settings.positions
    plain = {"rope_type": "default", "rope_theta": positions.rotary_base}
    scaled = _write(positions.rotary_scaling, settings.context)
    fields: dict[str, Any] = {"rope_theta": positions.rotary_base, "rope_parameters": plain | scaled}
    if of_kinds:
        local = positions.banded_rotary_base or positions.rotary_base
        fields["rope_parameters"] = {GLOBAL: plain | scaled, LOCAL: plain | {"rope_theta": local}}
        fields["rope_local_base_freq"] = local
    return fields | ({"rope_scaling": scaled} if scaled else {})


def implied(scaling: RotaryScaling, context: int) -> RotaryScaling:
    """Equal for scalings that compute the same: what is implied is written out, what is unused is reset."""
    kind = "default" if scaling.kind == "none" else scaling.kind
    used = {name: getattr(scaling, name) for name in _KEYS[kind].values()}
    if "original_context" in used:
        used["original_context"] = scaling.original_context or context
    return RotaryScaling(kind=scaling.kind, **used)


def _write(scaling: RotaryScaling, context: int) -> dict[str, Any]:
    if scaling.kind == "none":
        return {}
    values = dataclasses.asdict(implied(scaling, context))
    return {"rope_type": scaling.kind} | {name: values[ours] for name, ours in _KEYS[scaling.kind].items()}


def _read(fields: ConfigFields, name: str, said: Any) -> tuple[float | None, RotaryScaling]:
    """The base that one object says, if it says one, and its scaling."""
    if not isinstance(said, dict):
        raise fields.error(name, "an object", "take it from the model's own config.json")
    values = {key: value for key, value in said.items() if value is not None}
    kinds = {values.pop(key) for key in ("rope_type", "type") if isinstance(values.get(key), str)} or {"default"}
    kind = kinds.pop()
    if kinds or kind not in _KEYS:
        raise fields.error(
            name, f"one rope_type of {', '.join(_KEYS)}", "lmjax scales rotary positions in no other way"
        )
    if values.pop("partial_rotary_factor", 1) != 1:
        raise fields.error(name, "partial_rotary_factor = 1", "lmjax turns whole heads")
    base = values.pop("rope_theta", None)
    known = _KEYS[kind].keys() | (set(_AMPLITUDES) if kind == "yarn" else set())
    numbers = [value for key, value in values.items() if key != "truncate"] + ([] if base is None else [base])
    flagged = type(values.get("truncate", True)) is bool
    if values.keys() - known or not flagged or not all(fits(float, value) and value > 0 for value in numbers):
        expected = ", ".join(["rope_theta", *sorted(known)])
        raise fields.error(name, f"numbers above 0, by {expected} of {kind!r} and no more", "take the model's own")
    if kind == "yarn":
        values = _with_amplitude(values, fields.size("max_position_embeddings"))
    absent = _KEYS[kind].keys() - values.keys() - _MAY_LACK.get(kind, set())
    if absent:
        raise fields.error(name, f"{', '.join(sorted(absent))}, too, for {kind!r}", "take it from the model's own")
    found = {ours: values[theirs] for theirs, ours in _KEYS[kind].items() if theirs in values}
    if "original_context" in found and not isinstance(found["original_context"], int):
        raise fields.error(name, "a whole original_max_position_embeddings", "take it from the model's own")
    return (None if base is None else float(base)), RotaryScaling("none" if kind == "default" else kind, **found)


def _with_amplitude(values: Mapping[str, Any], context: int) -> dict[str, Any]:
    """Yarn's fields with a factor and an attention_factor, as transformers infers them where they are left out."""
    values = dict(values)
    factor = values.setdefault("factor", context / values.get("original_max_position_embeddings", context))
    mscale, of_all = (values.pop(name, None) for name in _AMPLITUDES)

    def amplitude(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    both = mscale is not None and of_all is not None
    values.setdefault("attention_factor", amplitude(mscale) / amplitude(of_all) if both else amplitude(1.0))
    return values


def _only(fields: ConfigFields, name: str, values: set[float], default: float) -> float:
    if len(values) > 1:
        raise fields.error(name, f"one base, found {json.dumps(sorted(values))}", "keep the model's own")
    return values.pop() if values else default
