"""Memory and time of a training step from shapes alone, to choose what is worth compiling.

In: a recipe, a slice and a candidate. Out: a `Prediction` of one device's peak memory and of a step's time: matrix
products at the chip's peak, what they and the rest move at its HBM's, collectives at its links'. It takes microseconds
where the compiler takes a minute, and is right to a factor, which tests hold it to; only the compiler's figures are
shown as a plan.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh

from lmjax.model.attention import TILE_ROWS
from lmjax.model.language_model import LanguageModel
from lmjax.model.transformer import LOGITS_AT_ONCE
from lmjax.model.zigzag import LANES
from lmjax.optim.train_state import TrainState
from lmjax.parallel.chips import filled
from lmjax.parallel.mesh import AXES
from lmjax.parallel.placement import parameter_shardings, state_shardings
from lmjax.plan.attention_blocks import kernel_seconds
from lmjax.plan.candidates import Candidate
from lmjax.plan.slices import NETWORK_BANDWIDTH, Slice
from lmjax.settings import ModelSettings, Pretrain
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.resolved import known_model, resolve

# Of the compiler's programs, not of theory; each is the round number that came nearest over the compiled cases.
EFFICIENCY = 0.97  # of the peak at which matrix products of unlimited width run
SHORT_OF = 90  # over the width: how much longer products of that width take
LAYER_ARRAYS = 14  # [n, D]-sized arrays that one layer's backward pass holds beside what was kept
# [n, D]-sized arrays that a layer reads or writes beside its products, forward and backward: in a loop, unrolled, and
# unrolled without computing anything again, which lets the compiler merge more
TOUCHED, TOUCHED_UNROLLED, TOUCHED_ONCE = 60, 97, 36
# Times that what a loop keeps is moved; where it keeps everything, it copies arrays, too.
STACKED, STACKED_ALL = 2.5, 5.5
# Shards of no whole number of TILE_ROWS are gathered by adding up copies that zeros fill:
PADDED = 8.0  # times that such a gather moves its result
LOGIT_BYTES = 4  # of each logit that exists: its gradient takes its place
LOGIT_TOUCHED = 24  # bytes of each logit that are read or written
UPDATE_BYTES = 32  # of each parameter that the optimizer reads or writes: gradient, parameter, two moments


@dataclass(frozen=True)
class Kept:
    """What a remat policy keeps of a layer, in arrays of each kind, and what the backward pass makes again."""

    queries: int = 0
    keys_values: int = 0
    attended: int = 0
    width: int = 0  # arrays of [n, D] beside the layer's input
    up: bool = False  # the [n, F] products before the activation: one, or two of a gated layer
    hidden: float = 0  # arrays of [n, F] beside them
    again: tuple[str, ...] = ()  # products
    attention_again: bool = False


# As in lmjax/model/remat.py.
KEPT: dict[str, Kept] = {
    "unrolled": Kept(queries=1, keys_values=1, attended=1, width=3, up=True),  # "none" without a loop
    "none": Kept(queries=1, keys_values=1, attended=1, width=5, up=True, hidden=4),
    "dots": Kept(queries=1, keys_values=1, width=2, up=True, attention_again=True),
    "projections": Kept(queries=1, keys_values=1, attended=1, width=1, up=True),
    "minimal": Kept(queries=1, keys_values=1, width=2, up=True, attention_again=True),
    "all_but_attended": Kept(queries=1, keys_values=1, width=1, up=True, attention_again=True),
    "all_but_query": Kept(keys_values=1, attended=1, width=1, up=True, again=("query",)),
    "key_value_up": Kept(keys_values=1, attended=1, up=True, again=("query", "out")),
    "attention": Kept(queries=1, keys_values=1, attended=1, again=("out", "up")),
    "up": Kept(up=True, again=("query", "key_value"), attention_again=True),
    "full": Kept(again=("query", "key_value", "out", "up"), attention_again=True),
}


@dataclass(frozen=True)
class Prediction:
    """Of one device: bytes at the peak, and seconds of a step."""

    memory: float
    compute_seconds: float
    kernel_seconds: float
    collective_seconds: float

    @property
    def step_seconds(self) -> float:
        """The longer of computing and communicating, as in an `Estimate`."""
        return max(self.compute_seconds + self.kernel_seconds, self.collective_seconds)


class Analyst:
    """Predicts candidates of one recipe on one slice."""

    def __init__(self, recipe: Pretrain, where: Slice) -> None:
        self.recipe, self.where = recipe, where
        self.model, task, resolved = known_model(recipe), NextToken(), resolve(recipe)
        model = task.model(resolved, "tpu")
        self.item = model.dtype.itemsize  # bytes of an activation
        self.splash = model.implementation(recipe.data.sequence_length) == "splash"
        self.axes = model.logical_axes()
        course = task.numbers(resolved, recipe.train.steps).course
        self.shapes = _state_shapes(model, task.optimizer(resolved, self.axes, course)[0])
        self.state = functools.cache(self._state)

    def predict(self, candidate: Candidate) -> Prediction:
        """Memory and time of one candidate."""
        work = _Work(self, candidate)
        return Prediction(work.memory(), work.compute_seconds(), work.kernel_seconds(), work.collective_seconds())

    def _state(self, mesh: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of the state on one device, and how many parameters are there."""
        abstract: Any = AbstractMesh(mesh, AXES)
        shardings = state_shardings(self.shapes, parameter_shardings(self.axes, abstract), abstract)

        def local(leaf: Any, sharding: Any) -> int:
            return math.prod(sharding.shard_shape(leaf.shape))

        sizes = jax.tree.map(local, self.shapes, shardings)
        held = jax.tree.map(lambda leaf, size: leaf.dtype.itemsize * size, self.shapes, sizes)
        return sum(jax.tree.leaves(held)), sum(jax.tree.leaves(sizes.params))


def _state_shapes(model: LanguageModel, optimizer: Any) -> TrainState:
    shapes: TrainState = jax.eval_shape(lambda rng: TrainState.create(model.init(rng), optimizer), jax.random.key(0))
    return shapes


def products(model: ModelSettings) -> dict[str, int]:
    """Elements of each of a layer's matrices."""
    query = model.width * model.attention.heads * model.head_dim
    up = model.width * model.feed_forward_width
    return {
        "query": query,
        "key_value": 2 * model.width * model.kv_heads * model.head_dim,
        "out": query,
        "up": up * (2 if model.feed_forward.gated else 1),
        "down": up,
    }


class _Work:
    """One candidate's arithmetic. `n` is the tokens of a microbatch on a device."""

    def __init__(self, analyst: Analyst, candidate: Candidate) -> None:
        self.of, self.candidate, self.model, self.where = analyst, candidate, analyst.model, analyst.where
        # Of an unrolled layer from which nothing is computed again, the compiler itself keeps no more than it needs.
        policy = "unrolled" if candidate.unrolled and candidate.remat == "none" else candidate.remat
        self.sizes, self.kept = candidate.sizes, KEPT[policy]
        data = analyst.recipe.data
        self.rows = data.batch_size // candidate.microbatches // candidate.row_shards
        self.n = self.rows * data.sequence_length // self.sizes["sequence"]
        self.vocab = (self.model.vocab_size or 0) / self.sizes["tensor"]
        self.table = self.vocab * self.model.width  # elements of the head's matrix where it is whole along fsdp
        self.state_bytes, self.parameters = analyst.state(candidate.mesh)

    def _kept_bytes(self) -> float:
        """What one layer keeps of a microbatch until its backward pass."""
        model, kept, tensor = self.model, self.kept, self.sizes["tensor"]
        heads = model.attention.heads * (kept.queries + kept.attended) + 2 * model.kv_heads * kept.keys_values
        head_dim = filled(model.head_dim, LANES) if self.of.splash else model.head_dim
        products = 2 if model.feed_forward.gated else 1
        hidden = (kept.up * products + kept.hidden) * model.feed_forward_width
        return self.n * self.of.item * (model.width * (1 + kept.width) + heads * head_dim + hidden) / tensor

    def memory(self) -> float:
        """The state, what the layers keep, and the larger of the loss's needs and those of the backward pass."""
        model, tensor, fsdp = self.model, self.sizes["tensor"], self.sizes["fsdp"]
        gradients = 4 * self.parameters * (2 if self.candidate.microbatches > 1 else 1)
        kept = model.layers * self._kept_bytes()
        gathered = 2 * self.of.item * sum(products(model).values()) / tensor if fsdp > 1 else 0.0
        if self.candidate.remat == "none" and fsdp > 1:
            kept += model.layers * gathered / 2  # the gathered matrices are among what is kept
        layer = gradients + self.n * self.of.item * LAYER_ARRAYS * model.width + gathered
        chunk = self._loss_chunk()
        accumulated = gradients / 2 if self.candidate.microbatches > 1 else 0.0
        logits = chunk * self.vocab * LOGIT_BYTES + self.table * (self.of.item + 4) + accumulated
        return self.state_bytes + kept + max(layer, logits)

    def _loss_chunk(self) -> int:
        """Tokens of a device whose logits exist at once: by default at most half (`lmjax.objective.chunks`)."""
        usual = min(LOGITS_AT_ONCE // (self.model.vocab_size or 1), max(self.n // 2, 1))
        return min(self.n, self.candidate.loss_chunk or usual)

    def compute_seconds(self) -> float:
        """Matrix products at the peak; what is kept, touched and updated at the HBM's rate."""
        model, where, tensor = self.model, self.where, self.sizes["tensor"]
        matrices = products(model)
        made = 3 * sum(matrices.values()) + sum(matrices[name] for name in self.kept.again)
        logits = 3 if self._loss_chunk() == self.n else 4  # in parts they are made again
        flops = 2 * self.n * (model.layers * made / tensor + logits * self.vocab * model.width)
        flops += 0 if self.of.splash else self._scores_flops()
        width = self.n * self.of.item * model.width
        stacking, touched = self._traffic()
        moved = model.layers * (stacking * self._kept_bytes() + touched * width / tensor)
        moved += self.n * self.vocab * LOGIT_TOUCHED
        moved += self.parameters * (4 + self.of.item) * 2  # cast for each pass
        parts = self.candidate.microbatches
        moved += self.parameters * (12 if parts > 1 else 0)  # added up
        if model.width // self.sizes["fsdp"] % TILE_ROWS:
            moved += PADDED * self._gathered()
        update = UPDATE_BYTES * self.parameters / where.device_bandwidth
        flops *= (1 + SHORT_OF / model.width) / EFFICIENCY
        return parts * (flops / where.device_flops + moved / where.device_bandwidth) + update

    def _gathered(self) -> float:
        """Bytes of the layers' matrices that a device gathers, and whose gradients it sums, in a microbatch."""
        return (2 if self.candidate.remat == "none" else 3) * self.of.item * self._layers()

    def _layers(self) -> float:
        """Elements of the layers' matrices, whole along fsdp."""
        return self.parameters * self.sizes["fsdp"] - self.table

    def _traffic(self) -> tuple[float, float]:
        """How often what a layer keeps is moved for its own sake, and how many arrays it moves beside."""
        everything = self.candidate.remat == "none"
        if self.candidate.unrolled:
            return 0.0, TOUCHED_ONCE if everything else TOUCHED_UNROLLED
        return (STACKED_ALL, TOUCHED_ONCE) if everything else (STACKED, TOUCHED)

    def _scores_flops(self) -> float:
        """Of attention by einsum, which makes all scores: two products forward, four backward, two again."""
        model, length = self.model, self.of.recipe.data.sequence_length
        again = 2 if self.kept.attention_again else 0
        return 2.0 * (6 + again) * self.n * length * model.attention.heads * model.head_dim * model.layers

    def kernel_seconds(self) -> float:
        """Of splash attention in all layers."""
        if not self.of.splash:
            return 0.0
        forward = 2 if self.kept.attention_again else 1
        heads = self.rows * self.model.attention.heads / self.sizes["tensor"]
        length = self.of.recipe.data.sequence_length
        each = kernel_seconds(self.model, length, self.sizes["sequence"], self.candidate.block, self.where, forward)
        return self.candidate.microbatches * heads * each

    def collective_seconds(self) -> float:
        """What one device sends over each axis at the rate of its links."""
        model, item, parts = self.model, self.of.item, self.candidate.microbatches
        sizes, rates = self.sizes, rates_of(self.candidate, self.where)
        # the table is looked up in float32, and its gradient is summed so; the head and the layers are in bfloat16
        gathered = self._gathered() + (4 + item + 2 * 4) * self.table
        seconds = parts * gathered * _share(sizes["fsdp"]) / rates["fsdp"]
        gradients = (item * self._layers() + 4 * self.table) / sizes["fsdp"]
        for axis in ("replica", "data", "sequence"):
            seconds += parts * 2 * gradients * _share(sizes[axis]) / rates[axis]
        stream = self.n * model.width * item
        exchanged = 8 + (0 if self.candidate.remat == "none" else 6) + ("out" in self.kept.again)
        seconds += parts * model.layers * exchanged * stream * _share(sizes["tensor"]) / rates["tensor"]
        whole = self.n * sizes["sequence"] * 2 * model.kv_heads * model.head_dim / sizes["tensor"] * item
        exchanged = 2 + self.kept.attention_again
        seconds += parts * model.layers * exchanged * whole * _share(sizes["sequence"]) / rates["sequence"]
        return seconds


def _share(size: int) -> float:
    """Of an array that a ring of so many devices gathers, how much each sends."""
    return (size - 1) / size


def rates_of(candidate: Candidate, where: Slice) -> dict[str, float]:
    """Bytes/s that a device can send along each mesh axis, the innermost laid along the fewest physical axes first."""
    free = sorted((size for size in where.shape if size > 1), reverse=True)
    per_link = where.chip.link_bandwidth / where.chip.devices
    rates = {}
    for name in reversed(AXES[1:]):
        size, links = candidate.sizes[name], 0
        covered = 1
        while covered < size and free:
            physical = free.pop(0)
            links += 1 if min(physical, size) == 2 else 2
            if covered * physical > size:  # the rest of it is left for the next axis
                free.insert(0, covered * physical // size)
            covered *= physical
        rates[name] = max(links, 1) * per_link
    between = NETWORK_BANDWIDTH / where.chip.devices if where.count > 1 else per_link
    return rates | {"replica": between}
