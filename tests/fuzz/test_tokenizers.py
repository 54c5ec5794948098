"""Damaged tokenizer folders of every kind: lmjax's own, and those of Hugging Face that its tests know."""

import base64
import hashlib
import json
import lzma
from pathlib import Path

import pytest

from lmjax.data.conversations import Turn
from lmjax.interop.chat_template import FILE, read_chat_template, saved_chat_template
from lmjax.settings import TokenizerSettings
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.tokenizers.tokenizer import build_tokenizer, load_tokenizer, tokenizer_fingerprint

from .harness import survives, written
from .mutations import damaged_bytes, damaged_json

pytestmark = pytest.mark.slow

TEXTS = ["the cat sat on the mat and said hello"] * 50
GOLDEN = Path(__file__).parents[1] / "golden" / "hf_tokenizers.json.xz"
KINDS = json.loads(lzma.decompress(GOLDEN.read_bytes()))["kinds"]


def used(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.decode(tokenizer.encode("the caf\u00e9 <x>"))
    tokenizer.byte_lengths()
    tokenizer_fingerprint(tokenizer)


def maker(data, is_json):
    return (lambda rng: damaged_json(data.decode(), rng)) if is_json else (lambda rng: damaged_bytes(data, rng))


@pytest.mark.parametrize("kind", ["byte", "bpe", "wordpiece", "sentencepiece"])
def test_folders_of_our_own(tmp_path, kind):
    """Each file damaged alone, which the digests tell, and with the digests of what it is now."""
    settings = {} if kind == "byte" else {"vocab_size": {"bpe": 270, "wordpiece": 40, "sentencepiece": 275}[kind]}
    folder = tmp_path / kind
    build_tokenizer(TokenizerSettings(kind=kind, **settings), TEXTS).save(folder)
    metadata = folder / "lmjax_tokenizer.json"
    whole = metadata.read_bytes()
    survives(written(metadata, lambda: used(folder)), maker(whole, True), 300, 1)
    metadata.write_bytes(whole)
    for file in sorted(set(folder.iterdir()) - {metadata}):
        data = file.read_bytes()

        def read(content, file=file):
            digests = json.loads(whole)
            digests["sha256"][file.name] = hashlib.sha256(content).hexdigest()
            metadata.write_text(json.dumps(digests))
            written(file, lambda: used(folder))(content)

        survives(read, maker(data, file.suffix == ".json"), 300, 2, always="either")
        file.write_bytes(data)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_folders_of_hugging_face(tmp_path, kind):
    for name, content in KINDS[kind]["files"].items():
        (tmp_path / name).write_bytes(base64.b64decode(content))
    for number, file in enumerate(sorted(tmp_path.iterdir())):
        data = file.read_bytes()
        trials = 40 if len(data) > 50_000 else 80
        make = maker(data, file.suffix == ".json")
        survives(written(file, lambda: used(tmp_path)), make, trials, number, always="either")
        file.write_bytes(data)


def test_chat_templates(tmp_path):
    turns = "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    values = {
        "tokenizer_class": "GPT2Tokenizer",
        "chat_template": turns,
        "eos_token": "</s>",
        "bos_token": {"content": "<s>"},
    }
    text = json.dumps(values)
    path = tmp_path / "tokenizer_config.json"
    survives(written(path, lambda: read_chat_template(tmp_path)), lambda rng: damaged_json(text, rng), 400, 3)
    path.unlink()
    for number, name in enumerate(("chat_template.jinja", "chat_template.json")):
        data = turns.encode() if number == 0 else json.dumps({"chat_template": turns}).encode()
        read = written(tmp_path / name, lambda: read_chat_template(tmp_path))
        survives(read, maker(data, number == 1), 200, 4 + number, always="either")
        (tmp_path / name).unlink()


def test_saved_chat_templates():
    """As checkpoints hold them: in base64, damaged before or behind it."""
    saved = {"template": "{{ messages }}", "tokens": {"eos_token": "</s>"}, "ids": {"</s>": 2}, "ends": [2]}

    def make(rng):
        if rng.random() < 0.2:
            return damaged_bytes(base64.b64encode(json.dumps(saved).encode()), rng).decode("latin-1")
        return base64.b64encode(damaged_json(json.dumps(saved), rng)).decode()

    def read(content):
        template = saved_chat_template({FILE: content}, "a checkpoint")
        template.prompt((Turn("user", "Hi"),), ByteTokenizer())

    survives(read, make, 300, 6)
