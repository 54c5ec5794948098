"""WordPiece (Devlin et al. 2018, section 3): words split greedily into the longest known pieces, as BERT reads text.

In: texts to train on, or a published vocabulary of one token per line. Out: a tokenizer.json of kind "wordpiece". Text
is cleaned, Chinese characters and punctuation stand alone, and "uncased" lowers case and strips accents first, so
decoding gives a tidy text and not the original one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from lmjax.errors import UserError, shortened
from lmjax.files import check_form, decode_text, read_text
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.base import Contents
from lmjax.tokenizers.huggingface import WORDPIECE, HuggingFaceTokenizer

VOCABULARY = "vocab.txt"
_UNKNOWN, _SEPARATOR = "[UNK]", "[SEP]"
_SPECIAL = ("[PAD]", _UNKNOWN, "[CLS]", _SEPARATOR, "[MASK]")
_CONTINUED = "##"
_LONGEST_WORD = 100  # characters; a longer word is [UNK], as in the published tokenizer
_ALPHABET = 8000  # the most frequent characters are in the vocabulary; rarer ones become [UNK]


def wordpiece_pipeline(
    tokens: Sequence[str], *, lowercase: bool, strip_accents: bool | None, chinese: bool = True
) -> tokenizers.Tokenizer:
    """BERT's steps around a vocabulary, in the order of its ids; without one, the steps that a trainer needs."""
    ids = {token: index for index, token in enumerate(tokens)}
    pipeline = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=_UNKNOWN, max_input_chars_per_word=_LONGEST_WORD))
    pipeline.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    pipeline.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pipeline.decoder = decoders.WordPiece(prefix=_CONTINUED, cleanup=True)
    return pipeline


def between_specials(pipeline: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The pipeline with a post-processor that adds [CLS] and [SEP] to a text, if the vocabulary has both."""
    ids = [(name, pipeline.token_to_id(name)) for name in ("[CLS]", _SEPARATOR)]
    if all(index is not None for _, index in ids):
        pipeline.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ids
        )
    return pipeline


def wordpiece(
    tokens: Sequence[str],
    lowercase: bool,
    user_symbols: Sequence[str] = (),
    where: object = "the WordPiece vocabulary",
) -> HuggingFaceTokenizer:
    """The tokenizer of a vocabulary.

    Args:
      tokens: the vocabulary, in the order of its ids; it holds [UNK] and [SEP], and [SEP] is the end of a text.
      lowercase: the uncased convention: lower case, no accents.
      user_symbols: strings that are always one token, searched before cleaning; new ones follow the last id.
      where: names the vocabulary in errors.

    A special token's name inside a text, such as "[SEP]", is ordinary text.
    """
    _check_symbols(user_symbols)
    _check_vocabulary(tokens, where)
    pipeline = wordpiece_pipeline(
        list(dict.fromkeys((*tokens, *user_symbols))), lowercase=lowercase, strip_accents=lowercase
    )
    return HuggingFaceTokenizer.made_here(WORDPIECE, pipeline, user_symbols, where)


def load_wordpiece(path: Path, lowercase: bool, user_symbols: Sequence[str] = ()) -> HuggingFaceTokenizer:
    """A published `vocab.txt`."""
    return wordpiece(parse_vocabulary(read_text(path), path), lowercase, user_symbols, path)


def saved_wordpiece(contents: Contents, where: object) -> HuggingFaceTokenizer:
    """A saved tokenizer of kind "wordpiece": tokenizer.json, or the vocab.txt of older versions and of exports."""
    if VOCABULARY not in contents.files:
        return HuggingFaceTokenizer(contents.files, contents.parameters, where, WORDPIECE)
    tokens = parse_vocabulary(decode_text(contents.files[VOCABULARY], where), where)
    lowercase = check_form(contents.parameters.get("lowercase", True), bool, where, "parameters.lowercase")
    symbols = check_form(contents.parameters.get("user_symbols", []), list[str], where, "parameters.user_symbols")
    return wordpiece(tokens, lowercase, symbols, where)


def as_vocabulary(tokenizer: HuggingFaceTokenizer) -> Contents:
    """The tokenizer as BERT's vocab.txt and its flags."""
    pipeline = tokenizer.pipeline()
    parameters = {"lowercase": pipeline["normalizer"]["lowercase"], "user_symbols": tokenizer.user_symbols}
    return Contents(WORDPIECE, parameters, {VOCABULARY: "\n".join([*pipeline["model"]["vocab"], ""]).encode()})


def train_wordpiece(settings: TokenizerSettings, texts: Iterable[str]) -> HuggingFaceTokenizer:
    """Trains `settings.vocab_size` tokens, BERT's five special ones first. The same texts give the same ids.

    Raises UserError when the text does not support that many, with the nearest number that it does.
    """
    _check_symbols(settings.user_symbols)
    symbols = len(set(settings.user_symbols))
    texts = list(texts)
    tokenizer = wordpiece_pipeline([], lowercase=settings.lowercase, strip_accents=settings.lowercase)
    # The trainer numbers characters in the order of a randomly seeded hash map and breaks ties by number. Passing the
    # characters as special tokens numbers them in a fixed order; in the result they are ordinary tokens.
    alphabet, pieces = _alphabet(tokenizer, texts)
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size - symbols,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*_SPECIAL, *pieces],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_CONTINUED,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    supported = len(vocabulary) + symbols
    if supported != settings.vocab_size:
        bound = "at most" if supported < settings.vocab_size else "at least"
        raise UserError(
            f"tokenizer.vocab_size = {settings.vocab_size}: expected {bound} {supported} for this text; "
            f"set it to {supported}, or change the training text"
        )
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return wordpiece(tokens, settings.lowercase, settings.user_symbols)


def _alphabet(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The most frequent characters, and the one-character pieces in which they occur, both in a fixed order."""
    pieces: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    for word, count in words.items():
        for index, character in enumerate(word):
            characters[character] += count
            pieces[_CONTINUED + character if index else character] += count
    alphabet = sorted(characters, key=lambda character: (-characters[character], character))[:_ALPHABET]
    known = set(alphabet)
    return alphabet, sorted(piece for piece in pieces if piece.removeprefix(_CONTINUED) in known)


def _check_symbols(symbols: Sequence[str]) -> None:
    for symbol in symbols:
        if not symbol or symbol in _SPECIAL or symbol != symbol.strip() or "\n" in symbol:
            raise UserError(
                f"tokenizer.user_symbols holds {symbol!r}: expected a string of one line, without blanks around it, "
                "that is not one of BERT's special tokens; choose another string"
            )


def parse_vocabulary(text: str, where: object) -> list[str]:
    """The tokens of a vocab.txt, one per line, with [UNK] and [SEP] among them. Raises UserError where they are not.

    Only line feeds end a line: BERT's vocabularies hold other Unicode line separators.
    """
    tokens = [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")]
    _check_vocabulary(tokens, where)
    return tokens


def _check_vocabulary(tokens: Sequence[str], where: object) -> None:
    if len(set(tokens)) < len(tokens):
        repeated = Counter(tokens).most_common(1)[0][0]
        raise UserError(f"{where}: expected each token once, {shortened(repeated)} is repeated; copy the file again")
    absent = [token for token in (_UNKNOWN, _SEPARATOR) if token not in set(tokens)]
    if absent:
        raise UserError(f"{where}: expected the lines [UNK] and [SEP], {absent} not found; use BERT's vocab.txt")
