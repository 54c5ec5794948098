"""Byte-level BPE (Radford et al. 2019, section 2.2): pairs of bytes merged by frequency, as GPT-2 and GPT-3 read text.

In: texts to train on, or a published vocabulary with its merges. Out: a tokenizer.json of kind "bpe", whose ids are the
published ones. Every text is recovered from its ids, since the alphabet is the 256 bytes, each written as one printable
character in the vocabulary. A published vocabulary may lack some of them (SmolLM2's lacks 21): a text that holds one is
refused when it is encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmjax.errors import UserError, shortened
from lmjax.files import check_form, decode_json, decode_text, read_json, read_text
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.base import Contents, NoTokenizerError
from lmjax.tokenizers.huggingface import BPE, HuggingFaceTokenizer
from lmjax.tokenizers.pipeline import BYTES, missing_bytes, token_bytes

END_OF_TEXT = "<|endoftext|>"
_VOCABULARY, _MERGES = "vocab.json", "merges.txt"
_ESSENTIAL = range(0x20, 0x7F)  # a vocabulary without one of these bytes is no byte-level one
_VERSION_LINE = "#version: 0.2"  # the first line of every published merges file


def byte_level_pipeline(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], where: object, *, add_prefix_space: bool = False
) -> tokenizers.Tokenizer:
    """GPT-2's steps around a vocabulary, the ids of which are 0 to n-1, and its merges, the most frequent first."""
    _check_ids(vocabulary, where)
    try:
        pipeline = tokenizers.Tokenizer(models.BPE(dict(vocabulary), list(merges)))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{where}: expected merges of its own tokens ({error}); use the pair of files") from error
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    pipeline.decoder = decoders.ByteLevel()
    return pipeline


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    user_symbols: Sequence[str] = (),
    where: object = "the BPE vocabulary",
) -> HuggingFaceTokenizer:
    """The tokenizer of a vocabulary and its merges.

    Args:
      vocabulary: token to id; ids are 0 to n-1. Without "<|endoftext|>" one id is added for it.
      merges: the pairs, most frequent first.
      user_symbols: strings that are always one token; those not in the vocabulary are added after its last id.
      where: names the vocabulary in errors.

    The string "<|endoftext|>" inside a text is ordinary text: only the loader places the id `eos_id`.
    """
    pipeline = byte_level_pipeline(_complete(vocabulary, user_symbols, where), merges, where)
    return HuggingFaceTokenizer.made_here(BPE, pipeline, user_symbols, where)


def load_bpe(vocabulary: Path, merges: Path, user_symbols: Sequence[str] = ()) -> HuggingFaceTokenizer:
    """A published pair of files: `vocab.json` or `encoder.json`, and `merges.txt` or `vocab.bpe`."""
    pairs = parse_merges(read_text(merges), merges)
    return byte_level_bpe(read_json(vocabulary), pairs, user_symbols, vocabulary)


def saved_bpe(contents: Contents, where: object) -> HuggingFaceTokenizer:
    """A saved tokenizer of kind "bpe": tokenizer.json, or the pair of files of older versions and of exports."""
    if _VOCABULARY not in contents.files:
        return HuggingFaceTokenizer(contents.files, contents.parameters, where, BPE)
    symbols = check_form(contents.parameters.get("user_symbols", []), list[str], where, "parameters.user_symbols")
    vocabulary = decode_json(decode_text(contents.files[_VOCABULARY], where), where)
    merges = parse_merges(decode_text(contents.files.get(_MERGES, b""), where), where)
    return byte_level_bpe(vocabulary, merges, symbols, where)


def as_pair(tokenizer: HuggingFaceTokenizer) -> Contents:
    """The tokenizer as GPT-2's pair of files, which holds no user symbols beyond its vocabulary."""
    model = tokenizer.pipeline()["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False).encode()
    merges = "\n".join([_VERSION_LINE, *(f"{left} {right}" for left, right in model["merges"]), ""]).encode()
    return Contents(BPE, {"user_symbols": tokenizer.user_symbols}, {_VOCABULARY: vocabulary, _MERGES: merges})


def train_bpe(settings: TokenizerSettings, texts: Iterable[str]) -> HuggingFaceTokenizer:
    """Merges pairs that occur at least twice until there are `settings.vocab_size` ids, the end of text last.

    Raises UserError when the text does not support that many, with the largest number that it does.
    """
    reserved = len({END_OF_TEXT, *settings.user_symbols})
    least = len(BYTES) + reserved
    if settings.vocab_size < least:
        raise UserError(
            f"tokenizer.vocab_size = {settings.vocab_size}: expected at least {least}, the 256 bytes and {reserved} "
            f"symbols; set it to {least} or more"
        )
    pipeline = tokenizers.Tokenizer(models.BPE())
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size - reserved,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(BYTES),
    )
    pipeline.train_from_iterator(texts, trainer)
    model = json.loads(pipeline.to_str())["model"]
    supported = len(model["vocab"]) + reserved
    if supported < settings.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size = {settings.vocab_size}: expected at most {supported}, all that this text supports; "
            f"set it to {supported} or less, or train on more text"
        )
    return byte_level_bpe(model["vocab"], [(left, right) for left, right in model["merges"]], settings.user_symbols)


def _check_ids(vocabulary: Mapping[str, int], where: object) -> None:
    ids = list(vocabulary.values()) if isinstance(vocabulary, Mapping) else []
    if not ids or not all(type(index) is int for index in ids) or sorted(ids) != list(range(len(ids))):
        raise UserError(f"{where}: expected a JSON object from tokens to the ids 0 to n-1; use a published vocab.json")


def _complete(vocabulary: Mapping[str, int], symbols: Sequence[str], where: object) -> dict[str, int]:
    """The vocabulary, checked, in the order of its ids, with the end of text added where it is missing."""
    _check_ids(vocabulary, where)
    missing = missing_bytes(vocabulary.get)
    if not missing.isdisjoint(_ESSENTIAL):
        raise NoTokenizerError(
            f"{where}: expected the bytes of a byte-level BPE vocabulary, {len(missing)} of 256 are missing, those of "
            "ASCII text among them; a vocabulary of another kind (GPT-1's, for one) does not load as bpe"
        )
    complete = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    for symbol in symbols:
        taken = symbol in complete and token_bytes(symbol) != symbol.encode()
        if taken or symbol in ("", END_OF_TEXT):
            raise UserError(
                f"tokenizer.user_symbols holds {symbol!r}, which {where} uses for something else; choose another string"
            )
    complete.setdefault(END_OF_TEXT, len(complete))
    return complete


def parse_merges(text: str, where: object) -> list[tuple[str, str]]:
    """The pairs of a merges.txt."""
    merges = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise UserError(
                f"{where}:{number}: {shortened(line)}: expected two tokens and one blank; copy the file again"
            )
        merges.append((pair[0], pair[1]))
    return merges
