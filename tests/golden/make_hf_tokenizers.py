"""Makes `hf_tokenizers.json.xz` beside this file: small tokenizer folders and what transformers reads from them.

Run where transformers and sentencepiece are installed: python tests/golden/make_hf_tokenizers.py
The file here is from transformers 5.24.0 and tokenizers 0.23.3.

It holds 2,000 hard strings and, for each kind of tokenizer, the files of a folder and SHA-256 digests of what
AutoTokenizer gives for the strings: ids, ids with the special tokens around them, offsets and decoded texts. Strings
with a byte that a tokenizer has no token for, which transformers drops, are listed as refused and left out.
"""

import hashlib
import io
import json
import lzma
import pydoc_data.topics
import random
import sys
import tempfile
from base64 import b64encode
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

TOPICS = [text for _, text in sorted(pydoc_data.topics.topics.items())][:40]
ACCENTS = "naïve café Über Straße 1234 5678 你好世界 مرحبا привет\n"
TEXT = [*TOPICS, ACCENTS] * 2
WORDS = """the cat's THE Don't we'll I'D naive naïve cafe\u0301 ÉCOLE İstanbul Straße ẞ ǅ \ufb01n ① ½ ²
0 7 42 2024 3.14 1,000,000 0x1F ٤٢ 一二 x=y+1; f(x) a_b C++ http://a.b/c?d=e&f #1 @me $5 100% <b> </b> {} [] \\n
你好世界 こんにちは 가\u1100\u1161 مرحبا שלום हिन ไทย при \U00020000 \u9fff \u3402
😀 👩\u200d👩\u200d👧 ❤\ufe0f 🇨🇳 🏴\U000e0067\U000e007f ' " “q” \u2014 ... !? 。
<s> </s> <unk> <pad> [CLS] [SEP] [UNK] [PAD] [MASK] <|endoftext|> <|im_start|> <|im_end|> <|begin_of_text|> <mask>"""
BLANKS = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u2028", "\u3000"]
SIGNS = ["\0", "\x01", "\x7f", "\u0300", "\u2581", "\u2581\u2581", "\ufffd", "\ue000", "\u00ad", "\uffff", "\U0010ffff"]
SIGNS += ["\u0345", "\u200b", "\ufeff"]
LONG = ["a" * 101, "é" * 60, "." * 40, " " * 40, "你" * 30, "ab" * 80]
PIECES = [*WORDS.split(), *BLANKS, *SIGNS, *LONG]
FLAG = {"lstrip": AddedToken("<mask>", lstrip=True), "rstrip": AddedToken("<tail>", rstrip=True)}
MISSING = {*range(1, 9), *range(14, 27)}  # as in SmolLM2, 21 bytes have no token; their characters follow U+0100
LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def hard_strings():
    rng = random.Random(0)
    strings = ["", *PIECES]
    while len(strings) < 2000:
        glue = rng.choice(["", "", " ", "  ", "\n"])
        strings.append(glue.join(rng.choice(PIECES) for _ in range(rng.randrange(1, 9))))
        if rng.random() < 0.2:
            start = rng.randrange(len(TOPICS[0]) - 60)
            strings.append(TOPICS[rng.randrange(len(TOPICS))][start : start + rng.randrange(60)])
    return strings[:2000]


def byte_level(size=600, specials=("<|endoftext|>",), alphabet=True, cut=None, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = cut or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    if not alphabet:
        letters -= {chr(0x100 + byte) for byte in MISSING}
    options = {"special_tokens": list(specials), "initial_alphabet": sorted(letters), "show_progress": False}
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=size, **options))
    return tokenizer


def wordpiece(**flags):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted({c for piece in [*PIECES, *TOPICS[:5]] for c in piece.lower() + piece if not c.isspace()})
    words = sorted({word for text in TOPICS for word in text.split() if word.isalpha() and len(word) < 8})[:500]
    known = [*tokens, *letters[::2], *(f"##{c}" for c in letters[::2]), *words, *(word.lower() for word in words)]
    ids = {token: index for index, token in enumerate(dict.fromkeys(known))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**flags)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.add_special_tokens(tokens)
    return tokenizer


def sentencepiece_model(kind="bpe", rule="identity", **options):
    out = io.BytesIO()
    options = {"byte_fallback": True, "remove_extra_whitespaces": False} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXT for line in text.split("\n")]),
        model_writer=out,
        vocab_size=600,
        model_type=kind,
        normalization_rule_name=rule,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return out.getvalue()


def metaspace(scheme="first", prepend=False):
    """Llama 2's pipeline: as transformers writes it now, or with the normalizer that it wrote before."""
    proto = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    ids = {proto.id_to_piece(index): index for index in range(len(proto))}
    pairs = [(ids[t], t[:i], t[i:]) for t in ids for i in range(1, len(t)) if t[:i] in ids and t[i:] in ids]
    merges = [(left, right) for _, left, right in sorted(pairs)]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def unigram():
    """T5's pipeline, with a normalizer that takes less room than its own table."""
    proto = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model("unigram", byte_fallback=False))
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scores += [(proto.id_to_piece(index), proto.get_score(index)) for index in range(3, len(proto))]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def llama3():
    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_CUT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = byte_level(specials=(), cut=cut, ignore_merges=True)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"])
    begin = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", special_tokens=[begin]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def smollm():
    cut = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return byte_level(specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), alphabet=False, cut=cut)


def flagged():
    tokenizer = byte_level()
    tokenizer.add_tokens([*FLAG.values(), AddedToken("cat", single_word=True), AddedToken("Don't", normalized=False)])
    return tokenizer


def pair_of_files(tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    merges = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""]
    return {"vocab.json": json.dumps(model["vocab"]), "merges.txt": "\n".join(merges)}


def kinds():
    """Each folder by its name: the files, as values or as bytes, and config.json's model type."""
    fast, gpt2, bert, llama = "PreTrainedTokenizerFast", "GPT2Tokenizer", "BertTokenizer", "LlamaTokenizer"
    eos = {"eos_token": "<|endoftext|>"}
    yield "gpt2", "gpt2", byte_level(), {"tokenizer_class": gpt2, **eos}
    yield "gpt2_prefix_flag", "gpt2", byte_level(), {"tokenizer_class": gpt2, "add_prefix_space": True}
    prefix = byte_level(cut=pre_tokenizers.ByteLevel(add_prefix_space=True))
    yield "prefix_in_file", "llama", prefix, {"tokenizer_class": fast, **eos, "pad_token": "<pad>"}
    yield "added_with_flags", "llama", flagged(), {"tokenizer_class": fast, **eos}
    map_of_names = {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    other = {"600": {"content": "<mask>", "rstrip": True}, "602": {"content": "cat"}, "601": {"content": "<tail>"}}
    other = {"added_tokens_decoder": other, "mask_token": "<mask>", "sep_token": "Don't"}
    yield "decoder_over_file", "llama", flagged(), {"tokenizer_class": fast, **eos, **other}
    extra = {"extra_special_tokens": ["<mask>", "the"], "mask_token": "<tail>", "image_token": "<img>"}
    yield "extra_over_file", "llama", flagged(), {"tokenizer_class": fast, **eos, **extra}
    yield "special_tokens_map", "llama", byte_level(), {"tokenizer_class": fast}, {"special_tokens_map": map_of_names}
    yield "llama3", "llama", llama3(), {"tokenizer_class": fast, "eos_token": "<|im_end|>"}
    yield "smollm", "llama", smollm(), {"tokenizer_class": fast, "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    yield "llama2", "llama", metaspace(), {"tokenizer_class": llama, "legacy": False}
    yield "llama2_legacy", "llama", metaspace("always"), {"tokenizer_class": llama, "legacy": True}
    yield "llama2_prepend", "llama", metaspace(prepend=True), {"tokenizer_class": fast, "eos_token": "</s>"}
    yield "bert", "bert", wordpiece(), {"tokenizer_class": bert}
    cased = {"do_lower_case": False, "tokenize_chinese_chars": False}
    yield "bert_cased", "bert", wordpiece(), {"tokenizer_class": bert, **cased}
    accents = wordpiece(strip_accents=True)
    yield "bert_accents", "bert", accents, {"tokenizer_class": bert, "strip_accents": False}
    yield (
        "bert_own",
        "llama",
        wordpiece(lowercase=False, strip_accents=True),
        {"tokenizer_class": fast, "do_lower_case": True},
    )
    clean = {"tokenizer_class": bert, "clean_up_tokenization_spaces": True}
    yield "bert_clean_up", "bert", wordpiece(), clean
    yield "t5", "llama", unigram(), {"tokenizer_class": fast, "eos_token": "</s>", "pad_token": "<pad>"}
    vocabulary = json.loads(wordpiece().to_str())["model"]["vocab"]
    files = {"vocab.txt": "\n".join([*vocabulary, ""])}
    yield (
        "bert_vocab_txt",
        "bert",
        None,
        {"tokenizer_class": bert, "strip_accents": True, "do_lower_case": False},
        files,
    )
    files = pair_of_files(byte_level())
    added = {"added_tokens": {"<|im_start|>": 600, "<|im_end|>": 601}}
    yield "gpt2_pair", "gpt2", None, {"tokenizer_class": gpt2, "add_bos_token": True}, files | added
    decoder = {"added_tokens_decoder": {"600": {"content": "<mask>", "lstrip": True}, "601": {"content": "<|im_end|>"}}}
    yield "gpt2_pair_decoder", "gpt2", None, {"tokenizer_class": gpt2, "add_prefix_space": True, **decoder}, files
    model = {"tokenizer.model": sentencepiece_model()}
    pad = {"added_tokens": {"<pad>": 600}}
    around = {"add_bos_token": True, "add_eos_token": True}
    yield "llama2_model", "llama", None, {"tokenizer_class": llama, "legacy": False, **around}, model | pad
    yield "model_alone", "llama", None, None, model
    chat = {"added_tokens": {"<|im_start|>": 600, "<|im_end|>": 601}}
    collapsing = {
        "tokenizer.model": sentencepiece_model(remove_extra_whitespaces=True, user_defined_symbols=["<mask>"])
    }
    yield "model_and_chat", "llama", None, None, collapsing | chat


def written(folder, model_type, tokenizer, config, files=None):
    files = {"config": {"model_type": model_type}} | (files or {})
    if config is not None:
        files["tokenizer_config"] = config
    if tokenizer is not None:
        files["tokenizer.json"] = tokenizer.to_str()
    for name, value in files.items():
        data = value if isinstance(value, bytes) else value.encode() if "." in name else json.dumps(value).encode()
        (folder / (name if "." in name else f"{name}.json")).write_bytes(data)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def digest(values):
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def results(tokenizer, eos_id, strings):
    """What AutoTokenizer gives: lists, one entry per string."""
    options = {"return_offsets_mapping": True, "add_special_tokens": False}
    plain = [tokenizer(text, **options) for text in strings]
    ids = [encoding["input_ids"] for encoding in plain]
    return {
        "ids": ids,
        "offsets": [[list(pair) for pair in encoding["offset_mapping"]] for encoding in plain],
        "with_specials": [tokenizer(text)["input_ids"] for text in strings],
        "decoded": [tokenizer.decode([index for index in row if index != eos_id]) for row in ids],
    }


def main():
    strings, made, full = hard_strings(), {}, {}
    for name, *parts in kinds():
        with tempfile.TemporaryDirectory() as folder:
            files = written(Path(folder), *parts)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        eos_id = tokenizer.convert_tokens_to_ids("[SEP]") if tokenizer.eos_token is None else tokenizer.eos_token_id
        full[name] = results(tokenizer, eos_id, strings)
        made[name] = {
            "files": {file: b64encode(data).decode() for file, data in files.items()},
            "eos_id": eos_id,
            "entries": len(tokenizer),
            "refused": [i for i, text in enumerate(strings) if name == "smollm" and MISSING & set(text.encode())],
        }
        kept = [i for i in range(len(strings)) if i not in set(made[name]["refused"])]
        made[name]["digests"] = {what: digest([rows[i] for i in kept]) for what, rows in full[name].items()}
        print(name, type(tokenizer).__name__, len(tokenizer), tokenizer.eos_token_id)
    path = Path(__file__).with_name("hf_tokenizers.json.xz")
    data = json.dumps({"strings": strings, "kinds": made}, ensure_ascii=True).encode()
    path.write_bytes(lzma.compress(data, preset=9))
    print(f"{path.name}: {path.stat().st_size:,} bytes, {len(strings):,} strings, {len(made)} kinds")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(full))


if __name__ == "__main__":
    main()
