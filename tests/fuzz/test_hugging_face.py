"""Damaged Hugging Face folders of the model types: config, index, tensors, generation_config, and as a whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from lmjax.interop.chat_template import read_chat_template
from lmjax.interop.hf_config import read_config
from lmjax.interop.hf_tokenizer import write_tokenizer
from lmjax.interop.huggingface import read_model
from lmjax.interop.tensor_files import open_tensors
from lmjax.tokenizers.byte import ByteTokenizer

from .harness import survives, written
from .mutations import damaged_bytes, damaged_json

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    """The config and the tensors of a tiny model."""
    with np.load(GOLDEN / f"hf_{name}.npz", allow_pickle=False) as file:
        tensors = {key.removeprefix("tensor/"): file[key] for key in file if key.startswith("tensor/")}
        return str(file["config"]), tensors


NAMES = ["gpt1", "gpt2", "llama_grouped", "llama_yarn", "qwen2", "smollm3", "gemma3_text"]
NAMES += ["bert_masked_untied", "bert_sequence", "t5_gated"]


@pytest.mark.parametrize("name", NAMES)
def test_configs(tmp_path, name):
    text, _ = golden(name)
    read = written(tmp_path / "config.json", lambda: read_config(tmp_path))
    survives(read, lambda rng: damaged_json(text, rng), 500, 1)


@pytest.mark.parametrize("name", NAMES)
def test_models(tmp_path, name):
    """In two files and an index: each of them damaged, and the tensors of one file given other values or names."""
    text, tensors = golden(name)
    (tmp_path / "config.json").write_text(text)
    parts = [dict(list(tensors.items())[part::2]) for part in range(2)]
    files = {f"model-{number}.safetensors": save(part) for number, part in enumerate(parts)}
    where = {tensor: f"model-{number}.safetensors" for number, part in enumerate(parts) for tensor in part}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": where}).encode()
    files["model.safetensors.index.json"] = index
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    for number, (file, data) in enumerate(files.items()):
        make = (lambda rng: damaged_json(index.decode(), rng)) if file.endswith("json") else None
        make = make or (lambda rng, data=data: damaged_tensors(data, rng))
        survives(written(tmp_path / file, lambda: read_model(tmp_path)), make, 120, 2 + number)
        (tmp_path / file).write_bytes(data)


def damaged_tensors(data, rng):
    """A safetensors file: its JSON header damaged, its length kept true, or any of its bytes."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        return damaged_bytes(data, rng)
    header = damaged_json(data[8 : 8 + size].decode(), rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def test_an_index_alone(tmp_path):
    for number, name in enumerate(("a", "b")):
        (tmp_path / f"model-{number}.safetensors").write_bytes(save({name: np.zeros((2, 3), np.float32)}))
    index = json.dumps({"weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"}})

    def read():
        with open_tensors(tmp_path) as files:
            for name in files.files:
                files.read(name)

    path = tmp_path / "model.safetensors.index.json"
    survives(written(path, read), lambda rng: damaged_json(index, rng), 500, 5)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json", "special_tokens_map.json"])
def test_ids_of_ends(tmp_path, name):
    """Beside a chat template, which reads them; and of a config.json that an export completes."""
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    values = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": None, "eos_token": {"content": "</s>"}}
    text = json.dumps(values)
    read = written(tmp_path / name, lambda: read_chat_template(tmp_path))
    survives(read, lambda rng: damaged_json(text, rng), 150, 6)
    if name == "config.json":
        write = written(tmp_path / name, lambda: write_tokenizer(tmp_path, ByteTokenizer(), 16))
        survives(write, lambda rng: damaged_json(text, rng), 100, 7)
