"""Makes the `hf_*.npz` of today's open models beside this file, as `make_hf_logits.py` makes the others.

Run where torch and transformers are installed: python tests/golden/make_open_models.py
The files here are from torch 2.13.0 and transformers 5.24.0.

Texts are longer than windows and than the context before its scaling. Attention is transformers' "eager", which alone
applies a cap of scores. Weights are rounded to bfloat16, which halves the files and changes nothing of what they show.
"""

import torch
import transformers

LENGTH = 32
SHAPE = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
SCALED = {"rope_theta": 1000.0, "factor": 4.0}
BLENDED = SCALED | {"original_max_position_embeddings": 16}
LLAMA3 = BLENDED | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = BLENDED | {"rope_type": "yarn", "beta_fast": 2.0, "beta_slow": 0.5}
WIDE = {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}  # more pairs to blend
ROTARY = {"rope_type": "default", "rope_theta": 50.0}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
GEMMA = {"sliding_window": 5, "query_pre_attn_scalar": 12, "tie_word_embeddings": True}
OPT = {
    "vocab_size": 37,
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
# The base of the scaled text is 16 tokens; texts have 32, and windows 5.
CASES = {
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama_linear": ("Llama", WIDE | {"rope_parameters": SCALED | {"rope_type": "linear"}}),
    "llama_dynamic": ("Llama", WIDE | {"rope_parameters": SCALED | {"rope_type": "dynamic"}}),
    "llama_yarn": ("Llama", WIDE | {"rope_parameters": YARN}),
    "llama_yarn_fractions": ("Llama", WIDE | {"rope_parameters": YARN | {"truncate": False, "attention_factor": 1.5}}),
    "mistral": ("Mistral", {"sliding_window": 5, "rope_parameters": ROTARY}),
    "qwen2": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "rope_parameters": ROTARY},
    ),
    "qwen3": ("Qwen3", {"rope_parameters": ROTARY, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2, "rope_parameters": ROTARY}),
    "olmo2": ("Olmo2", {"rope_parameters": ROTARY}),
    "gemma2": (
        "Gemma2",
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "rope_parameters": ROTARY},
    ),
    "gemma3_text": (
        "Gemma3",
        GEMMA
        | {
            "num_hidden_layers": 5,  # no whole number of periods, as in the 1B
            "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL],
            "rope_parameters": {
                LOCAL: ROTARY,
                GLOBAL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
            },
        },
    ),
    "opt": ("OPT", {}),
}


def models():
    """Every case by name."""
    for name, (family, fields) in CASES.items():
        config = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
        model = getattr(transformers, f"{family}ForCausalLM")
        shape = OPT if family == "OPT" else SHAPE
        yield name, model(config(**shape | fields, attn_implementation="eager"))


if __name__ == "__main__":
    from make_hf_logits import store  # beside this file

    store(models(), LENGTH, torch.bfloat16, std=0.2)
