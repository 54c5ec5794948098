"""Loss, perplexity and bits per byte of a checkpoint on any text, for `lmjax evaluate`; and the probability of texts.

In: a checkpoint and sources of documents. Out: numbers of each source, or of each document. A document is read alone,
after the token that precedes every text; the end of the text is not counted.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lmjax.data.sources import open_source
from lmjax.errors import UserError, require
from lmjax.evaluate.likelihood import Likelihood, TokenProbs
from lmjax.evaluate.validation import perplexity_of
from lmjax.generate.table import print_alternatives
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.start_jax import prepare_jax
from lmjax.runs.load import Trained, load
from lmjax.settings import MeshSettings, SourceSettings

ENCODED_AT_ONCE = 256  # documents
COLUMNS = ("documents", "tokens", "bytes", "loss", "perplexity", "bits/byte")


class TextLikelihood(NamedTuple):
    """The probability of a text: its natural logarithm, and over how many tokens and bytes of UTF-8 it goes."""

    text: str
    log_prob: float
    tokens: int
    bytes: int
    found: TokenProbs  # of each token
    ids: np.ndarray  # int32 [tokens]


@dataclass(frozen=True)
class SourceLikelihood:
    """The numbers of a source, or of several."""

    source: str
    documents: int
    skipped: int  # bad records
    tokens: int
    bytes: int
    log_prob: float  # natural logarithm, of all documents
    lossless: bool  # whether the tokenizer keeps all of a text; else bits per byte would be those of another text

    @property
    def loss(self) -> float:
        """Nats per token."""
        return -self.log_prob / self.tokens

    @property
    def perplexity(self) -> float:
        return perplexity_of(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        return -self.log_prob / self.bytes / math.log(2) if self.lossless else None

    def plain(self) -> dict[str, Any]:
        return {
            "source": self.source,
            **{name: getattr(self, name) for name in ("documents", "skipped", "tokens", "bytes", "loss")},
            **{name: getattr(self, name) for name in ("perplexity", "bits_per_byte")},
        }


class Reader:
    """Reads texts with a checkpoint on all devices."""

    def __init__(
        self, checkpoint: Path | str, mesh: MeshSettings = MeshSettings(), stride: int | None = None, top: int = 0
    ) -> None:
        """Raises UserError where there is no language model or tokenizer; for a mesh or stride that does not fit."""
        prepare_jax()
        self.mesh = make_mesh(mesh)
        self.trained: Trained = load(checkpoint, self.mesh)
        tokenizer, model = self.trained.tokenizer, self.trained.model
        predicts = not self.trained.recipe.scores
        require(predicts, "CKPT", str(checkpoint), "a language model, not a reward model", "use lmjax score")
        self.trained.require_finite()
        begin = getattr(tokenizer, "bos_id", None)
        self._begin = tokenizer.eos_id if begin is None else begin
        self.likelihood = Likelihood(
            *(model, self.trained.params, self.mesh),
            entries=tokenizer.vocab_size,
            stride=stride,
            top=top,
        )

    @property
    def lossless(self) -> bool:
        return self.trained.tokenizer.lossless

    def texts(self, texts: Iterable[str]) -> Iterator[TextLikelihood]:
        """Each text, in order, as it is read. Raises UserError for one that is no Unicode."""
        remaining = iter(texts)
        parts = iter(lambda: list(itertools.islice(remaining, ENCODED_AT_ONCE)), [])
        encode = self.trained.tokenizer.encode_batch
        encoded = ((text, ids) for some in parts for text, ids in zip(some, encode(some), strict=True))
        read, predicted = itertools.tee(encoded)
        sequences = (np.append(self._begin, ids) for _, ids in predicted)
        for (text, ids), found in zip(read, self.likelihood.of(sequences), strict=True):
            yield TextLikelihood(text, float(found.log_probs.sum()), len(ids), len(text.encode()), found, ids)

    def source(self, settings: SourceSettings) -> SourceLikelihood:
        """All documents of a source. Raises UserError where it cannot be read, or holds no token."""
        documents = open_source(settings)
        count = tokens = size = 0
        log_prob = 0.0
        for one in self.texts(documents):
            count, tokens, size, log_prob = count + 1, tokens + one.tokens, size + one.bytes, log_prob + one.log_prob
        if not tokens:
            raise UserError(f"{settings.path}: its {count} documents have no text; give a source with text")
        return SourceLikelihood(settings.path, count, documents.skipped, tokens, size, log_prob, self.lossless)

    def about(self) -> str:
        """What is read with, in words."""
        model, context = self.trained.model, self.trained.model.settings.context
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.trained.params))
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        return (
            f"step {self.trained.step}, {parameters:,} parameters in {model.dtype.name} on {devices}; "
            f"context {context}, stride {self.likelihood.stride}"
        )


def print_evaluation(
    checkpoint: Path, sources: Sequence[SourceSettings], *, mesh: MeshSettings, stride: int | None, as_json: bool
) -> None:
    """Prints the numbers of each source and, where there are several, of all; JSON has one object for each."""
    reader = Reader(checkpoint, mesh, stride)
    print(reader.about(), file=sys.stderr)
    if not reader.lossless:
        print("no bits per byte: the tokenizer does not keep all of a text", file=sys.stderr)
    found = [reader.source(settings) for settings in sources]
    if len(found) > 1:
        found.append(added(found))
    print(json.dumps([one.plain() for one in found], indent=2) if as_json else table_of(found))
    for one in found[: len(sources)]:
        if one.skipped:
            print(f"{one.source}: {one.skipped} bad records were left out", file=sys.stderr)


def added(found: Sequence[SourceLikelihood]) -> SourceLikelihood:
    """All sources as one: every token counts alike."""
    sums = {name: sum(getattr(one, name) for one in found) for name in ("documents", "skipped", "tokens", "bytes")}
    return SourceLikelihood(
        "all", **sums, log_prob=math.fsum(one.log_prob for one in found), lossless=found[0].lossless
    )


def table_of(found: Sequence[SourceLikelihood]) -> str:
    width = max(len("source"), *(len(one.source) for one in found))
    heads = " ".join(f"{name:>12}" for name in COLUMNS)
    lines = [f"{'source':{width}} {heads}"]
    for one in found:
        bits = "" if one.bits_per_byte is None else f"{one.bits_per_byte:.4f}"
        numbers = f"{one.documents:>12,} {one.tokens:>12,} {one.bytes:>12,} {one.loss:>12.4f} {one.perplexity:>12.4f}"
        lines.append(f"{one.source:{width}} {numbers} {bits:>12}".rstrip())
    return "\n".join(lines)


def print_probabilities(
    checkpoint: Path, texts: Iterable[str], *, stride: int | None = None, top: int = 0, as_json: bool = False
) -> None:
    """Prints log P(S) of each text, in nats, whole, per token and per byte, as it is read.

    With `top`, the tokens of each text follow, each with so many that are the likeliest in its place.
    """
    reader = Reader(checkpoint, stride=stride, top=top)
    if not as_json:
        print(f"{'log P(S)':>12} {'per token':>10} {'per byte':>10}  text")
    for one in reader.texts(texts):
        per_token, per_byte = (one.log_prob / count if count else 0.0 for count in (one.tokens, one.bytes))
        if not as_json:
            shown = json.dumps(one.text[:100], ensure_ascii=False)
            print(f"{one.log_prob:>12.4f} {per_token:>10.4f} {per_byte:>10.4f}  {shown}", flush=True)
        tokens, likeliest = reader.trained.token_texts(one.ids) if top else [], _likeliest(reader, one.found)
        if as_json:
            out = {name: getattr(one, name) for name in ("text", "log_prob", "tokens", "bytes")}
            out |= {"log_prob_per_token": per_token, "log_prob_per_byte": per_byte}
            each = zip(tokens, one.found.log_probs.tolist(), likeliest, strict=False)
            out |= {"each": [{"token": own, "log_prob": p, "top": pairs} for own, p, pairs in each]} if top else {}
            print(json.dumps(out, ensure_ascii=False), flush=True)
        elif top:
            print_alternatives(tokens, one.found.log_probs.tolist(), likeliest)


def _likeliest(reader: Reader, found: TokenProbs) -> list[list[tuple[str, float]]]:
    rows = zip(found.top_ids, np.exp(found.top_log_probs), strict=True)
    return [list(zip(reader.trained.token_texts(ids), shares.tolist(), strict=True)) for ids, shares in rows]
