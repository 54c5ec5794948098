"""Made `run_d6b57e5/`, a finished run of the code of commit d6b57e5, which later code must still read.

In a checkout of that commit: `python make_old_run.py OUT`. OUT holds the workdir and, in expected.json, what that code
computes from it. Left out of the copy here: token shards, report and plots.
"""

import json
import sys
from pathlib import Path

import lmjax
from lmjax.settings import (
    AttentionSettings,
    DataSettings,
    EvaluationSettings,
    LogSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    TokenizerSettings,
    TrainSettings,
)

TOKENS = [[17, 200, 3, 42, 99, 7, 250, 1]]
PROMPT = "Return the "


def recipe() -> Pretrain:
    return Pretrain(
        name="golden",
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=300),
        data=DataSettings(sequence_length=32, batch_size=8),
        model=ModelSettings(layers=2, width=16, context=64, attention=AttentionSettings(heads=2)),
        optimizer=OptimizerSettings(learning_rate=1e-2, schedule=ScheduleSettings(warmup=5)),
        train=TrainSettings(steps=20),
        evaluation=EvaluationSettings(every=20, batches=1),
        log=LogSettings(tensorboard=False),
    )


if __name__ == "__main__":
    out = Path(sys.argv[1])
    lmjax.run(recipe(), workdir=out)
    trained = lmjax.load(out)
    expected = {
        "tokens": TOKENS,
        "last_logits": trained.apply(TOKENS)[0, -1].tolist(),
        "prompt": PROMPT,
        "greedy": trained.generate(PROMPT, max_tokens=12, temperature=0.0)[0].text,
    }
    (out / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")
