"""PyTorch's side of `gpu.py`: a model of transformers in bfloat16, compiled, with fused attention and a fused AdamW.

    python gpu_torch.py CONFIG.json

CONFIG.json has transformers' config of the model, `rows`, `length`, `steps` and `rate`. Prints a line of JSON: the
seconds of each step, and the first loss.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers

CONFIGS = {"gpt2": transformers.GPT2Config, "llama": transformers.LlamaConfig}
MODELS = {"gpt2": transformers.GPT2LMHeadModel, "llama": transformers.LlamaForCausalLM}
WARM = 3  # steps that compile and choose kernels


def main(path: str) -> None:
    work = json.loads(Path(path).read_text(encoding="utf-8"))
    kind, device = work["config"].pop("model_type"), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = CONFIGS[kind](**work["config"], attn_implementation="sdpa", use_cache=False)
    model = MODELS[kind](config).to(device).train()
    forward = torch.compile(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=work["rate"], betas=(0.9, 0.95), weight_decay=0.1, fused=device == "cuda"
    )
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, config.vocab_size, (work["rows"], work["length"]))).to(device)
    losses, seconds = [], []
    for _ in range(WARM + work["steps"]):
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds[WARM:], "first_loss": losses[0]}))


if __name__ == "__main__":
    main(sys.argv[1])
