"""transformers' side of `finetune_beside_transformers.py`: it trains on the batches that lmjax wrote, and predicts.

    python finetune_transformers.py FOLDER SEED --hf HF --out FILE

FOLDER has `work.json` and `work.npz`, which `finetune_beside_transformers.py` describes. The models are transformers'
own, as `from_pretrained` gives them, with these differences: all dropout is the recipe's; the head of questions, before
which transformers has no dropout, has the same as the others; and columns of padding are no place of an answer. A row
that fills a batch up attends to its first column, as softmax needs one, and weighs nothing.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy, mse_loss, normalize

HEADS = {"Sentences": "classifier", "Choices": "classifier", "Tags": "classifier", "QuestionAnswering": "qa_outputs"}
MODELS = {
    "Sentences": transformers.BertForSequenceClassification,
    "Choices": transformers.BertForMultipleChoice,
    "Tags": transformers.BertForTokenClassification,
    "QuestionAnswering": transformers.BertForQuestionAnswering,
    "Embeddings": transformers.BertModel,
}
ABSENT = -1e30  # the score of an option that an example has not
TOLERANCE = 1e-4  # relative, of the loss of the first batch before training

Batch = dict[str, torch.Tensor]


def check_tokens(work: dict[str, Any], hf: Path) -> None:
    """Ends the process unless the folder's tokenizer gives the ids of lmjax's rows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
    for example in work["examples"]:
        for text, ids in zip(example["texts"], example["ids"], strict=True):
            told = tokenizer(text, is_split_into_words=True) if work["task"] == "Tags" else tokenizer(*text)
            if told["input_ids"] != ids:
                sys.exit(f"{example['where']}: lmjax reads the tokens {ids}, transformers {told['input_ids']}")


def opened_model(work: dict[str, Any], hf: Path) -> Any:
    kind, dropout = work["task"], work["dropout"]
    outputs = {"num_labels": work["outputs"]} if kind in ("Sentences", "Tags") else {}
    own = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = MODELS[kind].from_pretrained(hf, dtype=torch.float32, **outputs, **own)
    if kind == "QuestionAnswering":
        before = torch.nn.Dropout(dropout)
        model.add_module("dropout", before)
        model.qa_outputs.register_forward_pre_hook(lambda _, inputs: (before(inputs[0]),))
    return model


def batch_of(arrays: Any, prefix: str) -> Batch:
    names = [name for name in arrays.files if name.startswith(prefix)]
    found = {name.removeprefix(prefix): torch.from_numpy(arrays[name]) for name in names}
    return {name: array.long() if array.dtype == torch.int32 else array for name, array in found.items()}


def outputs_of(model: Any, kind: str, batch: Batch) -> torch.Tensor:
    """[B, C] of texts, [B, K] of choices, [B, T, C] of tags, [B, T, 2] of questions, [B, 2, D] of embeddings."""
    real = batch["segments"] != 0
    seen = real.clone()
    seen[..., 0] |= ~real.any(dim=-1)
    fields = {"input_ids": batch["tokens"], "attention_mask": seen.long(), "token_type_ids": batch["token_types"]}
    if kind == "Embeddings":
        hidden = model(**{name: array.flatten(0, 1) for name, array in fields.items()}).last_hidden_state
        weights = real.flatten(0, 1).unsqueeze(-1).float()
        means = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
        return normalize(means, dim=-1).view(*batch["tokens"].shape[:2], -1)
    outputs = model(**fields)
    if kind == "Choices":
        return outputs.logits.masked_fill(~real.any(dim=-1), ABSENT)
    if kind == "QuestionAnswering":
        scores = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
        return scores.masked_fill(~seen.unsqueeze(-1), -torch.inf)
    return outputs.logits


def loss_of(kind: str, outputs: torch.Tensor, batch: Batch, highest: float) -> torch.Tensor:
    """The mean over rows, or over the labelled tokens of tags."""
    weights = batch["label_weights"]
    if kind == "Embeddings":
        cosines = (outputs[:, 0] * outputs[:, 1]).sum(dim=-1)
        losses = mse_loss(cosines, batch["labels"] / highest, reduction="none")
    elif kind == "QuestionAnswering":
        losses = cross_entropy(outputs, batch["spans"], reduction="none").mean(dim=-1)
    else:
        losses = cross_entropy(outputs.flatten(0, -2), batch["labels"].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def predicted(kind: str, outputs: torch.Tensor) -> dict[str, np.ndarray]:
    """What the task of lmjax predicts of each row, by its names."""
    if kind == "Embeddings":
        return {"vectors": outputs.numpy()}
    if kind == "QuestionAnswering":
        return {"starts": outputs[..., 0].numpy(), "ends": outputs[..., 1].numpy()}
    shares = outputs.softmax(dim=-1)
    if kind == "Tags":
        return {"labels": outputs.argmax(dim=-1).numpy(), "probabilities": shares.amax(dim=-1).numpy()}
    return {"probabilities": shares.numpy()}


def optimizer_of(model: Any, work: dict[str, Any]) -> torch.optim.Optimizer:
    """AdamW, which decays matrices but no embeddings, norms and biases. Ends the process where lmjax decays others."""
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and "embeddings." not in name].append(parameter)
    without_pooler = 0 if any("pooler" in name for name, _ in model.named_parameters()) else work["pooler"]
    decayed = sum(parameter.numel() for parameter in groups[True]) + without_pooler
    if decayed != work["decayed"]:
        sys.exit(f"weight decay touches {decayed:,} parameters here, and {work['decayed']:,} in lmjax")
    own = work["adam"]
    parts = [{"params": groups[True], "weight_decay": own["weight_decay"]}, {"params": groups[False]}]
    return torch.optim.AdamW(parts, lr=0.0, betas=(own["b1"], own["b2"]), eps=own["eps"], weight_decay=0.0)


def check_loss(model: Any, work: dict[str, Any], arrays: Any) -> None:
    """Ends the process unless the first batch has lmjax's loss with lmjax's head; the model's own comes back."""
    batch, kind = batch_of(arrays, "0/"), work["task"]
    head = getattr(model, HEADS[kind]) if kind in HEADS else None
    own = None if head is None else {name: tensor.clone() for name, tensor in head.state_dict().items()}
    if head is not None:
        head.load_state_dict(
            {"weight": torch.from_numpy(arrays["head/kernel"].T), "bias": torch.from_numpy(arrays["head/bias"])}
        )
    model.eval()
    with torch.no_grad():
        loss = float(loss_of(kind, outputs_of(model, kind, batch), batch, work["highest"]))
    if abs(loss - work["first_loss"]) > TOLERANCE * abs(work["first_loss"]):
        sys.exit(f"the loss of the first batch is {loss} here, and {work['first_loss']} in lmjax: not the same step")
    if head is not None:
        head.load_state_dict(own)


def train(model: Any, work: dict[str, Any], arrays: Any) -> dict[str, np.ndarray]:
    """The loss and the seconds of each step."""
    optimizer, losses, seconds = optimizer_of(model, work), [], []
    model.train()
    for step, rate in enumerate(arrays["rates"]):
        started = time.perf_counter()
        batch = batch_of(arrays, f"{step}/")
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        optimizer.zero_grad()
        loss = loss_of(work["task"], outputs_of(model, work["task"], batch), batch, work["highest"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), work["adam"]["clip_norm"])
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    return {"losses": np.array(losses), "step_seconds": np.array(seconds)}


@torch.no_grad()
def predict(model: Any, work: dict[str, Any], arrays: Any) -> dict[str, np.ndarray]:
    """The predictions of all validation rows; those of tokens are padded with 0 to the full row's columns."""
    out: dict[str, np.ndarray] = {}
    model.eval()
    for number in range(work["validation_batches"]):
        rows = arrays[f"validation/{number}/rows"]
        outputs = outputs_of(model, work["task"], batch_of(arrays, f"validation/{number}/fields/"))
        for name, array in predicted(work["task"], outputs).items():
            tokens = work["task"] in ("Tags", "QuestionAnswering")
            shape = (work["columns"],) if tokens else array.shape[1:]
            whole = out.setdefault(name, np.zeros((work["validation_rows"], *shape), array.dtype))
            whole[(rows, *(slice(0, size) for size in array.shape[1:]))] = array[: len(rows)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--hf", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    work = json.loads((arguments.folder / "work.json").read_text(encoding="utf-8"))
    check_tokens(work, arguments.hf)
    with np.load(arguments.folder / "work.npz") as arrays:
        model = opened_model(work, arguments.hf)
        check_loss(model, work, arrays)
        found = train(model, work, arrays) | predict(model, work, arrays)
    np.savez(arguments.out, **found)


if __name__ == "__main__":
    main()
