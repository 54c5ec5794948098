"""A search as lines of text and as JSON: the ranked table, what was left out, and the command that runs the best."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from lmjax.parallel.mesh import mesh_text
from lmjax.plan.candidates import Candidate
from lmjax.plan.search import Search, Tried
from lmjax.plan.slices import names

HEADINGS = (
    *("rank", "mesh", "micro", "remat", "block", "chunk", "vmem", "HBM GiB", "Gcycles", "predicted s", "step s"),
    *("tokens/s", "MFU", "bound by"),
)
LEFT = {"mesh", "remat", "bound by"}  # the other columns are numbers, which end at the right


def run_command(found: Search, spec: str, overrides: Sequence[str] = ()) -> str:
    """The command that runs the best candidate of the recipe `spec` as it was overridden; "" where none fits."""
    if not found.ranked:
        return ""
    options = found.ranked[0].candidate.options(found.recipe)
    return shlex.join(["lmjax", "run", spec, *overrides, *options])


def lines(found: Search, command: str) -> Iterator[str]:
    """What a person reads. Figures are of one device, but for tokens/s; none was measured on a chip."""
    where, recipe = found.where, found.recipe
    batch = f"{recipe.data.batch_size} rows x {recipe.data.sequence_length} tokens a step"
    yield f"{recipe.name} on {where.name}: {where.chips} chips, {where.devices} devices; {batch}"
    yield from _table([HEADINGS, *(_row(rank, each, found.own) for rank, each in enumerate(found.ranked, 1))])
    for each in found.refused:
        yield f"  {each.candidate.text}: {_refusal(each)}"
    compiled = len(found.ranked) + len(found.refused)
    cached = sum(each.cached for each in (*found.ranked, *found.refused))
    ruled_out = f"{found.too_large} are predicted not to fit and {found.slower} to be slower, by arithmetic alone"
    yield f"{found.considered} candidates: {ruled_out};"
    yield f"  {compiled} compiled, {cached} of them by an earlier search; {len(found.refused)} of them do not fit"
    if found.postponed:
        yield f"  the time was over before {found.postponed} more: the same command resumes"
    if not found.ranked:
        yield from _advice(found)
        return
    yield "Step times are the compiler's estimate, with kernels and collectives at the chip's published rates. It says"
    yield "nothing of the attention kernel's block, which a model of the kernel chose."
    yield ""
    yield command


def to_json(found: Search, command: str) -> str:
    """The same for a script: `results` are ranked, each with all figures of its estimate."""
    counts = {name: getattr(found, name) for name in ("considered", "too_large", "slower", "postponed")}
    results = [_choices(each) | _figures(each) | {"rank": rank} for rank, each in enumerate(found.ranked, 1)]
    refused = [_choices(each) | _figures(each) | {"refusal": each.result.refusal} for each in found.refused]
    head = {"recipe": found.recipe.name, "topology": found.where.name, **counts, "command": command}
    return json.dumps(head | {"results": results, "refused": refused})


def _choices(each: Tried) -> dict[str, Any]:
    chosen = each.candidate
    predicted = dataclasses.asdict(each.prediction) | {"step_seconds": each.prediction.step_seconds}
    return {
        "mesh": chosen.sizes,
        "microbatches": chosen.microbatches,
        "remat": chosen.remat,
        "attention_block": chosen.block,
        "unrolled_layers": chosen.unrolled,
        "loss_chunk": chosen.loss_chunk,
        "vector_memory": chosen.vector_memory,
        "cached": each.cached,
        "predicted": predicted,
    }


def _figures(each: Tried) -> dict[str, Any]:
    return each.result.estimate.to_dict() if each.result.estimate else {}


def _row(rank: int, each: Tried, own: Candidate | None) -> tuple[str, ...]:
    e, chosen = each.estimate, each.candidate
    assert e is not None and e.gcycles is not None and e.step_seconds is not None
    assert e.tokens_per_second is not None and e.mfu is not None and e.bound_by is not None
    return (
        str(rank),
        mesh_text(chosen.sizes),
        str(chosen.microbatches),
        chosen.remat + ", unrolled" * chosen.unrolled,
        str(chosen.block or "-"),
        str(chosen.loss_chunk or "-"),
        str(chosen.vector_memory or "-"),
        f"{e.peak_hbm_gib:.2f}",
        f"{e.gcycles:.4f}",
        f"{each.prediction.step_seconds:.4f}",
        f"{e.step_seconds:.4f}",
        f"{e.tokens_per_second:,.0f}",
        f"{e.mfu:.1%}",
        e.bound_by + (", the recipe's own" if chosen == own else ""),
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if len(rows) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(HEADINGS, row, widths, strict=True)
        yield "  ".join(text.ljust(w) if name in LEFT else text.rjust(w) for name, text, w in cells).rstrip()


def _refusal(each: Tried) -> str:
    e = each.result.estimate
    if e is None:
        return each.result.refusal
    return f"needs {e.peak_hbm_gib:.2f} of {e.hbm_gib:.2f} GiB, {e.over_by_gib:.2f} GiB too much"


def _advice(found: Search) -> Iterator[str]:
    """By how much the nearest missed, and what to change."""
    short = [(each, each.result.estimate) for each in found.refused if each.result.estimate is not None]
    if not short:
        yield "nothing fits: the compiler refused all that was tried"
        return
    nearest, e = min(short, key=lambda pair: pair[1].peak_hbm_gib)
    yield f"nothing fits: the nearest, {nearest.candidate.text}, needs {e.over_by_gib:.2f} GiB more than there are"
    sizes = names(found.where.generation)
    own = found.where.name.partition("x")[2] if found.where.count > 1 else found.where.name
    larger = sizes[sizes.index(own) + 1 :][:2] if own in sizes else []
    wider = f"a larger slice, {' or '.join(larger)}" if larger else "a generation with more memory"
    yield f"use {wider}, fewer or shorter rows (data.batch_size, data.sequence_length), or a smaller model"
