"""Converts tokenizer files that are older than tokenizer.json to the pipelines that transformers makes of them.

In: vocab.txt, vocab.json with merges.txt, or a SentencePiece .model, and the flags of tokenizer_config.json. Out: a
`tokenizers.Tokenizer`. A tokenizer class that has another pipeline is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lmjax.errors import UserError, shortened
from lmjax.files import read_bytes, read_json, read_text
from lmjax.tokenizers.base import NoTokenizerError
from lmjax.tokenizers.byte_level_bpe import byte_level_pipeline, parse_merges
from lmjax.tokenizers.huggingface_config import AS_IN_FILE, CONFIG, FolderConfig
from lmjax.tokenizers.pipeline import library_call
from lmjax.tokenizers.wordpiece import between_specials, parse_vocabulary, wordpiece_pipeline

_MARK = "\u2581"  # SentencePiece's blank
_NORMAL, _CONTROL, _USER = 1, 3, 4  # types of its pieces
_BPE_MODEL = 2


def wordpiece(path: Path, config: FolderConfig, named_class: str | None) -> tokenizers.Tokenizer:
    """BERT's vocab.txt. `apply_config` sets the flags of its class afterwards."""
    _expect(path, named_class, "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", None)
    pipeline = wordpiece_pipeline(
        parse_vocabulary(read_text(path), path),
        lowercase=config.flag("do_lower_case") is not False,
        strip_accents=config.flag("strip_accents"),
        chinese=config.flag("tokenize_chinese_chars") is not False,
    )
    return between_specials(pipeline)


def byte_level(folder: Path, config: FolderConfig, named_class: str | None) -> tokenizers.Tokenizer:
    """GPT-2's pair of files."""
    path, merges = folder / "vocab.json", folder / "merges.txt"
    if not merges.is_file():
        raise UserError(f"{folder}: expected merges.txt or vocab.bpe beside vocab.json; copy it")
    vocabulary = read_json(path, dict[str, int])
    if any(token.endswith("</w>") for token in vocabulary):
        raise NoTokenizerError(f"{path}: words that end in </w>, as in GPT-1's vocabulary; {_SAVE}")
    _expect(path, named_class, "GPT2Tokenizer", None)
    pairs = parse_merges(read_text(merges), merges)
    blank = bool(config.flag("add_prefix_space"))
    tokenizer = byte_level_pipeline(vocabulary, pairs, path, add_prefix_space=blank)
    _frame(tokenizer, config, named_class)
    return tokenizer


def sentencepiece(
    path: Path, config: FolderConfig, named_class: str | None
) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A SentencePiece model as a BPE or a unigram model with its normalisation written out, and its special tokens."""
    classes = ("LlamaTokenizer", "LLaMATokenizer", *AS_IN_FILE, None)
    _expect(path, named_class, *classes)
    definitions: Any = sentencepiece_model_pb2
    try:
        proto = definitions.ModelProto.FromString(read_bytes(path))
        pieces = [piece.piece for piece in proto.pieces]
    except Exception as error:  # whatever protobuf raises, the file cannot be read
        raise UserError(f"{path}: expected a SentencePiece model ({error}); copy or train it again") from error
    if not pieces or len(set(pieces)) < len(pieces) or not all(isinstance(piece, str) for piece in pieces):
        raise UserError(f"{path}: expected a SentencePiece model, each piece once; copy or train it again")
    llama = named_class == "LlamaTokenizer"
    legacy = config.flag("legacy")
    made = library_call(
        lambda: _llama(pieces, config, bool(legacy)) if llama else _as_spelled(proto, pieces, legacy is not False), path
    )
    specials = [
        tokenizers.AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
        for piece in proto.pieces
        if piece.type in ((_CONTROL, _USER) if llama else (_CONTROL,))
    ]
    made.add_tokens(specials)
    if not llama and proto.normalizer_spec.add_dummy_prefix:  # the text between two added tokens is normalised alone
        for _, token in sorted(config.added.items()):
            flags = {name: getattr(token, name) for name in ("lstrip", "rstrip", "single_word", "special")}
            made.add_tokens([tokenizers.AddedToken(token.content, normalized=False, **flags)])
    spec = proto.trainer_spec
    names = {"bos_token": (spec.bos_id, spec.bos_piece), "eos_token": (spec.eos_id, spec.eos_piece)}
    names["unk_token"] = (spec.unk_id, spec.unk_piece)
    _frame(made, config, named_class)
    return made, {} if llama else {name: piece for name, (index, piece) in names.items() if index >= 0}


def _llama(pieces: list[str], config: FolderConfig, legacy: bool) -> tokenizers.Tokenizer:
    """What transformers makes of a .model of class LlamaTokenizer; the normalisation of the model is ignored."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    prefix = config.flag("add_prefix_space") is not False
    made = tokenizers.Tokenizer(models.BPE(ids, _merges(ids, ids), fuse_unk=True, byte_fallback=True))
    scheme = ("always" if legacy else "first") if prefix else "never"
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme=scheme, split=False)
    made.decoder = _decoder(True, prefix)
    return made


def _as_spelled(proto: Any, pieces: list[str], legacy: bool) -> tokenizers.Tokenizer:
    """The steps that the model file specifies."""
    rules, spec = proto.normalizer_spec, proto.trainer_spec
    user = [piece.piece for piece in proto.pieces if piece.type == _USER]
    if spec.model_type == _BPE_MODEL:
        ids = {piece: index for index, piece in enumerate(pieces)}
        ranks = {
            piece.piece: (-piece.score, index) for index, piece in enumerate(proto.pieces) if piece.type == _NORMAL
        }
        model: Any = models.BPE(
            ids,
            _merges(ranks, ids, by_length=False),
            unk_token=spec.unk_piece,
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
            ignore_merges=bool(user),
        )
    else:
        scores = [(piece.piece, piece.score) for piece in proto.pieces]
        model = models.Unigram(scores, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Sequence(_normalizers(rules, legacy))
    cuts: list[Any] = []
    if rules.add_dummy_prefix:
        scheme = "always" if legacy else "first"
        cuts.append(pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme=scheme, split=False))
    if user:
        pattern = "|".join(re.escape(piece) for piece in sorted(user, key=len, reverse=True))
        cuts.append(pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"))
    if cuts:
        made.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    made.decoder = _decoder(spec.byte_fallback, rules.add_dummy_prefix)
    return made


def _normalizers(rules: Any, legacy: bool) -> list[Any]:
    steps: list[Any] = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if rules.escape_whitespaces:
        steps.append(normalizers.Replace(" ", _MARK))
    if rules.add_dummy_prefix and legacy:  # Metaspace puts no second mark before one that is there
        steps.append(normalizers.Replace(tokenizers.Regex(rf"\A{_MARK}"), 2 * _MARK))
    return steps


def _decoder(byte_fallback: bool, prefix: bool) -> Any:
    steps: list[Any] = [decoders.Replace(_MARK, " ")]
    if byte_fallback:
        steps.append(decoders.ByteFallback())
    if byte_fallback or prefix:
        steps.append(decoders.Fuse())
    if prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    return decoders.Sequence(steps)


def _merges(ranks: dict[str, Any], ids: dict[str, int], *, by_length: bool = True) -> list[tuple[str, str]]:
    """All pairs of pieces that join to a piece, the piece of the lowest rank first."""
    merges = [
        (rank, piece[:cut], piece[cut:])
        for piece, rank in ranks.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    if by_length:
        merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2]), ids[merge[1]], ids[merge[2]]))
    else:
        merges.sort()
    return [(left, right) for _, left, right in merges]


def _frame(tokenizer: tokenizers.Tokenizer, config: FolderConfig, named_class: str | None) -> None:
    """Adds the special tokens that add_bos_token and add_eos_token request."""
    named = config.named(named_class)
    around = {}
    for short in ("bos", "eos"):
        token = named.get(f"{short}_token")
        if config.flag(f"add_{short}_token") and token is not None:
            tokenizer.add_special_tokens([token])
            around[short] = token.content
    if around:
        first = [f"{around['bos']}:0"] if "bos" in around else []
        last = [f"{around['eos']}:0"] if "eos" in around else []
        single = [*first, "$A:0", *last]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(part.replace(":0", ":1").replace("$A", "$B") for part in single)],
            special_tokens=[(content, tokenizer.token_to_id(content)) for content in set(around.values())],
        )


_SAVE = "save it with transformers, which writes tokenizer.json"


def _expect(path: Path, named_class: str | None, *classes: str | None) -> None:
    if named_class not in classes:
        raise NoTokenizerError(
            f"{path.parent / CONFIG}: tokenizer_class = {shortened(named_class)}: expected {classes[0]!r} beside "
            f"{path.name}; {_SAVE}"
        )
