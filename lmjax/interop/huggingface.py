"""Hugging Face folders of GPT-1, GPT-2, the decoders of Llama's line, BERT and T5, read and written without torch.

In: a local folder of `config.json` and `model.safetensors` (or several files and their index); out: model settings and
float32 parameters, and the other way round. Nothing is downloaded and nothing in a folder is executed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from lmjax.interop.bert_tensors import read_bert, write_bert
from lmjax.interop.hf_config import CONFIG, HuggingFaceConfig, read_config, write_config
from lmjax.interop.hf_tensors import read_params, write_tensors_of
from lmjax.interop.linears import TaskHead, Tensors
from lmjax.interop.t5_tensors import read_t5, write_t5
from lmjax.interop.tensor_files import WEIGHTS, TakenTensors, TensorFiles, open_tensors, write_tensors
from lmjax.model.encoder_decoder import STACKS
from lmjax.model.stack import stack_layers, unstack_layers
from lmjax.model.transformer import Params
from lmjax.settings import ModelSettings


@dataclass(frozen=True)
class HuggingFaceModel:
    """What a folder holds, in lmjax's terms; `head` is that of a task, on top of the model."""

    config: HuggingFaceConfig
    params: Params
    head: TaskHead | None = None

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
        return _read(files, config, scan_layers)


def _read(files: TensorFiles, config: HuggingFaceConfig, scan_layers: bool) -> HuggingFaceModel:
    settings, head = config.settings, None
    if config.model_type == "bert":
        settings, params, head = read_bert(TakenTensors(files), settings, config.task, config.labels)
        params = stack_layers(params) if scan_layers else params
    elif config.model_type == "t5":
        settings, params = read_t5(TakenTensors(files), settings)
        params |= {name: stack_layers(params[name]) for name in STACKS} if scan_layers else {}
    else:
        params = read_params(files, settings, config.model_type, scan_layers)
    return HuggingFaceModel(dataclasses.replace(config, settings=settings), params, head)


def write_model(
    folder: Path | str,
    settings: ModelSettings,
    params: Params,
    *,
    eos_id: int | None = None,
    head: TaskHead | None = None,
) -> str:
    """Writes `config.json` and `model.safetensors`, which transformers loads, and returns the model type.

    The type is the first that has all of the settings, from GPT-2 over Llama and its line to BERT and T5. `eos_id` is
    the token between documents; `head` a task's, on a BERT, which transformers keeps without that of the masked
    language model. Raises UserError naming the setting that none of them has.
    """
    folder = Path(folder)
    if head is not None and head.kind != "next_sentence":
        settings = dataclasses.replace(settings, head=dataclasses.replace(settings.head, transform=False, bias=False))
    config = write_config(settings, eos_id, *(() if head is None else (head.kind, head.labels)))
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS, _tensors(settings, params, config["model_type"], head))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return str(config["model_type"])


def _tensors(settings: ModelSettings, params: Params, model_type: str, head: TaskHead | None) -> Tensors:
    if model_type == "bert":
        return write_bert(unstack_layers(params) if "periods" in params else params, settings, head)
    if model_type == "t5":
        stacks = {name: params[name] for name in STACKS}
        whole = {name: unstack_layers(stack) if "periods" in stack else stack for name, stack in stacks.items()}
        return write_t5(params | whole, settings)
    return write_tensors_of(params, settings, model_type)
