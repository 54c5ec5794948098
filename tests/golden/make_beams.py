"""Makes `beams.json` beside this file: what the reference library's beam search finds with stored models.

These are GPT-2 of `hf_gpt2.npz`, for prompts padded on the left, and T5 of `hf_t5.npz`, for inputs.

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
MODELS = {
    "gpt2": (transformers.GPT2LMHeadModel, [10, 48, 12, 46]),
    "t5": (transformers.T5ForConditionalGeneration, [59, 2]),
}
STOPPING = {"always": True, "likely": False, "never": "never"}


def stored_model(name, kind):
    arrays = np.load(FOLDER / f"hf_{name}.npz")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(str(arrays["config"]))
        tensors = {key[7:]: arrays[key] for key in arrays.files if key.startswith("tensor/")}
        save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
        return kind.from_pretrained(folder).eval()


def searched(model, ends, options):
    """The hypotheses of each prompt."""
    encodes, width = model.config.is_encoder_decoder, max(map(len, PROMPTS))
    padding = [[0] * (width - len(prompt)) for prompt in PROMPTS]
    pairs = [(prompt, fill) if encodes else (fill, prompt) for prompt, fill in zip(PROMPTS, padding, strict=True)]
    ones = [[1] * len(prompt) for prompt in PROMPTS]
    masks = [(one, fill) if encodes else (fill, one) for one, fill in zip(ones, padding, strict=True)]
    count = options["n_best"]
    found = model.generate(
        torch.tensor([[*one, *other] for one, other in pairs]),
        attention_mask=torch.tensor([[*one, *other] for one, other in masks]),
        num_beams=options["beams"],
        num_return_sequences=count,
        length_penalty=options["length_penalty"],
        early_stopping=STOPPING[options["early_stopping"]],
        max_new_tokens=options["max_tokens"],
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=-1,
        **({"decoder_start_token_id": 0} if encodes else {}),
        return_dict_in_generate=True,
        output_scores=True,
    )
    begin, scores = 1 if encodes else width, found.sequences_scores.tolist()
    sequences = [[token for token in row if token >= 0] for row in found.sequences[:, begin:].tolist()]
    pairs = [{"tokens": tokens, "score": score} for tokens, score in zip(sequences, scores, strict=True)]
    return [pairs[first : first + count] for first in range(0, len(pairs), count)]


def main():
    stored = {"prompts": PROMPTS}
    for name, (kind, ends) in MODELS.items():
        model, cases = stored_model(name, kind), []
        for stopping, penalty in itertools.product(STOPPING, (1.0, -1.0, 2.0)):
            options = {"beams": 4, "length_penalty": penalty, "early_stopping": stopping, "n_best": 3, "max_tokens": 8}
            cases.append({"options": options, "hypotheses": searched(model, ends, options)})
            lengths = [[len(each["tokens"]) for each in row] for row in cases[-1]["hypotheses"]]
            print(name, options, lengths, [row[0]["tokens"] for row in cases[-1]["hypotheses"]])
        stored[name] = {"ends": ends, "cases": cases}
    (FOLDER / "beams.json").write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    main()
