"""Own text in one command: `lmjax run text --data my.txt`, and `text:small` and `text:medium` for accelerators.

Vocabulary, context, batch and steps follow from the text that is found, by the arithmetic below, and a run says each
with its reason. Any field can still be set beside it: `lmjax run text --data my.txt --train.steps 2000`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from lmjax.data.text_survey import Survey, bytes_of_token, survey
from lmjax.errors import ArgumentError, UserError
from lmjax.model.flops import count
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    Pretrain,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.settings.data import BYTE_ENTRIES

LEAST_BYTES = 10_000  # of text: less leaves no rows to validate on
LEAST_ENTRIES, BYTES_OF_ENTRY = 512, 512  # of a trained vocabulary; each entry is then seen about 200 times
VALIDATION, MOST_VALIDATION = 0.1, 1_000_000  # the part of the text, and bytes at most
ROWS_OF_EPOCH, STEPS_OF_EPOCH = 200, 20  # at least
EPOCHS = 16  # Muennighoff et al. 2023: text that is read more often than that teaches next to nothing
AS_GOOD_AS_NEW = 4  # epochs up to which repeated text is (the same paper)
TOKENS_OF_PARAMETER = 20  # Hoffmann et al. 2022


@dataclass(frozen=True)
class Size:
    layers: int
    width: int
    context: int  # the most tokens of a row
    entries: int  # the most of the vocabulary
    batch: int  # the most tokens of a step
    rate: float  # the peak
    tokens: int | None = None  # the most to train on; None: 20 for each parameter


SIZES = {
    "tiny": Size(4, 256, context=128, entries=4096, batch=2048, rate=2e-3, tokens=1_800_000),
    "small": Size(8, 512, context=512, entries=16_384, batch=32_768, rate=1e-3),
    "medium": Size(12, 768, context=1024, entries=32_768, batch=262_144, rate=6e-4),  # GPT-2's smallest shape
}


def recipe(
    size: Literal["tiny", "small", "medium"] = "tiny",
    *,
    data: tuple[str, ...],  # files, folders or globs of text: plain, JSON lines, CSV or Parquet, also compressed
    field: str = "text",  # the field of a record that holds its text
    skip_bad: bool = False,  # leave out records that cannot be read, instead of ending at the first of them
) -> Pretrain:
    shape, found = SIZES[size], survey(data, field, skip_bad=skip_bad)
    held = sum(one.bytes for one in found)
    if held < LEAST_BYTES:
        expected = f"{held:,} bytes of text: expected at least {LEAST_BYTES:,} to learn from"
        raise ArgumentError(f"--data {' '.join(data)}: {expected}; name more text")
    part = min(VALIDATION, MOST_VALIDATION / held)
    tokenizer, size_of_token, vocabulary = vocabulary_of(found, held, shape)
    tokens = int(held * (1 - part) / size_of_token)
    context = power_of_two(tokens // ROWS_OF_EPOCH, shape.context)
    rows = power_of_two(tokens // STEPS_OF_EPOCH // context, shape.batch // context)
    model = ModelSettings(
        layers=shape.layers, width=shape.width, context=context, attention=AttentionSettings(heads=shape.width // 64)
    )
    steps, length = steps_of(shape, model, tokenizer, tokens, rows * context)
    epochs = steps * rows * context / tokens
    if epochs > AS_GOOD_AS_NEW:
        model = dataclasses.replace(model, dropout=0.1)
    train, validation = split(found, part)
    return Pretrain(
        name=f"text-{size}",
        reasons=(
            text_found(found, held, part),
            vocabulary,
            f"tokens: about {tokens:,} to train on, for a token has {size_of_token:.2f} bytes",
            f"context: {context} tokens, at most {shape.context} ({size}) and {ROWS_OF_EPOCH} rows of text or more",
            f"batch: {rows} rows = {rows * context:,} tokens, at most {shape.batch:,} ({size}) and {STEPS_OF_EPOCH} "
            "steps an epoch or more",
            length,
            f"dropout: {model.dropout}, as text that is read more than {AS_GOOD_AS_NEW} times is learned by heart"
            if model.dropout
            else f"dropout: none, as text that is read up to {AS_GOOD_AS_NEW} times is as good as new",
        ),
        tokenizer=tokenizer,
        data=DataSettings(train=train, validation=validation, sequence_length=context, batch_size=rows),
        model=model,
        optimizer=OptimizerSettings(
            learning_rate=shape.rate, schedule=ScheduleSettings(warmup=max(1, min(2000, steps // 20)))
        ),
        train=TrainSettings(steps=steps),
        evaluation=EvaluationSettings(
            every=max(1, steps // 8), batches=max(1, 100_000 // (rows * context)), prompts=(prompt_of(found),)
        ),
        checkpoint=CheckpointSettings(every=max(1, steps // 8), keep_best=1, select_best=True),
    )


def text_found(found: list[Survey], held: int, part: float) -> str:
    documents, exact = sum(one.documents for one in found), all(one.exact for one in found)
    read = f"{'' if exact else 'about '}{held:,} bytes in {documents:,} document{'s' * (documents > 1)}"
    return f"text: {read}; the last {part:.1%} of each source is validated on, and never trained on"


def vocabulary_of(found: list[Survey], held: int, shape: Size) -> tuple[TokenizerSettings, float, str]:
    """The tokenizer, the bytes of its tokens, and why it is this one."""
    sources = [one.source for one in found]
    rule = f"{held:,} bytes / {BYTES_OF_ENTRY} = {held // BYTES_OF_ENTRY:,}"
    entries = power_of_two(held // BYTES_OF_ENTRY, shape.entries)
    why = f"{rule} entries are fewer than {LEAST_ENTRIES}"
    if entries >= LEAST_ENTRIES:
        tokenizer = TokenizerSettings(kind="bpe", vocab_size=entries)
        text = f"vocabulary: {entries:,} entries, the power of two below {rule}, at most {shape.entries:,}"
        try:
            return tokenizer, bytes_of_token(sources, tokenizer), text
        except UserError:  # the same few words again and again
            why = f"the text repeats itself: it has no {entries:,} pieces that occur twice"
    tokenizer = TokenizerSettings()
    return tokenizer, bytes_of_token(sources, tokenizer), f"vocabulary: the {BYTE_ENTRIES} of bytes, as {why}"


def steps_of(
    shape: Size, model: ModelSettings, tokenizer: TokenizerSettings, tokens: int, batch: int
) -> tuple[int, str]:
    """The steps, and what decides them: the size's budget, or how often text is worth reading."""
    if shape.tokens is None:
        parameters = count(dataclasses.replace(model, vocab_size=tokenizer.planned_vocab_size)).parameters
        budget, rule = TOKENS_OF_PARAMETER * parameters, f"{TOKENS_OF_PARAMETER} for each of {parameters:,} parameters"
    else:
        budget, rule = shape.tokens, "minutes of two CPU cores"
    if EPOCHS * tokens < budget:
        budget, rule = EPOCHS * tokens, f"{EPOCHS} epochs, for more teach next to nothing"
    steps = max(1, round(budget / batch))
    return steps, f"steps: {steps:,} of {batch:,} tokens: {budget:,} tokens, {rule}"


def split(found: list[Survey], part: float) -> tuple[tuple[SourceSettings, ...], tuple[SourceSettings, ...]]:
    """The beginning of each source to train on, and the rest of it, at least a document, to validate on."""
    ends = [1 - part if one.documents == 1 else 1 - max(part, 1 / one.documents) for one in found]
    cut = list(zip(found, ends, strict=True))
    train = tuple(dataclasses.replace(one.source, end=end) for one, end in cut)
    return train, tuple(dataclasses.replace(one.source, begin=end) for one, end in cut)


def prompt_of(found: list[Survey]) -> str:
    """How the last document begins: its first words, or signs where no blank stands between words."""
    line = next(line for line in found[-1].opening.splitlines() if line.strip()).strip()
    words = " ".join(line.split()[:3])
    return words if len(words) <= 24 else line[:8]


def power_of_two(wanted: int, most: int) -> int:
    """The largest power of two that is at most both."""
    return 1 << (max(1, min(wanted, most)).bit_length() - 1)
