"""SmolLM2-135M-Instruct fine-tuned on human demonstrations, in its own chat template.

Import the model with `lmjax import-hf FOLDER runs/smollm2`, and link or copy the set dolly under data/. A fifth of the
demonstrations is held out.
"""

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
PROMPTS = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nWhy do cats purr?\n\n### Response:",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName three fruits that are red.\n\n### Response:",
)


def recipe() -> SFT:
    return SFT(
        name="smollm2_dolly",
        start="runs/smollm2",
        dialogue=DialogueSettings(
            train=(DialogueSourceSettings(path=DOLLY, end=HELD_OUT),),
            validation=(DialogueSourceSettings(path=DOLLY, begin=HELD_OUT),),
            template=TemplateSettings(name="own"),
            sequence_length=512,
            batch_size=4,
        ),
        epochs=2.0,
        optimizer=OptimizerSettings(learning_rate=2e-5, weight_decay=0.0, schedule=ScheduleSettings(warmup=2)),
        evaluation=EvaluationSettings(every=1000, prompts=PROMPTS, sample_tokens=64, temperature=0.0),
        checkpoint=CheckpointSettings(every=1000),
    )
