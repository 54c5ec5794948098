"""Makes the `hf_bert_*.npz` and `hf_t5*.npz` beside this file: tiny random models, and what they say of a batch.

Run where torch and transformers are installed: python tests/golden/make_hf_encoders.py
The files here are from torch 2.13.0 and transformers 5.24.0.

Each file holds the config.json as the library writes it, every tensor of its model.safetensors, `input/...`, what is
read, and `output/...`, what the model gives, in float32. Parameters are redrawn wide as in make_hf_logits.py.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from make_hf_logits import redraw
from safetensors.numpy import load_file

BERT = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 28,
    "max_position_embeddings": 12,
    "layer_norm_eps": 1e-3,
}
NAMED = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}
T5 = {
    "vocab_size": 61,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 28,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "layer_norm_epsilon": 1e-2,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 3}


def models():
    """Every case by name."""
    bert = transformers.BertConfig(**BERT)
    untied = transformers.BertConfig(**BERT, hidden_act="gelu_new", tie_word_embeddings=False)
    named = transformers.BertConfig(**BERT, **NAMED)
    yield "bert_model", transformers.BertModel(bert)
    yield "bert_pretraining", transformers.BertForPreTraining(bert)
    yield "bert_masked_untied", transformers.BertForMaskedLM(untied)
    yield "bert_sequence", transformers.BertForSequenceClassification(named)
    yield "bert_choice", transformers.BertForMultipleChoice(bert)
    yield "bert_tokens", transformers.BertForTokenClassification(named)
    yield "bert_span", transformers.BertForQuestionAnswering(bert)
    yield "t5", transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
    gated = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5 | GATED))
    gated.lm_head.weight = torch.nn.Parameter(gated.shared.weight.detach().clone())  # transformers 5 ties it
    yield "t5_gated", gated


def inputs_of(name, rng):
    """Two rows, the second of which ends in padding."""
    tokens, real = rng.integers(1, 61, (2, 12)), np.ones((2, 12), np.int64)
    real[1, 8:] = 0
    tokens *= real
    if name.startswith("t5"):
        return {"input_ids": tokens, "attention_mask": real, "decoder_input_ids": rng.integers(1, 61, (2, 9))}
    types = (np.arange(12) >= 5).astype(np.int64)[None].repeat(2, 0)
    return {"input_ids": tokens, "attention_mask": real, "token_type_ids": types}


def main():
    for seed, (name, model) in enumerate(models()):
        redraw(model, seed)
        model, inputs = model.eval(), inputs_of(name, np.random.default_rng(seed))
        tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
        if name == "bert_choice":  # two choices of one question
            tensors = {key: value[None] for key, value in tensors.items()}
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            outputs = model(**tensors)
            model.save_pretrained(folder)
            config = (Path(folder) / "config.json").read_text()
            stored = load_file(Path(folder) / "model.safetensors")
        names = ("last_hidden_state", "pooler_output", "prediction_logits", "seq_relationship_logits")
        names += ("logits", "start_logits", "end_logits")
        found = {key: outputs[key].numpy().astype(np.float32) for key in names if key in outputs}
        arrays = {f"tensor/{key}": value for key, value in stored.items()}
        arrays |= {f"input/{key}": value.astype(np.int32) for key, value in inputs.items()}
        arrays |= {f"output/{key}": value for key, value in found.items()}
        path = Path(__file__).with_name(f"hf_{name}.npz")
        np.savez_compressed(path, config=np.array(config), **arrays)
        spread = {key: round(float(value.std()), 2) for key, value in found.items()}
        print(f"{path.name}: {path.stat().st_size:,} bytes, {len(stored)} tensors, deviations {spread}")


if __name__ == "__main__":
    main()
