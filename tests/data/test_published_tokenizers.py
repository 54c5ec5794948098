"""Published vocabularies give the published ids, by known values and by independently written references."""

import itertools
import json
import pydoc_data.topics
import unicodedata

import pytest

from lmjax.errors import UserError
from lmjax.tokenizers.tokenizer import load_tokenizer, tokenizer_fingerprint

# ruff: noqa: RUF001  (Chinese punctuation is meant)

ENGLISH = (
    "I'll say: the quick brown fox's 12,345 jumps -- over_the lazy dog's... won't you?\n\n  def f(x):\n\treturn x\n"
)
CHINESE = "你好，世界！自然语言处理是人工智能的一个重要方向。"
EMOJI = "😀 👩‍👩‍👧 ❤️ 🇨🇳!!"
BLANKS = "a  b   c    \n   \n\n\t\t d \u00a0\u3000e  "
ACCENTS = "naïve café e\u0301 Ünïcödé ÅNGSTRÖM Straße \u2581marks\u2581"
SPECIAL = "<|endoftext|> </s> <s> <unk> <pad> [SEP] [CLS] [MASK] <0x41> \0\x01\x7f\u2585"
REFERENCE = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))[:100_000]
PUBLISHED_TEXTS = ["", ENGLISH, CHINESE, EMOJI, BLANKS, ACCENTS, SPECIAL, REFERENCE]


def gpt2_reference(folder):
    """Byte-level BPE as the paper describes it, written from the files alone and without a regular expression."""
    ranks = {}
    for line in (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]:
        if line:
            ranks[tuple(line.split())] = len(ranks)
    ids = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    visible = [byte for byte in range(256) if chr(byte).isprintable() and not chr(byte).isspace()]
    spelling = dict(zip(visible, map(chr, visible), strict=True))
    for byte in range(256):
        spelling.setdefault(byte, chr(256 + len(spelling) - len(visible)))

    def kind(character):
        category = unicodedata.category(character)[0]
        return "space" if character.isspace() else {"L": "letter", "N": "number"}.get(category, "other")

    def words(text):
        start = 0
        while start < len(text):
            short = next((s for s in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(s, start)), None)
            first = start + (text[start] == " " and start + 1 < len(text) and kind(text[start + 1]) != "space")
            end = first
            while end < len(text) and kind(text[end]) == kind(text[first]):
                end += 1
            if kind(text[first]) == "space" and end < len(text) and end - first > 1:
                end -= 1  # the last blank of a run goes to the next word
            end = start + len(short) if short else end
            yield text[start:end]
            start = end

    def merge(word):
        parts = [spelling[byte] for byte in word.encode()]
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            merged, index = [], 0
            while index < len(parts):
                joined = tuple(parts[index : index + 2]) == best
                merged.append("".join(best) if joined else parts[index])
                index += 2 if joined else 1
            parts = merged
        return [ids[part] for part in parts]

    return lambda text: [index for word in words(text) for index in merge(word)]


@pytest.mark.data
def test_gpt2_files_give_the_published_ids(shared_data, tmp_path):
    tokenizer = load_tokenizer(shared_data("vocab_gpt2"))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (50257, 50256)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("Hello, my dog is cute") == [15496, 11, 616, 3290, 318, 13779]
    assert tokenizer.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert tokenizer.encode("\n\n") == [628]
    assert tokenizer.encode("   \n") == [220, 220, 220, 198]
    reference = gpt2_reference(shared_data("vocab_gpt2"))
    for text in PUBLISHED_TEXTS:
        assert tokenizer.encode(text) == reference(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode_batch(PUBLISHED_TEXTS)[2].tolist() == reference(CHINESE)
    extended = load_tokenizer(shared_data("vocab_gpt2"), user_symbols=("<|user|>",))
    assert extended.encode("Hello world<|user|>") == [15496, 995, 50257]
    assert tokenizer_fingerprint(extended) != tokenizer_fingerprint(tokenizer)


def wordpiece_reference(folder, lowercase):
    """BERT's basic tokenizer and greedy longest match, written from the paper's description and the file alone."""
    ids = {
        token: i for i, token in enumerate((folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n"))
    }

    def alone(character):
        chinese = 0x4E00 <= ord(character) <= 0x9FFF or 0x3400 <= ord(character) <= 0x4DBF
        ascii_sign = ord(character) < 127 and not character.isalnum() and not character.isspace()
        return chinese or ascii_sign or unicodedata.category(character).startswith("P")

    def encode(text):
        text = "".join(c for c in text if c in "\t\n\r" or (unicodedata.category(c)[0] != "C" and c != "\ufffd"))
        if lowercase:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn").lower()
        out = []
        for word in "".join(f" {c} " if alone(c) else c for c in text).split():
            pieces, start = [], 0
            while start < len(word):
                ends = range(len(word), start, -1)
                name = "##" if start else ""
                end = next((end for end in ends if name + word[start:end] in ids), None)
                if end is None:
                    pieces = [ids["[UNK]"]]
                    break
                pieces.append(ids[name + word[start:end]])
                start = end
            out += [ids["[UNK]"]] if len(word) > 100 else pieces
        return out

    return encode


@pytest.mark.data
@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_vocabulary_gives_the_published_ids(lowercase, shared_data, tmp_path):
    tokenizer = load_tokenizer(shared_data("vocab_bert"), lowercase=lowercase)
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (30522, 102)
    assert tokenizer.encode("hello world!") == [7592, 2088, 999]
    if lowercase:
        assert tokenizer.encode("Héllo WORLD!") == [7592, 2088, 999]
        assert tokenizer.decode(tokenizer.encode("Unaffable tokenization.")) == "unaffable tokenization."
    else:
        assert tokenizer.encode("Hello") == [100]
    reference = wordpiece_reference(shared_data("vocab_bert"), lowercase)
    for text in [*PUBLISHED_TEXTS, "x" * 101 + " y", "混合 text中文abc"]:
        assert tokenizer.encode(text) == reference(text), text
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(ENGLISH) == reference(ENGLISH)


@pytest.mark.data
def test_published_sentencepiece_models_give_their_ids(shared_data, tmp_path):
    folder = shared_data("vocab_sentencepiece")
    small = load_tokenizer(folder / "seqio_test_sentencepiece.model")
    assert (small.vocab_size, small.eos_id, small.lossless) == (26, 1, False)
    assert small.encode("a see") == small.encode("  a   see ")  # published: blanks are collapsed
    assert small.encode("that is") == small.encode_batch(["that is"])[0].tolist()
    larger = load_tokenizer(folder / "hf_test_sentencepiece.model")
    assert (larger.vocab_size, larger.eos_id) == (1000, 2)
    assert larger.encode("This is a test") == [285, 46, 10, 170, 382]  # as the transformers fixture's own test has it
    assert larger.decode([285, 46, 10, 170, 382]) == "This is a test"
    larger.save(tmp_path)
    assert load_tokenizer(tmp_path).encode("a\u2581b c") == larger.encode("a\u2581b c")
    with pytest.raises(UserError, match=r"expected one \.model file"):
        load_tokenizer(folder)
