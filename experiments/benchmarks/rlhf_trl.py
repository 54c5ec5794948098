"""TRL's side of the comparison: its trainers as a user starts them, held after every step or iteration.

Float32 without gradient checkpointing, which is TRL's fastest on a CPU; nothing is logged, saved or evaluated.
"""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rlhf_work as work
import torch
from datasets import Dataset
from gpt2_reference import torch_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer


class Held(TrainerCallback):
    """Lets a trainer take `steps` steps for each call; the trainer runs in a thread of its own."""

    def __init__(self, steps: int) -> None:
        self._steps, self._failure = steps, None
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._go.acquire()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._steps == 0:
            self._done.release()
            self._go.acquire()

    def run(self, train: Callable[[], Any], threads: int) -> Callable[[], None]:
        def trained() -> None:
            torch.set_num_threads(threads)  # of this thread
            try:
                train()
            except Exception as error:
                self._failure = error
            finally:
                self._done.release()

        threading.Thread(target=trained, daemon=True).start()

        def step() -> None:
            self._go.release()
            self._done.acquire()
            if self._failure is not None:
                raise self._failure

        return step


def tokenizer(end: int) -> PreTrainedTokenizerFast:
    """Numbers as words; the token `end` is no number."""
    words = {str(number): number for number in range(work.SHAPE.vocabulary) if number != end} | {"<end>": end}
    tokens = Tokenizer(WordLevel(words, unk_token="0"))
    tokens.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", pad_token="<end>")


def common(folder: Path, rows: int, **changes: Any) -> dict[str, Any]:
    """What all trainers are told."""
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": rows,
        "max_steps": 1_000_000,
        "learning_rate": work.RATE,
        "lr_scheduler_type": "constant",
        "adam_beta1": work.B1,
        "adam_beta2": work.B2,
        "weight_decay": 0.0,
        "max_grad_norm": work.CLIP,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    } | changes


def text(tokens: np.ndarray) -> str:
    return " ".join("<end>" if token == work.END else str(token) for token in tokens.tolist())


def sft(folder: Path, callbacks: list[Any]) -> Any:
    rows = work.demonstrations().reshape(-1, work.SHAPE.length).tolist()
    labels = [[-100] * work.ASKED + row[work.ASKED :] for row in rows]
    config = SFTConfig(**common(folder, work.SHAPE.rows, train_sampling_strategy="sequential"))
    data = Dataset.from_dict({"input_ids": rows, "labels": labels})
    return SFTTrainer(
        model=loaded(folder),
        args=config,
        train_dataset=data,
        processing_class=tokenizer(work.END),
        callbacks=callbacks,
    )


def dpo(folder: Path, callbacks: list[Any]) -> Any:
    pairs = work.rankings().reshape(-1, 2, work.SHAPE.length)
    data = {
        "prompt": [text(pair[0, : work.ASKED]) + " " for pair in pairs],
        "chosen": [text(pair[0, work.ASKED :]) for pair in pairs],
        "rejected": [text(pair[1, work.ASKED :]) for pair in pairs],
    }
    changes = {"beta": work.BETA, "max_length": work.SHAPE.length, "train_sampling_strategy": "sequential"}
    return DPOTrainer(
        model=loaded(folder),
        args=DPOConfig(**common(folder, work.SHAPE.rows // 2, **changes)),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer(work.END),
        callbacks=callbacks,
    )


def grpo(folder: Path, callbacks: list[Any], epochs: int, minibatches: int) -> Any:
    asked = work.prompts().reshape(-1, work.PROMPT)
    config = GRPOConfig(
        **common(folder, work.RESPONSES // minibatches),
        steps_per_generation=minibatches,
        num_generations=work.GROUP,
        num_iterations=epochs,
        max_completion_length=work.RESPONSE,
        beta=work.KL,
        epsilon=work.RATIO_CLIP,
        loss_type="grpo",
        shuffle_dataset=False,
    )
    return GRPOTrainer(
        model=loaded(folder),
        reward_funcs=work.reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, row.tolist())) for row in asked]}),
        processing_class=tokenizer(work.SHAPE.vocabulary),  # no response ends before its last token
        callbacks=callbacks,
    )


def loaded(folder: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(folder)


def prepare(stage: str, folder: Path, threads: int) -> tuple[Callable[[], None], Callable[[], list[float]]]:
    """A call that does a step, or an iteration; and the losses that the trainer has told, where it tells them."""
    torch_model(work.SHAPE, folder, threads)
    updates = work.UPDATES.get(stage, ())
    held = Held(math.prod(updates))
    losses: list[float] = []
    trainer = {"sft": sft, "dpo": dpo}.get(stage, grpo)(folder, [held], *updates)
    if not updates:
        whole = trainer.training_step

        def telling(*arguments: Any, **options: Any) -> Any:
            loss = whole(*arguments, **options)
            losses.append(float(loss))
            return loss

        trainer.training_step = telling
    return held.run(trainer.train, threads), lambda: losses
