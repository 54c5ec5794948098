"""Makes the `hf_*.npz` beside this file: tiny random models of the reference library, and their logits.

Run where torch and transformers are installed: python tests/golden/make_hf_logits.py
The files here are from torch 2.13.0 and transformers 5.23.0.

Each file holds the config.json as the library writes it, every tensor of its model.safetensors, tokens [2, T] and
float32 logits [2, T, V]. All parameters are redrawn wide, biases and norms included: with the library's own start a
wrong activation or a swapped matrix would hide within the tolerance. Epsilons are large for the same reason.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

GPT = {"vocab_size": 61, "n_positions": 12, "n_embd": 18, "n_layer": 2, "n_head": 3, "layer_norm_epsilon": 1e-3}
LLAMA = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
    "rms_norm_eps": 1e-2,
}
OTHERS = {"activation_function": "gelu", "n_inner": 40, "tie_word_embeddings": False, "scale_attn_weights": False}


def models():
    """Every case by name."""
    base = {"rope_type": "default", "rope_theta": 10_000.0}
    yield "gpt1", transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**GPT))
    yield "gpt2", transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT))
    yield "gpt2_untied_erf_unscaled", transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT | OTHERS))
    grouped = {"rope_parameters": base | {"rope_theta": 50.0}, "num_hidden_layers": 3}
    yield "llama_grouped", transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | grouped))
    tied = {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 6}
    tied |= {"num_key_value_heads": 1, "rope_parameters": base}
    yield "llama_tied_biased", transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | tied))


def redraw(model, seed, dtype, std):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            scale = "norm" in name.lower() or ".ln_" in name
            noise = torch.randn(parameter.shape, generator=generator) * (std if parameter.ndim > 1 else 0.2)
            start = parameter.flatten()[0]  # 1 for the scale of a norm, and 0 for what Gemma adds 1 to
            parameter.copy_((noise + start if scale and name.endswith("weight") else noise).to(dtype))


def store(named_models, length, dtype=torch.float32, std=0.3):
    """Writes a file for each model: float32, rounded to `dtype`; with `length` tokens where no table bounds them."""
    for seed, (name, model) in enumerate(named_models):
        redraw(model, seed, dtype, std)
        model = model.eval()
        length = getattr(model.config, "n_positions", length)
        tokens = np.random.default_rng(seed).integers(0, model.config.vocab_size, (2, length)).astype(np.int32)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            logits = model(torch.from_numpy(tokens).long()).logits.numpy()
            model.save_pretrained(folder)
            config = (Path(folder) / "config.json").read_text()
            tensors = load_file(Path(folder) / "model.safetensors")
        arrays = {f"tensor/{key}": value for key, value in tensors.items()}
        path = Path(__file__).with_name(f"hf_{name}.npz")
        np.savez_compressed(path, config=np.array(config), tokens=tokens, logits=logits.astype(np.float32), **arrays)
        print(f"{path.name}: {path.stat().st_size:,} bytes, logits of standard deviation {logits.std():.2f}")


if __name__ == "__main__":
    store(models(), 20)
