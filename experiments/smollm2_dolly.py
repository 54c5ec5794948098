"""SmolLM2-135M-Instruct fine-tuned on human demonstrations, in its own chat template.

Import the model with `lmjax import-hf FOLDER runs/smollm2`, and link or copy the set dolly under data/: a hundred
demonstrations of databricks-dolly-15k, the last fifth of which is held out. With a rate of nearly nothing the first
evaluation is that of the model as it came:

    lmjax run smollm2_dolly --workdir runs/before --epochs none --train.steps 1 --optimizer.learning-rate 1e-12
    lmjax run smollm2_dolly
"""

import dataclasses

from lmjax.settings import (
    SFT,
    CheckpointSettings,
    DialogueSettings,
    DialogueSourceSettings,
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    TemplateSettings,
)

HELD_OUT = 0.8  # from here on
DOLLY = "data/dolly/dolly_dev.jsonl"
ASKED = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)
QUESTIONS = ("Why do cats purr?", "Name three fruits that are red.")


def recipe() -> SFT:
    source = DialogueSourceSettings(path=DOLLY, answer_end="###eos_token###")
    return SFT(
        name="smollm2_dolly",
        start="runs/smollm2",
        dialogue=DialogueSettings(
            train=(dataclasses.replace(source, end=HELD_OUT),),
            validation=(dataclasses.replace(source, begin=HELD_OUT),),
            template=TemplateSettings(name="own"),
            sequence_length=512,
            batch_size=4,
        ),
        epochs=2.0,
        optimizer=OptimizerSettings(learning_rate=2e-5, weight_decay=0.0, schedule=ScheduleSettings(warmup=2)),
        evaluation=EvaluationSettings(
            every=1000, prompts=tuple(map(ASKED.format, QUESTIONS)), sample_tokens=64, temperature=0.0
        ),
        checkpoint=CheckpointSettings(every=1000),
    )
