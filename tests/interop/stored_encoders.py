"""Stored models of the reference library, BERTs and T5s, and what lmjax's models say of the same batch."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from lmjax.model.families import model_of
from lmjax.model.heads import TaskModel
from lmjax.settings import ComputeSettings

GOLDEN = Path(__file__).parents[1] / "golden"
BERT = (
    "bert_model",
    "bert_pretraining",
    "bert_masked_untied",
    "bert_sequence",
    "bert_choice",
    "bert_tokens",
    "bert_span",
)
T5 = ("t5", "t5_gated")
READS = {"next_sentence": "pooled", "sequence": "pooled", "choice": "pooled", "tokens": "tokens", "span": "tokens"}


class Stored:
    """A golden file: its folder, which can be changed before it is written, what was read and what came of it."""

    def __init__(self, path, name):
        self.path = path / name
        with np.load(GOLDEN / f"hf_{name}.npz", allow_pickle=False) as file:
            self.config = json.loads(str(file["config"]))
            parts = {"tensor": {}, "input": {}, "output": {}}
            for key in file.files:
                part, _, rest = key.partition("/")
                if rest:
                    parts[part][rest] = file[key]
        self.tensors, self.inputs, self.outputs = parts["tensor"], parts["input"], parts["output"]

    def write(self):
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, self.path / "model.safetensors", metadata={"format": "pt"})
        return self.path

    @property
    def batch(self):
        """The inputs as lmjax's fields."""
        ids, real = self.inputs["input_ids"], self.inputs["attention_mask"]
        places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
        if "decoder_input_ids" not in self.inputs:
            types = self.inputs["token_type_ids"]
            return {"tokens": ids, "positions": places, "segments": real, "token_types": types}
        tokens = self.inputs["decoder_input_ids"]
        steps = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        own = {"tokens": tokens, "positions": steps, "segments": np.ones_like(tokens)}
        return own | {"inputs": ids, "input_positions": places, "input_segments": real}


def said(model, batch, scan_layers=True):
    """Everything that a model and its head say of a batch: by the names of the reference library."""
    lm = model_of(model.settings, ComputeSettings(scan_layers=scan_layers))

    @jax.jit
    def run(params, head, batch):
        hidden, _ = lm.hidden(params, batch)
        found = {"last_hidden_state": hidden, "prediction_logits": lm.project(params, hidden)}
        if model.settings.head.pooler:
            found["pooler_output"] = lm.pooled(params, hidden)
        if model.head is not None:
            task = TaskModel(lm, head["bias"].size, READS[model.head.kind])
            found[model.head.kind] = task.on_hidden({"trunk": params, "head": head}, hidden, batch["segments"])
        return found

    head = None if model.head is None else model.head.params
    return {name: np.asarray(x) for name, x in run(model.params, head, jax.tree.map(jnp.asarray, batch)).items()}


def expected_and_found(name, outputs, found):
    """Pairs of what the library says and what lmjax does."""
    of_task = {"bert_sequence": "sequence", "bert_tokens": "tokens", "bert_choice": "choice"}
    for key, expected in outputs.items():
        ours = {"logits": of_task.get(name, "prediction_logits"), "seq_relationship_logits": "next_sentence"}.get(
            key, key
        )
        if name == "bert_choice":
            expected = expected.T  # one row of two choices, which are two rows of one score
        if key in ("start_logits", "end_logits"):
            yield expected, found["span"][..., int(key == "end_logits")]
        else:
            yield expected, found[ours]
