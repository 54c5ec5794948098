"""Reward models on three public sets of human and machine preferences, from a small model pretrained for them.

Link or copy under data/: web_docs (C4, Wikipedia), tinystories and wikitext2 to pretrain on; hh_rlhf, oasst_en and
pref_demo to rank. A tenth of each set is held out.
"""

import dataclasses

from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    DialogueSettings,
    DialogueSourceSettings,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    Pipeline,
    Pretrain,
    RewardModel,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)

TEXTS = {  # how a document of each begins and ends
    "data/web_docs/c4_dev.jsonl": {"kind": "jsonl"},
    "data/web_docs/wiki_dev.txt": {"kind": "text", "documents": "line"},
    "data/tinystories/tinystories_dev.txt": {"kind": "text"},
    "data/wikitext2/valid.txt": {"kind": "text"},
}
RANKINGS = {  # epochs over what is not held out: small sets are read more often
    "hh_rlhf": ("data/hh_rlhf/harmless_dev.jsonl.gz", 2.0),
    "oasst_en": ("data/oasst_en/oasst_en_dev.jsonl", 3.0),
    "pref_demo": ("data/pref_demo/dpo_en_demo_dev.json", 3.0),
}
HELD_OUT = 0.9  # from here on


def pretrain() -> Pretrain:
    return Pretrain(
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=4096),
        data=DataSettings(
            train=tuple(SourceSettings(path=path, end=HELD_OUT, **how) for path, how in TEXTS.items()),
            validation=tuple(SourceSettings(path=path, begin=HELD_OUT, **how) for path, how in TEXTS.items()),
            batch_size=16,
        ),
        model=ModelSettings(layers=4, width=256, context=512, attention=AttentionSettings(heads=4)),
        optimizer=OptimizerSettings(learning_rate=2e-3, schedule=ScheduleSettings(warmup=50)),
        train=TrainSettings(steps=400),
        evaluation=EvaluationSettings(every=200, prompts=("Once upon a time",), sample_tokens=48),
        checkpoint=CheckpointSettings(every=200),
    )


def reward(name: str, path: str, epochs: float) -> RewardModel:
    source = DialogueSourceSettings(path=path, on_bad_record="skip")  # a few answers of hh_rlhf are empty
    return RewardModel(
        name=name,
        start="pretrain",
        dialogue=DialogueSettings(
            train=(dataclasses.replace(source, end=HELD_OUT),),
            validation=(dataclasses.replace(source, begin=HELD_OUT),),
            sequence_length=320,
        ),
        epochs=epochs,
        optimizer=OptimizerSettings(learning_rate=1e-4, schedule=ScheduleSettings(warmup=20), weight_decay=0.01),
        evaluation=EvaluationSettings(every=100),
    )


def recipe() -> Pipeline:
    rewards = (reward(name, path, epochs) for name, (path, epochs) in RANKINGS.items())
    return Pipeline("preferences", (pretrain(), *rewards))
