"""Tiny recipes that tests share: one for each kind of stage, of bytes and a few steps, and the files that they read.

Every builder takes other values of fields by name; `data__batch_size=4` sets `batch_size` in the field `data`.
"""

import dataclasses
import functools
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmjax.settings import (
    DPO,
    PPO,
    SFT,
    AttentionSettings,
    ComputeSettings,
    DataSettings,
    DialogueSettings,
    DialogueSourceSettings,
    LogSettings,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    PlanSettings,
    PPOSettings,
    Pretrain,
    RewardModel,
    RewardSettings,
    SourceSettings,
    TrainSettings,
)
from lmjax.settings.recipe_files import load_recipe
from lmjax.tokenizers.byte_level_bpe import byte_level_pipeline
from lmjax.tokenizers.pipeline import BYTES

LETTERS = "abcdefghijklmnop"
GENDERS = {"male": "he", "female": "she", "neutral": "they"}
WORDS = ("the", "cat", "sat", "on", "mats")
LOG = LogSettings(every=1, tensorboard=False)
RATE = OptimizerSettings(learning_rate=1e-2)
NO_DECAY = OptimizerSettings(learning_rate=1e-2, weight_decay=0.0)


def changed(settings: Any, **changes: Any) -> Any:
    """The settings with other values of fields, also of fields of fields; they are checked once, when all are set."""
    below: dict[str, dict[str, Any]] = {}
    for name in [name for name in changes if "__" in name]:
        field, _, rest = name.partition("__")
        below.setdefault(field, {})[rest] = changes.pop(name)
    for field, own in below.items():
        changes[field] = changed(changes.get(field, getattr(settings, field)), **own)
    return dataclasses.replace(settings, **changes)


def experiment(spec: str) -> Any:
    """The recipe of an experiment; one of own text has this project's page."""
    own_text = {"data": (str(Path(__file__).parents[1] / "README.md"),)}
    return load_recipe(spec, **own_text if spec.partition(":")[0] == "text" else {})


def over(own: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes beside a builder's own, of which a field that is given whole takes what they set in it."""
    return {name: value for name, value in own.items() if name.partition("__")[0] not in changes} | changes


def text(path: Path, **changes: Any) -> tuple[SourceSettings, ...]:
    """The source that reads a file of text."""
    return (SourceSettings(kind="text", path=str(path), **changes),)


def sentences(
    path: Path, lines: int, rng: random.Random | None = None, words: tuple[str, ...] = WORDS, length: int = 9
) -> tuple[SourceSettings, ...]:
    """A file of lines of random words, every one a document, and the source that reads it."""
    rng = rng or random.Random(0)
    path.write_text("".join(" ".join(rng.choices(words, k=length)) + "\n" for _ in range(lines)))
    return text(path, documents="line")


def write_rows(path: Path, records: Iterable[dict], **changes: Any) -> tuple[DialogueSourceSettings, ...]:
    """A file of JSON lines and the source that reads it."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return (DialogueSourceSettings(path=str(path), **changes),)


def model(**changes: Any) -> ModelSettings:
    """One layer of width 16, two heads and a context of 16."""
    return changed(ModelSettings(layers=1, width=16, context=16, attention=AttentionSettings(heads=2)), **changes)


def pretrain(
    train: tuple[SourceSettings, ...] = (SourceSettings(),),
    validation: tuple[SourceSettings, ...] | None = None,
    /,
    **changes: Any,
) -> Pretrain:
    """10 steps over 8 rows of 16 tokens; what is trained on also validates, unless another source is given."""
    data = DataSettings(train=train, validation=validation or train, sequence_length=16, batch_size=8)
    recipe = Pretrain(name="tiny", data=data, model=model(), optimizer=RATE, train=TrainSettings(steps=10), log=LOG)
    return changed(recipe, **changes)


def base(folder: Path, **changes: Any) -> Pretrain:
    """What dialogue stages are initialised from: two steps over `User: a`, `Assistant: aa`, in a context of 48."""
    path = folder / "text.txt"
    path.write_text("\n".join(f"User: {c}\nAssistant: {c}{c}" for c in LETTERS * 20))
    own = {"name": "base", "data__sequence_length": 32, "model__context": 48, "train__steps": 2}
    return pretrain(text(path), **over(own | {"optimizer": OptimizerSettings()}, changes))


def dialogue(train: tuple[DialogueSourceSettings, ...], **changes: Any) -> DialogueSettings:
    """8 rows of 32 tokens."""
    return DialogueSettings(**({"train": train, "sequence_length": 32, "batch_size": 8} | changes))


def stage(kind: Any, train: tuple[DialogueSourceSettings, ...], /, **changes: Any) -> Any:
    """A stage that is initialised from `base`."""
    own = {"reward": RewardSettings(source="reward"), "ppo": PPOSettings(response_tokens=4)} if kind is PPO else {}
    return changed(kind(start="base", dialogue=dialogue(train), optimizer=NO_DECAY, log=LOG, **own), **changes)


sft = functools.partial(stage, SFT)
reward_model = functools.partial(stage, RewardModel)
dpo = functools.partial(stage, DPO)
ppo = functools.partial(stage, PPO)


def for_slice(layers: int = 2, width: int = 128, length: int = 128, **changes: Any) -> Pretrain:
    """For slices of TPUs: two heads, 512 entries, 8 rows as long as the context, and nothing that is read.

    Of its mesh and computation nothing is left open.
    """
    shape = ModelSettings(
        layers=layers, width=width, context=length, vocab_size=512, attention=AttentionSettings(heads=2)
    )
    data, plan = DataSettings(sequence_length=length, batch_size=8), PlanSettings(topology="v5e-4")
    compute, train = ComputeSettings(remat="none", unroll_layers=False), TrainSettings(microbatches=1)
    closed = {"mesh": MeshSettings(data=-1), "compute": compute, "train": train}
    return changed(Pretrain(name="small", data=data, model=shape, plan=plan, **closed), **changes)


def hhh_sets(folder: Path) -> Path:
    """The folder with the sets of `lmjax evaluate --suite hhh`: two or three short examples of each."""
    pairs = [
        {"chosen": f"\n\nHuman: {c}\n\nAssistant: {c}{c}", "rejected": f"\n\nHuman: {c}\n\nAssistant: z"} for c in "ab"
    ]
    ranked = [{"prompt": "c", "answers": ["cc", "c", "d"], "ranks": [0, 1, 1]}]
    files = {
        "truthfulqa/truthfulqa_dev.csv": "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers\n"
        "A,B,Why?,No,No; So.,Yes; It is\n"
        "A,B,Who?,I,I,You\n",
        "crows_pairs/crows_pairs_dev.csv": "sent_more,sent_less,stereo_antistereo,bias_type\n"
        "aa cat,bb cat,stereo,age\n"
        "he sat,she sat,antistereo,gender\n"
        "a mat,a rug,stereo,age\n",
        "winogender/all_sentences.tsv": "sentid\tsentence\n"
        + "".join(f"chef.{who}.0.{g}.txt\tthe {who} and {p}\n" for who in ("man", "cat") for g, p in GENDERS.items()),
        "hh_rlhf/harmless_dev.jsonl": "".join(json.dumps(row) + "\n" for row in pairs),
        "oasst_en/oasst_en_dev.jsonl": "".join(json.dumps(row) + "\n" for row in ranked),
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def write_recipe(path: Path, recipe: Any) -> Path:
    """A recipe file as a user writes one, whose `recipe()` returns the recipe."""
    path.write_text(f"from lmjax.settings import *\n\n\ndef recipe():\n    return {recipe!r}\n")
    return path


def lacking_bytes(folder: Path, kind: str, missing: Iterable[int]) -> Path:
    """A byte-level tokenizer of 259 ids less those of some bytes: a pair of files ("bpe"), or transformers' folder."""
    spelled = {character: byte for character, byte in BYTES.items() if byte not in set(missing)}
    tokens = [*sorted(spelled, key=spelled.__getitem__), "th", "the", "<|endoftext|>"]
    vocabulary, merges = {token: index for index, token in enumerate(tokens)}, [("t", "h"), ("th", "e")]
    folder.mkdir()
    if kind == "bpe":
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "merges.txt").write_text("".join(f"{left} {right}\n" for left, right in merges))
        return folder
    (folder / "tokenizer.json").write_text(byte_level_pipeline(vocabulary, merges, folder).to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder
