"""Dense layers and norms as torch's modules hold them, and as lmjax does: the same numbers in other shapes.

A kernel of torch's Linear is [out, in]; lmjax's keep heads apart, and keys and values together on an axis of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.model.transformer import Params
from lmjax.settings import ModelSettings

Take = Callable[[str, tuple[int, ...]], np.ndarray]  # a tensor by its name and the shape that it must have
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class TaskHead:
    """A dense layer on top of a model: of classes of a row, a choice, tokens, or the start and end of a span.

    kernel [D, n] and bias [n] are the "head" of `lmjax.model.heads.TaskModel`. labels: the n classes' names; () where
    the folder has none. A next sentence head's class 0 is the pair of sentences that follow each other.
    """

    kind: str  # "next_sentence", "sequence", "choice", "tokens" or "span"
    params: Params
    labels: tuple[str, ...] = ()


def read_linear(take: Take, name: str, inner: tuple[int, ...], features: tuple[int, ...], bias: bool) -> Params:
    """A dense layer's kernel [*inner, *features] and, with `bias`, its bias [*features]."""
    inputs, outputs = int(np.prod(inner)), int(np.prod(features))
    kernel = take(f"{name}.weight", (outputs, inputs)).T.reshape(*inner, *features)
    return {"kernel": kernel} | ({"bias": take(f"{name}.bias", (outputs,)).reshape(features)} if bias else {})


def write_linear(name: str, dense: Params, inner: int = 1) -> Tensors:
    """A dense layer whose kernel's first `inner` axes are those of its inputs."""
    kernel = array(dense["kernel"])
    inputs = int(np.prod(kernel.shape[:inner]))
    tensors = {f"{name}.weight": kernel.reshape(inputs, -1).T}
    return tensors | ({f"{name}.bias": array(dense["bias"]).reshape(-1)} if "bias" in dense else {})


def paired(key: Params, value: Params) -> Params:
    """Two dense layers as one with an axis of two."""
    return {part: np.stack([key[part], value[part]], axis=-3) for part in key}


def part_of(pair: Params, index: int) -> Params:
    """One of `paired`."""
    return {part: np.take(array(pair[part]), index, axis=-3) for part in pair}


def read_norm(take: Take, name: str, settings: ModelSettings, width: int | None = None) -> Params:
    """A norm's scale, and its bias if it has one, [width] each; of the model's width where that is None."""
    size = (width or settings.width,)
    scale = {"scale": take(f"{name}.weight", size)}
    bias = {} if settings.norm.kind == "rmsnorm" else {"bias": take(f"{name}.bias", size)}
    return {"norm": scale | bias}


def write_norm(name: str, norm: Params) -> Tensors:
    kinds = {"scale": "weight", "bias": "bias"}
    return {f"{name}.{kinds[part]}": array(value) for part, value in norm["norm"].items()}


def array(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)
