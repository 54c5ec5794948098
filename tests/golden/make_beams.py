"""Makes `beams.json` beside this file: what the reference library's beam search finds with the model of `hf_gpt2.npz`.

Run where torch and transformers are installed: python tests/golden/make_beams.py
The file here is from torch 2.13.0 and transformers 5.24.0.

Each case holds the options and, for each prompt, the tokens of its hypotheses and their scores, the best first.
"""

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

FOLDER = Path(__file__).parent
PROMPTS = [[7, 3], [11, 40, 5, 2], [60], [9, 9, 1]]
ENDS = [10, 48, 12, 46]
STOPPING = {"always": True, "likely": False, "never": "never"}


def stored_model(name):
    arrays = np.load(FOLDER / f"hf_{name}.npz")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(str(arrays["config"]))
        tensors = {key[7:]: arrays[key] for key in arrays.files if key.startswith("tensor/")}
        save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
        return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


def main():
    model, width, cases = stored_model("gpt2"), max(map(len, PROMPTS)), []
    padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    for stopping, penalty, beams in itertools.product(STOPPING, (1.0, -1.0, 2.0), (4,)):
        found = model.generate(
            padded,
            attention_mask=real,
            num_beams=beams,
            num_return_sequences=3,
            length_penalty=penalty,
            early_stopping=STOPPING[stopping],
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=ENDS,
            pad_token_id=-1,
            return_dict_in_generate=True,
            output_scores=True,
        )
        sequences = [[token for token in row if token >= 0] for row in found.sequences[:, width:].tolist()]
        scores = found.sequences_scores.tolist()
        hypotheses = [
            [{"tokens": sequences[i], "score": scores[i]} for i in range(first, first + 3)]
            for first in range(0, len(sequences), 3)
        ]
        options = {"beams": beams, "length_penalty": penalty, "early_stopping": stopping, "n_best": 3, "max_tokens": 8}
        cases.append({"options": options, "hypotheses": hypotheses})
    text = json.dumps({"prompts": PROMPTS, "ends": ENDS, "cases": cases})
    (FOLDER / "beams.json").write_text(text + "\n")
    lengths = [[[len(h["tokens"]) for h in row] for row in case["hypotheses"]] for case in cases]
    print(*(f"{case['options']} {length}" for case, length in zip(cases, lengths, strict=True)), sep="\n")


if __name__ == "__main__":
    main()
