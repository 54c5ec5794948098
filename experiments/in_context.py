"""A pretrained model asked in context, and the same model fine-tuned on the set (Brown et al. 2020, figure 2.1).

`python experiments/in_context.py DIR` writes the first questions of SST-2's training part in the folder of all sets as
demonstrations; `lmjax run in_context` trains the model in `BASE` on them, with a rate from GPT-1's fine-tuning divided
by three. The prompts are those of `lmjax evaluate --task sst2`. See results/in_context/README.md.
"""

import json
import sys
from pathlib import Path

from lmjax.settings import (
    SFT,
    DialogueSettings,
    DialogueSourceSettings,
    EvaluationSettings,
    OptimizerSettings,
    ScheduleSettings,
    TemplateSettings,
)

BASE = "runs/smollm2"
DEMONSTRATIONS = Path("data/sst2_demonstrations.jsonl")
QUESTIONS = 1500
ASKED = "\nAnswer:"  # with which each prompt ends


def recipe() -> SFT:
    source = DialogueSourceSettings(path=str(DEMONSTRATIONS))
    return SFT(
        name="sst2",
        start=BASE,
        dialogue=DialogueSettings(
            train=(source,),
            template=TemplateSettings(user="{text}", assistant=ASKED, answer=" {text}"),
            sequence_length=128,
            batch_size=8,
        ),
        epochs=1.0,
        optimizer=OptimizerSettings(
            learning_rate=2e-5, schedule=ScheduleSettings(kind="linear", warmup=5), weight_decay=0.0
        ),
        evaluation=EvaluationSettings(prompts=()),
    )


def write_demonstrations(folder: Path) -> None:
    from lmjax.evaluate.sets import SETS

    questions = SETS["sst2"].rows(folder, pool=True).questions[:QUESTIONS]
    pairs = ((each.context.removesuffix(ASKED), each.choices[each.gold].strip()) for each in questions)
    DEMONSTRATIONS.parent.mkdir(exist_ok=True)
    lines = (json.dumps({"prompt": prompt, "response": answer}) + "\n" for prompt, answer in pairs)
    DEMONSTRATIONS.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_demonstrations(Path(sys.argv[1]))
