"""Memory and time of a training step from shapes alone, to choose what is worth compiling.

In: a recipe, a slice and a candidate. Out: a `Prediction` of one device's peak memory and of a step's time: matrix
products at the chip's peak, what they and the rest move at its HBM's, collectives at its links'. It takes microseconds
where the compiler takes a minute, and is right to 15% for most of the compiled steps that it was fitted to, which tests
hold it to; only the compiler's figures are shown as a plan.
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

# Of the compiler's programs, not of theory: round numbers near those with which the least squares of the relative
# errors are smallest, over the compiled candidates (tests/plan/compiled_candidates.jsonl), the plans of all GPT presets
# and the planned benchmarks.
SHORT_OF = 290  # over the width, and over the tokens: how much longer products of so few take
EMPTY_LANES = 0.45  # how much longer they take where heads fill no lane of a register, less where they fill some
SMALL_MEMORY = 16  # MiB of vector memory, beside which wide products take longer:
WIDE_FOR = 65_000  # the width over this
VECTOR_BYTES = 1000  # that vector units move in a cycle at most, which HBM may exceed
SUMMED = 2.5  # float32 copies of the gradients where those of several microbatches are added up
LAYER_ARRAYS = 14  # [n, D]-sized arrays that one layer's backward pass holds beside what was kept, half of them whole
# [n, D]-sized arrays that a layer reads or writes beside its products, forward and backward: in a loop, and unrolled
# where something is made again; where nothing is, the compiler merges all of it into products
TOUCHED, TOUCHED_AGAIN = 10, 12
STACKED = 3.6  # times that what a loop keeps is moved
STACKED_MATRICES = 7.0  # times that gathered matrices are, which a loop that keeps everything keeps, too
# [n, D]-sized arrays that are whole on every device of a tensor axis, and those that are cut ever thinner by it
WHOLE_TOUCHED, THIN_TOUCHED = 16, 3
GATHERED_TOUCHED = 1.0  # times that a row's keys and values are moved where they are gathered over a sequence axis
# Shards of no whole number of TILE_ROWS are gathered by adding up copies that zeros fill:
PADDED = 8.0  # times that such a gather moves its result
LOGIT_BYTES = 4  # of each logit that exists: its gradient takes its place
LOGIT_TOUCHED = 10  # bytes of each logit that are read or written
SCORE_TOUCHED = 100  # bytes of each score of attention that XLA makes, its dropout included (GPT-1's alone)
UPDATE_BYTES = 70  # of each parameter, once in a step: gradients summed, parameter, two moments
PART_BYTES, PART_TABLE_BYTES = 14, 8  # in each microbatch: of each parameter, and of each element of the whole table


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
        self.unrolled = candidate.unrolled or not analyst.recipe.compute.scan_layers
        policy = "unrolled" if self.unrolled and candidate.remat == "none" else candidate.remat
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
        one = 4 * self.parameters
        gradients = one * (SUMMED if self.candidate.microbatches > 1 else 1)
        kept = model.layers * self._kept_bytes()
        gathered = 2 * self.of.item * sum(products(model).values()) / tensor if fsdp > 1 else 0.0
        if self.candidate.remat == "none":  # what was gathered is among what is kept: matrices, keys and values, rows
            kept += model.layers * (gathered / 2 + self._gathered_rows())
        layer = gradients + self.n * self.of.item * LAYER_ARRAYS * model.width * (1 + 1 / tensor) / 2 + gathered
        chunk = self._loss_chunk()
        logits = chunk * self.vocab * LOGIT_BYTES + self.table * (self.of.item + 4) + gradients - one
        return self.state_bytes + kept + max(layer, logits)

    def _gathered_rows(self) -> float:
        """Bytes of a layer's keys and values of other devices' tokens, and of what both branches read whole."""
        model, tensor, sequence = self.model, self.sizes["tensor"], self.sizes["sequence"]
        whole = 2 * self.n * self.of.item * model.width * (1 - 1 / tensor)
        return self._whole_keys() * _share(sequence) + whole

    def _whole_keys(self) -> float:
        """Bytes of a layer's keys and values of whole rows."""
        model = self.model
        heads = 2 * model.kv_heads * model.head_dim / self.sizes["tensor"]
        return self.n * self.sizes["sequence"] * heads * self.of.item

    def _loss_chunk(self) -> int:
        """Tokens of a device whose logits exist at once: by default at most half (`lmjax.objective.chunks`)."""
        usual = min(LOGITS_AT_ONCE // (self.model.vocab_size or 1), max(self.n // 2, 1))
        return min(self.n, self.candidate.loss_chunk or usual)

    def compute_seconds(self) -> float:
        """Matrix products, longer than at the peak, and what is kept, touched and updated at the HBM's rate."""
        where, parts = self.where, self.candidate.microbatches
        vectors = min(where.device_bandwidth, VECTOR_BYTES * where.chip.clock)
        moved = self.n * self.vocab * LOGIT_TOUCHED
        moved += PART_BYTES * self.parameters + PART_TABLE_BYTES * self.table
        moved += 0 if self.of.splash else SCORE_TOUCHED * self._scores()
        if self.model.width // self.sizes["fsdp"] % TILE_ROWS:
            moved += PADDED * self._gathered()
        part = self._products() / where.device_flops + self._layers_moved() / vectors + moved / where.device_bandwidth
        return parts * part + UPDATE_BYTES * self.parameters / where.device_bandwidth

    def _products(self) -> float:
        """FLOPs of a microbatch's products, and of as many more as would take the time that is lost between them."""
        model, matrices = self.model, products(self.model)
        made = 3 * sum(matrices.values()) + sum(matrices[name] for name in self.kept.again)
        logits = 3 if self._loss_chunk() == self.n else 4  # in parts they are made again
        flops = 2 * self.n * (model.layers * made / self.sizes["tensor"] + logits * self.vocab * model.width)
        # of attention that makes all scores: two products forward, four backward, two again
        flops += 0 if self.of.splash else 2 * (6 + 2 * self.kept.attention_again) * self._scores() * model.head_dim
        empty = 1 - model.head_dim / filled(model.head_dim, LANES) if self.of.splash else 0.0
        memory = self.candidate.vector_memory
        waiting = model.width / WIDE_FOR if memory is not None and memory <= SMALL_MEMORY else 0.0
        return flops * (1 + SHORT_OF / model.width + SHORT_OF / self.n + EMPTY_LANES * empty + waiting)

    def _gathered(self) -> float:
        """Bytes of the layers' matrices that a device gathers, and whose gradients it sums, in a microbatch."""
        return (2 if self.candidate.remat == "none" else 3) * self.of.item * self._layers()

    def _layers(self) -> float:
        """Elements of the layers' matrices, whole along fsdp."""
        return self.parameters * self.sizes["fsdp"] - self.table

    def _layers_moved(self) -> float:
        """Bytes that a microbatch's layers move beside their products: what they touch, and what a loop keeps."""
        model, tensor, everything = self.model, self.sizes["tensor"], self.candidate.remat == "none"
        stream = model.layers * self.n * self.of.item * model.width
        moved = (WHOLE_TOUCHED + THIN_TOUCHED * tensor) * stream if tensor > 1 else 0.0
        moved += GATHERED_TOUCHED * model.layers * self._whole_keys() if self.sizes["sequence"] > 1 else 0.0
        if self.unrolled:
            return moved + (0.0 if everything else TOUCHED_AGAIN * stream / tensor)
        moved += TOUCHED * stream / tensor + STACKED * model.layers * self._kept_bytes()
        if everything and self.sizes["fsdp"] > 1:
            moved += STACKED_MATRICES * self.of.item * self._layers()
        return moved

    def _scores(self) -> float:
        """Of a microbatch's attention in all layers."""
        model, length = self.model, self.of.recipe.data.sequence_length
        return float(self.n * length * model.attention.heads / self.sizes["tensor"] * model.layers)

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
        exchanged, share = 2 + self.kept.attention_again, _share(sizes["sequence"])
        seconds += parts * model.layers * exchanged * self._whole_keys() * share / rates["sequence"]
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
