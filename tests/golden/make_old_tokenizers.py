"""Made `tokenizers_c60ae93/`, the tokenizer folders of the code of commit c60ae93, which later code must still read.

In a checkout of that commit: `python make_old_tokenizers.py OUT`. OUT holds a folder of each kind and, in
expected.json, what that code reads from it.
"""

import json
import sys
from pathlib import Path

from lmjax.data.tokenizer import build_tokenizer, load_tokenizer, tokenizer_fingerprint
from lmjax.settings import TokenizerSettings

CORPUS = ["the cat sat on the mat, the cat ate the rat\n", "A cat and a hat: 12 + 34 = 46 caf\u00e9\n"] * 20
TEXTS = [
    *CORPUS[:2],
    "",
    "<|endoftext|> [SEP] </s> [PAD] <|user|>x<|user|>",
    "\u00e9a \u00e9 \u00e0 CAF\u00c9 e\u0301 na\u00efve \u732b \U0001f408 \u2581",
    "a  b\t\n\r\n \u00a0\u3000 \0\x01\x7f",
    "x" * 101 + " y",
]
SETTINGS = {
    "byte": TokenizerSettings(),
    "bpe": TokenizerSettings(kind="bpe", vocab_size=290, user_symbols=("<|user|>", "a", "\u00e9 \u00e0", "\u00e9a")),
    "wordpiece": TokenizerSettings(kind="wordpiece", vocab_size=55, user_symbols=("<|user|>", "cat")),
    "wordpiece_cased": TokenizerSettings(kind="wordpiece", vocab_size=55, lowercase=False),
    "sentencepiece": TokenizerSettings(kind="sentencepiece", vocab_size=285, user_symbols=("<|user|>",)),
}


def facts(tokenizer):
    """All that a reader of the folder asks of its tokenizer."""
    lengths = tokenizer.byte_lengths()
    ids = [tokenizer.encode(text) for text in TEXTS]
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "lossless": tokenizer.lossless,
        "byte_lengths": None if lengths is None else lengths.tolist(),
        "fingerprint": tokenizer_fingerprint(tokenizer),
        "ids": ids,
        "decoded": [tokenizer.decode(line) for line in ids],
        "tokens": [tokenizer.decode([index]) for index in range(tokenizer.vocab_size)],
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    expected = {}
    for name, settings in SETTINGS.items():
        build_tokenizer(settings, CORPUS).save(out / name)
        expected[name] = facts(load_tokenizer(out / name))
    (out / "expected.json").write_text(json.dumps({"texts": TEXTS, "kinds": expected}) + "\n", encoding="utf-8")
