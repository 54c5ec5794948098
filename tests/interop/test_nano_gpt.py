"""A real trained model: minGPT's gpt-nano, which sorts six letters. It goes the whole way: import, load, decode.

The model is GPT-2's with projections stored [out, in] and a head of its own; it reads six letters of A, B, C and then
continues with the same letters in order. Its context of 11 holds the six and five sorted ones; the last sorted letter
is what the full forward pass says after them.
"""

import base64
import itertools
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import lmjax
from lmjax.generate.decode import generate
from lmjax.generate.sampling import SamplingSettings
from lmjax.runs.convert import import_folder

LETTERS = "ABC"
LENGTH = 6


class Letters:
    """The model's three letters as tokens 0, 1 and 2; it has no end of text."""

    kind = "letters"
    vocab_size = 3
    eos_id = -1

    def encode(self, text):
        return [LETTERS.index(letter) for letter in text]

    def encode_batch(self, texts):
        return [np.array(self.encode(text), np.int32) for text in texts]

    def decode(self, ids):
        return "".join(LETTERS[index] for index in ids)


def read_json_model(path):
    """The config and tensors of the model's JSON, as GPT-2's own: its linear layers become [in, out]."""
    content = json.loads(path.read_text())
    shape = content.pop("config")
    config = {"model_type": "gpt2", "activation_function": "gelu_new", "tie_word_embeddings": False}
    config |= {name: shape[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    config |= {name: shape[name] for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop")}
    tensors = {}
    for name, tensor in content.items():
        array = np.frombuffer(base64.b64decode(tensor["data"]), "<f4").reshape(tensor["shape"])
        linear = array.ndim == 2 and ".h." in name
        tensors[name] = np.ascontiguousarray(array.T if linear else array)
    return config | {"n_positions": shape["block_size"]}, tensors


@pytest.mark.data
def test_a_real_trained_model_sorts_every_row_of_letters(shared_data, tmp_path):
    config, tensors = read_json_model(shared_data("weights_nano_gpt") / "gpt-nano-sort-model.json")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    import_folder(tmp_path / "hf", tmp_path / "nano")
    trained = lmjax.load(tmp_path / "nano")

    prompts = ["".join(letters) for letters in itertools.product(LETTERS, repeat=LENGTH)]
    greedy = SamplingSettings(max_tokens=LENGTH, temperature=0)
    completions = generate(trained.model, trained.params, Letters(), prompts, greedy)
    rows = np.array([Letters().encode(p + c.text) for p, c in zip(prompts, completions, strict=True)])
    assert rows.shape == (3**LENGTH, config["n_positions"])
    likeliest = np.asarray(trained.apply(rows)).argmax(-1)[:, LENGTH - 1 :]

    assert ["".join(LETTERS[i] for i in row) for row in likeliest] == ["".join(sorted(prompt)) for prompt in prompts]
    np.testing.assert_array_equal(rows[:, LENGTH:], likeliest[:, :-1])  # cached decoding says the same
