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
from lmjax.evaluate.detokenize import CorpusTokens, corpus_tokens, detokenized
from lmjax.evaluate.likelihood import Likelihood, TokenProbs, growing
from lmjax.evaluate.validation import perplexity_of
from lmjax.generate.table import print_alternatives
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.start_jax import prepare_jax
from lmjax.runs.load import Trained, load
from lmjax.settings import MeshSettings, SourceSettings
from lmjax.tokenizers.base import NoTokensError, refusal
from lmjax.tokenizers.tokenizer import Tokenizer

ENCODED_AT_ONCE = 256  # documents
COLUMNS = ("documents", "tokens", "bytes", "loss", "perplexity", "bits/byte")
WORD_COLUMNS = ("words", "word ppl")  # of a corpus that was detokenised


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
    words: CorpusTokens | None = None  # of the corpus, which was detokenised

    @property
    def loss(self) -> float:
        """Nats per token."""
        return -self.log_prob / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss), of a token."""
        return perplexity_of(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """Of the UTF-8 of the texts that are read; None where the tokenizer does not keep all of them."""
        return -self.log_prob / self.bytes / math.log(2) if self.lossless else None

    @property
    def word_perplexity(self) -> float | None:
        """exp(nats / tokens of the corpus), to which the ends of lines belong (Radford et al. 2019, section 3.1)."""
        return None if self.words is None else perplexity_of(-self.log_prob / sum(self.words))

    def plain(self) -> dict[str, Any]:
        of_words = {} if self.words is None else {**self.words._asdict(), "word_perplexity": self.word_perplexity}
        return {
            "source": self.source,
            **{name: getattr(self, name) for name in ("documents", "skipped", "tokens", "bytes", "loss")},
            **{name: getattr(self, name) for name in ("perplexity", "bits_per_byte")},
            **of_words,
        }


class _Texts:
    """The texts of a source as they are read: of a corpus detokenised, and its tokens counted.

    Where bad records are skipped, those that the tokenizer cannot encode are, too.
    """

    def __init__(self, settings: SourceSettings, corpus: str | None, tokenizer: Tokenizer) -> None:
        self._documents, self._corpus, self._tokenizer = open_source(settings), corpus, tokenizer
        self._skips = settings.on_bad_record == "skip"
        self._left_out = 0
        self.counted: list[CorpusTokens] = []

    @property
    def skipped(self) -> int:
        return self._documents.skipped + self._left_out

    def __iter__(self) -> Iterator[str]:
        for text in self._documents:
            plain = text if self._corpus is None else detokenized(text, self._corpus)
            if self._skips and refusal(self._tokenizer, plain):
                self._left_out += 1
                continue
            if self._corpus is not None:
                self.counted.append(corpus_tokens(text))
            yield plain


class Reader:
    """Reads texts with a checkpoint on all devices."""

    def __init__(
        self,
        checkpoint: Path | str,
        mesh: MeshSettings = MeshSettings(),
        stride: int | None = None,
        top: int = 0,
        context: int | None = None,
    ) -> None:
        """Raises UserError where there is no language model or tokenizer; for a wrong mesh, stride or context."""
        prepare_jax()
        self.mesh = make_mesh(mesh)
        self.trained: Trained = load(checkpoint, self.mesh)
        tokenizer, model = self.trained.tokenizer, self.trained.model
        predicts = not self.trained.recipe.scores
        require(predicts, "CKPT", str(checkpoint), "a language model, not a reward model", "use lmjax score")
        self.trained.require_finite()
        begin = getattr(tokenizer, "bos_id", None)
        self.begin = tokenizer.eos_id if begin is None else begin  # the token that precedes every text
        self.likelihood = Likelihood(
            *(model, self.trained.params, self.mesh),
            entries=tokenizer.vocab_size,
            stride=stride,
            top=top,
            context=context,
        )

    @property
    def lossless(self) -> bool:
        return self.trained.tokenizer.lossless

    def texts(self, texts: Iterable[str]) -> Iterator[TextLikelihood]:
        """Each text, in order, as it is read. Raises UserError for one that is no Unicode."""
        encode = self.trained.tokenizer.encode_batch
        parts = growing(texts, ENCODED_AT_ONCE)
        encoded = ((text, ids) for some in parts for text, ids in zip(some, encode(some), strict=True))
        read, predicted = itertools.tee(encoded)
        sequences = (np.append(self.begin, ids) for _, ids in predicted)
        for (text, ids), found in zip(read, self.likelihood.of(sequences), strict=True):
            yield TextLikelihood(text, float(found.log_probs.sum()), len(ids), len(text.encode()), found, ids)

    def source(self, settings: SourceSettings, corpus: str | None = None) -> SourceLikelihood:
        """All documents of a source; those of a `corpus` (`CORPORA`) are detokenised, and its tokens counted.

        Raises UserError where it cannot be read, or holds no token.
        """
        read = _Texts(settings, corpus, self.trained.tokenizer)
        count = tokens = size = 0
        log_prob = 0.0
        try:
            for one in self.texts(read):
                count, tokens, size, log_prob = (
                    count + 1,
                    tokens + one.tokens,
                    size + one.bytes,
                    log_prob + one.log_prob,
                )
        except NoTokensError as error:
            raise NoTokensError(f"{settings.path}: {error}; or leave such documents out: --skip-bad") from error
        if not tokens:
            raise UserError(f"{settings.path}: its {count} documents have no text; give a source with text")
        words = _total(read.counted)
        return SourceLikelihood(settings.path, count, read.skipped, tokens, size, log_prob, self.lossless, words)

    def about(self) -> str:
        """What is read with, in words."""
        model = self.trained.model
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.trained.params))
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        return (
            f"step {self.trained.step}, {parameters:,} parameters in {model.dtype.name} on {devices}; "
            f"context {self.likelihood.context}, stride {self.likelihood.stride}"
        )


def print_evaluation(
    reader: Reader, sources: Sequence[SourceSettings], *, corpus: str | None = None, as_json: bool = False
) -> None:
    """Prints the numbers of each source and, where there are several, of all; JSON has one object for each."""
    print(reader.about(), file=sys.stderr)
    if not reader.lossless:
        print("no bits per byte: the tokenizer does not keep all of a text", file=sys.stderr)
    found = [reader.source(settings, corpus) for settings in sources]
    if len(found) > 1:
        found.append(added(found))
    print(json.dumps([one.plain() for one in found], indent=2) if as_json else table_of(found))
    if found[-1].words is not None:
        words, line_ends = found[-1].words
        what = f"word perplexity is over {words:,} words between blanks and {line_ends:,} ends of lines of the corpus"
        print(f"{what}; tokens and bytes are those of the detokenised text", file=sys.stderr)
    for one in found[: len(sources)]:
        if one.skipped:
            print(f"{one.source}: {one.skipped} bad records were left out", file=sys.stderr)


def added(found: Sequence[SourceLikelihood]) -> SourceLikelihood:
    """All sources as one: every token counts alike."""
    sums = {name: sum(getattr(one, name) for one in found) for name in ("documents", "skipped", "tokens", "bytes")}
    words = _total([one.words for one in found if one.words is not None])
    log_prob = math.fsum(one.log_prob for one in found)
    return SourceLikelihood("all", **sums, log_prob=log_prob, lossless=found[0].lossless, words=words)


def _total(counted: Sequence[CorpusTokens]) -> CorpusTokens | None:
    return CorpusTokens(*map(sum, zip(*counted, strict=True))) if counted else None


def table_of(found: Sequence[SourceLikelihood]) -> str:
    """A line for each source below the names of the columns."""
    width = max(len("source"), *(len(one.source) for one in found))
    with_words = found[0].words is not None
    lines = [" ".join([f"{'source':{width}}", *(f"{name:>12}" for name in COLUMNS + WORD_COLUMNS * with_words)])]
    for one in found:
        bits = "" if one.bits_per_byte is None else f"{one.bits_per_byte:.4f}"
        numbers = f"{one.documents:>12,} {one.tokens:>12,} {one.bytes:>12,} {one.loss:>12.4f} {one.perplexity:>12.4f}"
        of_words = f" {sum(one.words):>12,} {one.word_perplexity:>12.4f}" if one.words is not None else ""
        lines.append(f"{one.source:{width}} {numbers} {bits:>12}{of_words}".rstrip())
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
