"""Reads the optimized HLO text of a compiled program: what one device computes, moves and waits for.

In: the text that `Compiled.as_text()` gives, scheduled and partitioned. Out: `Costs`, summed from the entry through
calls and through loops, which count as often as they run. The TPU compiler writes an estimate in cycles on every
operation that it schedules except collectives and custom calls: those are listed apart, with their shapes. Collectives
across slices stand in the text as transfers by way of the hosts, whose attributes say what they are.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lmjax.plan.device_groups import device_group

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
PRODUCTS = ("dot", "convolution")
ITEM_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # the others end in their width, as in s32

_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+[a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"  (ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Array:
    """One array of a shape, without its layout."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """As stored without padding."""
        width = re.match(r"[a-z]+(\d+)", self.dtype)
        bits = ITEM_BITS[self.dtype] if self.dtype in ITEM_BITS else int(width.group(1)) if width else 32
        return math.ceil(math.prod(self.dims) * bits / 8)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation. `attributes` is what stands behind the operands."""

    name: str
    result: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str  # the operands as written; of a constant, its value

    @property
    def place(self) -> str:
        """The modules and functions that it was traced from, as JAX names them; "" where the compiler made it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found.group(1) if found else ""

    def attribute(self, name: str) -> str | None:
        """The value of `name=...` up to the next comma, or inside its braces."""
        found = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found.group(1) if found else None

    def called(self, *names: str) -> list[str]:
        """The computations that the attributes `names` give."""
        values = [self.attribute(name) or "" for name in names]
        return [name.lstrip("%") for value in values for name in re.findall(r"%?[\w.\-]+", value.strip("{}"))]


@dataclass(frozen=True)
class Module:
    """Computations by name, and which one runs first."""

    computations: dict[str, list[Instruction]]
    entry: str


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind over one group of devices: bytes of their results, in all, and how many ran.

    An asynchronous one stands in the text several times, where it starts, in the fusions that run meanwhile and where
    it ends, under one channel: it counts once.
    """

    kind: str
    group: tuple[int, ...]  # the devices of one group, numbered along the mesh
    bytes: float
    count: int
    channel: str = ""

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a ring: a reduce-scatter's result is what one device keeps of the sum."""
        n = len(self.group)
        if n < 2:
            return 0.0
        share = {"all-gather": (n - 1) / n, "all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0}
        return self.bytes * share.get(self.kind, 1.0)


@dataclass(frozen=True)
class KernelCall:
    """A custom call such as Pallas': its shapes, how often it runs, and its own estimate where it has one."""

    target: str
    name: str
    operands: tuple[Array, ...]
    result: tuple[Array, ...]
    count: int
    flops: int | None = None
    bytes_accessed: int | None = None
    place: str = ""  # as the compiler names what it was traced from

    @property
    def bytes(self) -> int:
        """Of one call's operands and results."""
        return self.bytes_accessed or sum(a.bytes for a in (*self.operands, *self.result))


class Source(NamedTuple):
    """What cycles are of: operations of one opcode and name, and whether a product is among them."""

    opcode: str
    name: str
    product: bool


@dataclass
class Costs:
    """Sums over a program's run on one device."""

    cycles: int = 0
    flops: int = 0  # of dots and convolutions: two for a multiply and an add
    collectives: list[Collective] = field(default_factory=list)
    kernels: list[KernelCall] = field(default_factory=list)
    sources: Counter[Source] = field(default_factory=Counter)  # cycles
    unknown_loops: int = 0  # whose trip count was not found; their body counts once

    def add(self, other: Costs, times: int = 1) -> None:
        self.cycles += times * other.cycles
        self.flops += times * other.flops
        self.unknown_loops += other.unknown_loops
        for c in other.collectives:
            self.collectives.append(replace(c, bytes=times * c.bytes, count=times * c.count))
        self.kernels += [replace(k, count=times * k.count) for k in other.kernels]
        for source, cycles in other.sources.items():
            self.sources[source] += times * cycles


def parse(text: str) -> Module:
    """The module in `text`. Raises ValueError where there is no entry computation."""
    lines: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        header = None if line.startswith(" ") else _COMPUTATION.match(line)
        if header:
            current = header.group(2)
            lines[current] = []
            entry = current if header.group(1) else entry
        elif line.startswith("}") and line.strip() == "}":
            current = ""
        elif current and _INSTRUCTION.match(line):
            lines[current].append(line.strip())
        elif current and lines[current]:  # the metadata of a Pallas call spans several lines
            lines[current][-1] += " " + line.strip()
    if not entry:
        raise ValueError("not the text of an HLO module: it has no ENTRY computation")
    return Module({name: [_instruction(line) for line in body] for name, body in lines.items()}, entry)


def costs(module: Module) -> Costs:
    """What one run of the entry computation costs a device."""
    return _Walk(module).run(module.entry)


class _Walk:
    """Costs of computations, each worked out once."""

    def __init__(self, module: Module) -> None:
        self.computations = module.computations
        self.run = functools.cache(self._run)
        self.fused = functools.cache(self._fused)

    def _run(self, name: str) -> Costs:
        total, channels = Costs(), set[str]()
        shapes = {i.name: i.result for i in self.computations[name]}
        for instruction in self.computations[name]:
            cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            if cycles:
                total.cycles += int(cycles.group(1))
                total.sources[self._source(instruction)] += int(cycles.group(1))
            _count_own(total, instruction, shapes)
            self._count_called(total, instruction, channels)
        return total

    def _source(self, instruction: Instruction) -> Source:
        fused = instruction.called("calls") if instruction.opcode == "fusion" else []
        product = instruction.opcode in PRODUCTS or any(self.fused(callee).flops for callee in fused)
        return Source(instruction.opcode, instruction.place, product)

    def _count_called(self, total: Costs, instruction: Instruction, channels: set[str]) -> None:
        if instruction.opcode == "fusion":
            for callee in instruction.called("calls"):
                total.add(_new(self.fused(callee), channels))
        elif instruction.opcode == "while":
            trips = self.trips(instruction)
            total.unknown_loops += trips is None
            total.add(self.run(instruction.called("body")[0]), 1 if trips is None else trips)
        elif instruction.opcode == "conditional":
            branches = instruction.called("branch_computations", "true_computation", "false_computation")
            total.add(max((self.run(branch) for branch in branches), key=lambda costs: costs.cycles))
        elif instruction.opcode in ("call", "async-start"):
            for callee in instruction.called("to_apply", "calls"):
                total.add(self.run(callee))

    def _fused(self, name: str) -> Costs:
        """A fusion's FLOPs and collectives; its cycles stand on the fusion itself.

        A sum over devices of which a fusion keeps this one's slice is scattered: the whole is made on none.
        """
        total, computation = Costs(), self.computations[name]
        shapes = {i.name: i.result for i in computation}
        for instruction in computation:
            _count_own(total, instruction, shapes)
            for callee in instruction.called("calls") if instruction.opcode == "fusion" else []:
                total.add(self.fused(callee))
        opcodes, kept = {i.name: i.opcode for i in computation}, computation[-1]
        sliced = kept.opcode == "dynamic-slice" and opcodes.get(kept.operands[0]) == "all-reduce"
        if sliced and len(total.collectives) == 1:
            (summed,) = total.collectives
            total.collectives = [replace(summed, kind="reduce-scatter", bytes=sum(a.bytes for a in kept.result))]
        return total

    def trips(self, loop: Instruction) -> int | None:
        """How often a while loop runs: what the compiler says, or the constant that its counter is held against."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.called("condition")[0]]
        scalars = [i for i in condition if i.opcode == "constant" and i.arguments.isdigit()]
        fused = [c for i in condition if i.opcode == "fusion" for c in i.called("calls")]
        scalars += [i for c in fused for i in self.computations[c] if i.opcode == "constant" and i.arguments.isdigit()]
        return max((int(i.arguments) for i in scalars), default=None)


def _new(fused: Costs, channels: set[str]) -> Costs:
    """A fusion's costs without the collectives whose channel was seen; their channels are now seen."""
    fresh = [c for c in fused.collectives if not c.channel or c.channel not in channels]
    channels.update(c.channel for c in fresh)
    return replace(fused, collectives=fresh)


def _instruction(line: str) -> Instruction:
    name, rest = line.split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].strip()
    start = rest.index("(")
    stop = _closing(rest, start)
    arguments = rest[start + 1 : stop]
    return Instruction(
        name.replace("ROOT ", "").lstrip("%"),
        _arrays(result),
        rest[:start],
        tuple(_NAME.findall(arguments)),
        rest[stop + 1 :].lstrip(", "),
        arguments,
    )


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return start + match.start()
    raise ValueError(f"unbalanced parentheses: {text[start : start + 80]}")


def _arrays(shape: str) -> tuple[Array, ...]:
    without_layouts = re.sub(r"\{[^{}]*\}", "", shape)
    return tuple(Array(d, tuple(int(n) for n in dims.split(",") if n)) for d, dims in _ARRAY.findall(without_layouts))


def _count_own(total: Costs, instruction: Instruction, shapes: dict[str, tuple[Array, ...]]) -> None:
    """Adds an instruction's own FLOPs, or itself where it is a collective or a kernel."""
    operands = tuple(a for name in instruction.operands for a in shapes.get(name, ()))
    kind = instruction.opcode.removesuffix("-start")
    if instruction.opcode in PRODUCTS:
        total.flops += 2 * _multiplications(instruction, operands)
    elif kind in COLLECTIVES:
        result = instruction.result[-1:] if kind != instruction.opcode else instruction.result  # (operand, result, ...)
        channel = instruction.attribute("channel_id") or ""
        total.collectives.append(
            Collective(kind, device_group(instruction.attributes), sum(a.bytes for a in result), 1, channel)
        )
    elif instruction.opcode == "recv" and "_xla_megascale_transfer_type" in instruction.attributes:
        total.collectives.append(_across_slices(instruction))
    elif instruction.opcode == "custom-call":
        target = (instruction.attribute("custom_call_target") or "").strip('"')
        estimate = re.search(r'"cost_estimate":(\{[^}]*\})', instruction.attributes)
        own = json.loads(estimate.group(1)) if estimate else {}
        flops, accessed = (int(own[key]) if key in own else None for key in ("flops", "bytes_accessed"))
        name = re.sub(r"[.\d]+$", "", instruction.name)
        place = instruction.place
        total.kernels.append(KernelCall(target, name, operands, instruction.result, 1, flops, accessed, place))


def _multiplications(instruction: Instruction, operands: tuple[Array, ...]) -> int:
    (out,), (left, right) = instruction.result, operands[:2]
    if instruction.opcode == "dot":
        axes = (instruction.attribute("lhs_contracting_dims") or "{}").strip("{}")
        return math.prod(out.dims) * math.prod(left.dims[int(i)] for i in axes.split(",") if i)
    return _convolution(instruction, left.dims, right.dims, out.dims)


def _convolution(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]) -> int:
    """Multiplications whose input lies inside the padded array: the TPU compiler writes batched and multi-axis
    products as convolutions most of whose window lies outside."""
    labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels") or "")
    assert labels is not None, instruction
    lhs, rhs, result = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(pair.split("=") for pair in window.group(1).split()) if window else {}
    total = out[result.index("b")] * out[result.index("f")] * right[rhs.index("i")]
    for axis in sorted(set(lhs) - {"b", "f"}):
        number = int(axis)

        def part(name: str, default: str, number: int = number) -> str:
            return fields[name].split("x")[number] if name in fields else default

        low, _ = (int(n) for n in part("pad", "0_0").split("_"))
        total *= _taps(
            size=left[lhs.index(axis)],
            window=right[rhs.index(axis)],
            outputs=out[result.index(axis)],
            stride=int(part("stride", "1")),
            low=low,
            dilation=int(part("lhs_dilate", "1")),
            window_dilation=int(part("rhs_dilate", "1")),
        )
    return total


def _taps(size: int, window: int, outputs: int, stride: int, low: int, dilation: int, window_dilation: int) -> int:
    """Pairs of an output position and a place in the window that meet an element of the input, along one axis."""
    place = np.arange(outputs)[:, None] * stride + np.arange(window)[None, :] * window_dilation - low
    return int(((place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)).sum())


def _across_slices(received: Instruction) -> Collective:
    """What a device receives from those at its place in other slices, by way of the hosts.

    The target {1,2}x{0:3} is slices 1 and 2 and devices 0 to 3 of each, which the mesh numbers slice by slice.
    """
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', received.attributes)
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}x\{([\d,:]+)\}"', received.attributes)
    slices, devices = (_ranges(text) for text in target.groups()) if target else ([], [])
    group = tuple((each - 1) * (devices[-1] + 1) + devices[0] for each in slices)
    name = kind.group(1).lower().replace("_", "-") if kind else ""
    return Collective(name, group, sum(a.bytes for a in received.result[:1]), 1)


def _ranges(text: str) -> list[int]:
    """Numbers from "0:3,8", ends included."""
    ends = ([int(n) for n in part.split(":")] for part in text.split(","))
    return [n for each in ends for n in range(each[0], each[-1] + 1)]
