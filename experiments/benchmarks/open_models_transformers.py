"""transformers' side of `open_models.py`: it makes random models, or computes those that lmjax wrote.

    python open_models_transformers.py make FOLDER
    python open_models_transformers.py compute FOLDER

`make` saves every case of tests/golden/make_open_models.py in a folder of its name, with `tokens.npy`. `compute` loads
each folder that has a `config.json` and `tokens.npy` [B, T], and writes `logits.npy` [B, T, V] and `greedy.npy`, the
likeliest tokens after the first half of each row.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "golden"))
SEED, ROWS, LENGTH = 100, 4, 48


def make(folder: Path) -> None:
    from make_hf_logits import redraw
    from make_open_models import models

    for seed, (name, model) in enumerate(models(), SEED):
        redraw(model, seed, torch.float32, 0.2)
        model.save_pretrained(folder / name)
        tokens = np.random.default_rng(seed).integers(0, model.config.vocab_size, (ROWS, LENGTH))
        np.save(folder / name / "tokens.npy", tokens)


def compute(folder: Path) -> None:
    for place in sorted(path.parent for path in folder.glob("*/tokens.npy")):
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            place, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        if any(told.values()):
            sys.exit(f"{place}: {told}")
        tokens = torch.from_numpy(np.load(place / "tokens.npy")).long()
        half = tokens.shape[1] // 2
        prompt = tokens[:, :half]
        with torch.no_grad():
            logits = model.eval()(tokens).logits.numpy()
            options = {"max_new_tokens": half, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            rows = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        np.save(place / "logits.npy", logits)
        np.save(place / "greedy.npy", rows[:, half:].numpy())


if __name__ == "__main__":
    {"make": make, "compute": compute}[sys.argv[1]](Path(sys.argv[2]))
