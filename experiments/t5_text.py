"""Span corruption of a small T5, then one set of classes and one of questions as text, beside no pretraining.

`lmjax run t5_text` pretrains on 7 MB of English, then learns to write the labels of SST-2's sentences, and the answers
to SQuAD 2.0's questions; `fresh` is the same model without pretraining. The sets are read from `../shared/data`, or
where LMJAX_SHARED_DATA says.
"""

import dataclasses
import os
from pathlib import Path

from lmjax.model.presets import preset
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    Finetune,
    LabelledSettings,
    LogSettings,
    OptimizerSettings,
    Pipeline,
    PretrainSpans,
    RowSettings,
    ScheduleSettings,
    SourceSettings,
    TextToTextSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.settings.masking import sentinel_symbols
from lmjax.tasks.text_to_text import TextToText

DATA = Path(os.environ.get("LMJAX_SHARED_DATA", "../shared/data"))
ARTICLES = 3056 / 3822  # of squad_v2's questions, those of its first eight articles: none is on both sides

TEXTS = ("pd_books/inaugural.txt", "pd_books/botchan.txt", "wikitext2/valid.txt")  # beside the embedded corpus


def texts(path: str, form: str, prefix: str, begin: float = 0.0, end: float = 1.0) -> tuple[TextToTextSettings, ...]:
    source = LabelledSettings(str(DATA / path), form=form, begin=begin, end=end)
    return (TextToTextSettings(source, prefix=prefix),)


SST2 = TextToText(
    train=texts("sst2/train.tsv", "sst2", "sst2 sentence: "),
    validation=texts("sst2/dev.tsv", "sst2", "sst2 sentence: "),
    target_length=32,
)
SQUAD = TextToText(
    train=texts("squad_v2/squad2_dev.json", "squad", "", end=ARTICLES),
    validation=texts("squad_v2/squad2_dev.json", "squad", "", begin=ARTICLES),
    target_length=24,
)


def spans(name: str, steps: int) -> PretrainSpans:
    small = preset("t5_v1_1_small")
    model = dataclasses.replace(
        small,
        layers=2,
        encoder_layers=2,
        width=128,
        context=320,
        vocab_size=None,
        attention=AttentionSettings(heads=4, head_dim=32, bias=False, scaled=False),
        feed_forward=dataclasses.replace(small.feed_forward, width=256),
    )
    return PretrainSpans(
        name=name,
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=4096, user_symbols=sentinel_symbols()),
        data=DataSettings(
            train=(SourceSettings(), *(SourceSettings(path=str(DATA / path), documents="paragraph") for path in TEXTS)),
            sequence_length=128,
            batch_size=32,
        ),
        model=model,
        optimizer=OptimizerSettings(
            name="adafactor",
            learning_rate=3e-2,
            schedule=ScheduleSettings(kind="inverse_sqrt", warmup=100, warmup_from=1.0),
            weight_decay=0.0,
            clip_norm=None,
        ),
        train=TrainSettings(steps=steps, z_loss=1e-4),
        evaluation=EvaluationSettings(every=400),
        checkpoint=CheckpointSettings(every=400),
    )


def tuned(name: str, start: str, task: TextToText, rows: RowSettings, epochs: float) -> Finetune:
    return Finetune(
        name=name,
        start=start,
        task=task,
        rows=rows,
        epochs=epochs,
        optimizer=OptimizerSettings(
            name="adafactor",
            learning_rate=5e-3,
            schedule=ScheduleSettings(kind="linear", warmup=20, final=0.0),
            weight_decay=0.0,
        ),
        evaluation=EvaluationSettings(every=1000),
        checkpoint=CheckpointSettings(every=1000),
        log=LogSettings(every=20),
    )


def recipe() -> Pipeline:
    sentences, passages = RowSettings(sequence_length=128, batch_size=16), RowSettings(320, batch_size=8)
    return Pipeline(
        "t5-text",
        (
            spans("spans", 800),
            spans("fresh", 1),
            tuned("sst2", "spans", SST2, sentences, 4.0),
            tuned("sst2-fresh", "fresh", SST2, sentences, 4.0),
            tuned("squad", "spans", SQUAD, passages, 2.0),
            tuned("squad-fresh", "fresh", SQUAD, passages, 2.0),
        ),
    )
