"""Hugging Face folders of GPT-1, GPT-2 and Llama-shaped models, read and written without torch.

In: a local folder of `config.json` and `model.safetensors` (or several files and their index); out: model settings and
float32 parameters, and the other way round. Nothing is downloaded and nothing in a folder is executed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lmjax.interop.hf_config import CONFIG, HuggingFaceConfig, read_config, write_config
from lmjax.interop.hf_tensors import read_params, write_tensors_of
from lmjax.interop.tensor_files import WEIGHTS, open_tensors, write_tensors
from lmjax.model.transformer import Params
from lmjax.settings import ModelSettings


@dataclass(frozen=True)
class HuggingFaceModel:
    """What a folder holds, in lmjax's terms."""

    config: HuggingFaceConfig
    params: Params

    @property
    def settings(self) -> ModelSettings:
        return self.config.settings


def read_model(folder: Path | str, *, scan_layers: bool = True) -> HuggingFaceModel:
    """Reads a model, its layers' parameters stacked where `scan_layers`.

    Raises UserError naming the file, and the field or tensor in it, that lmjax cannot follow: none is passed over.
    """
    folder = Path(folder)
    config = read_config(folder)
    with open_tensors(folder) as files:
        return HuggingFaceModel(config, read_params(files, config.settings, config.model_type, scan_layers))


def write_model(folder: Path | str, settings: ModelSettings, params: Params, *, eos_id: int | None = None) -> str:
    """Writes `config.json` and `model.safetensors`, which transformers loads, and returns the model type.

    The type, GPT-1, GPT-2 or Llama, follows from the settings. `eos_id` is the token between documents. Raises
    UserError naming the setting that none of the three has.
    """
    folder = Path(folder)
    config = write_config(settings, eos_id)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, write_tensors_of(params, settings, config["model_type"]))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config["model_type"]
