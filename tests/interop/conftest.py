"""Hugging Face folders built from the golden files, so that no test here needs torch or transformers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lmjax.model.language_model import LanguageModel
from lmjax.settings import ComputeSettings

GOLDEN = Path(__file__).parents[1] / "golden"


class Folder:
    """A Hugging Face folder whose parts can be changed before it is read."""

    def __init__(self, path, config, tensors, tokens, logits):
        self.path, self.config, self.tensors = path, config, tensors
        self.tokens, self.logits = tokens, logits

    def write(self):
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, self.path / "model.safetensors", metadata={"format": "pt"})
        return self.path

    def write_sharded(self, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
        """The tensors in two files, every second one in the second, and the index beside them."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(self.config))
        where = {tensor: names[i % 2] for i, tensor in enumerate(sorted(self.tensors))}
        for name in names:
            save_file({k: v for k, v in self.tensors.items() if where[k] == name}, self.path / name)
        (self.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        return self.path


@pytest.fixture
def golden(tmp_path):
    """A function from the name of a golden file to its folder, not yet written."""

    def load(name):
        with np.load(GOLDEN / f"hf_{name}.npz", allow_pickle=False) as file:
            tensors = {key.removeprefix("tensor/"): file[key] for key in file if key.startswith("tensor/")}
            return Folder(tmp_path / name, json.loads(str(file["config"])), tensors, file["tokens"], file["logits"])

    return load


@pytest.fixture
def logits_of():
    """A function from settings, parameters and tokens [B, T] to float32 logits [B, T, V]."""

    def compute(settings, params, tokens, scan_layers=True):
        model = LanguageModel(settings, ComputeSettings(scan_layers=scan_layers))
        tokens = jnp.asarray(tokens, jnp.int32)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
        batch = {"tokens": tokens, "positions": positions, "segments": jnp.ones_like(tokens)}
        return np.asarray(jax.jit(model.logits)(params, batch))

    return compute


@pytest.fixture
def random_params():
    """A function from settings to random parameters, drawn by numpy: quicker than compiling `init`."""

    def draw(settings, scan_layers=True, seed=0):
        model = LanguageModel(settings, ComputeSettings(scan_layers=scan_layers))
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return jax.tree.map(lambda x: rng.normal(0.0, 0.3, x.shape).astype(np.float32), shapes)

    return draw
