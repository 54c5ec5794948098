"""A part of a recipe that cannot work cannot be made: the error names the field, its value and what to do."""

import dataclasses
import re
import typing

import pytest

import lmjax.settings
from lmjax.errors import UserError
from lmjax.fields import check_fields, field_types
from lmjax.settings import (
    PPO,
    AttentionSettings,
    CheckpointSettings,
    Compare,
    ComputeSettings,
    DataSettings,
    DialogueSourceSettings,
    EvaluationSettings,
    FeedForwardSettings,
    LabelledSettings,
    LogSettings,
    MeshSettings,
    ModelSettings,
    MuPSettings,
    NormSettings,
    OptimizerSettings,
    Pipeline,
    PositionSettings,
    RotaryScaling,
    ScheduleSettings,
    ScoreSettings,
    SourceSettings,
    Stage,
    Sweep,
    TokenizerSettings,
    TrainSettings,
)

# Fields that have no default that works.
NEED = (DialogueSourceSettings, LabelledSettings, Pipeline, Sweep, PPO, Compare)
PARTS = [getattr(lmjax.settings, name) for name in lmjax.settings.__all__]
PARTS = [part for part in PARTS if not issubclass(part, (Stage, *NEED))]
FORM = re.compile(r"^(?P<field>[\w., ]+) = (?P<value>.+?): expected (?P<expected>.+?); (?P<fix>.+)$", re.S)

# A part, the values given, and what the message must say: the field, the value, and a piece of the fix.
WRONG = [
    (TokenizerSettings, {"vocab_size": 0}, "vocab_size", "0", "4096"),
    (TokenizerSettings, {"training_bytes": -1}, "training_bytes", "-1", "10000000"),
    (TokenizerSettings, {"kind": "bytes"}, "kind", "'bytes'", "did you mean 'byte'"),
    (SourceSettings, {"weight": 0.0}, "weight", "0.0", "leave the source out"),
    (SourceSettings, {"begin": 0.5, "end": 0.5}, "begin, end", "(0.5, 0.5)", "0 and 1"),
    (SourceSettings, {"end": 1.5}, "begin, end", "(0.0, 1.5)", "0 and 1"),
    (SourceSettings, {"kind": "text"}, "path", "''", "set path"),
    (SourceSettings, {"kind": "txt", "path": "x"}, "kind", "'txt'", "did you mean 'text'"),
    (SourceSettings, {"on_bad_record": "ignore"}, "on_bad_record", "'ignore'", "error, skip"),
    (LabelledSettings, {}, "path", "''", "name one"),
    (LabelledSettings, {"path": "a.csv", "begin": 1.0}, "begin, end", "(1.0, 1.0)", "0 and 1"),
    (LabelledSettings, {"path": "a.tsv", "form": "sst2", "label": "y"}, "label", "'y'", "leave form out"),
    (DataSettings, {"sequence_length": 0}, "sequence_length", "0", "256"),
    (DataSettings, {"train": ()}, "train", "()", "add a SourceSettings"),
    (DataSettings, {"validation": ()}, "validation", "()", "add a SourceSettings"),
    (DataSettings, {"train": [SourceSettings()]}, "train", "[SourceSettings(", "parentheses"),
    (DataSettings, {"ramp_from": 16, "ramp_tokens": 100}, "ramp_from", "16", "lower it"),
    (DataSettings, {"ramp_from": 4}, "ramp_tokens", "0", "set its length"),
    (DataSettings, {"ramp_tokens": 100}, "ramp_tokens", "100", "set ramp_from too"),
    (AttentionSettings, {"heads": 0}, "heads", "0", "4"),
    (AttentionSettings, {"dropout": 1.0}, "dropout", "1.0", "0.0"),
    (AttentionSettings, {"kv_heads": 3}, "kv_heads", "3", "use one"),
    (AttentionSettings, {"pattern": ("banded",)}, "band", "None", "256"),
    (
        AttentionSettings,
        {"scaled": False, "scores": ScoreSettings(scale_dim=9)},
        *("scores.scale_dim", "9", "leave it out"),
    ),
    (NormSettings, {"unit_offset": True}, "unit_offset", "True", "leave it out"),
    (RotaryScaling, {"slow_turns": 32.0}, "fast_turns", "32.0", "change one"),
    (RotaryScaling, {"kind": "yarn", "factor": 0.5}, "factor", "0.5", "longer"),
    (AttentionSettings, {"pattern": "dense"}, "pattern", "'dense'", "parentheses, with a comma"),
    (
        FeedForwardSettings,
        {"activation": "gelu"},
        "activation",
        "'gelu'",
        "'gelu_tanh' or 'gelu_erf'",
    ),
    (FeedForwardSettings, {"width": 0}, "width", "0", "leave it out"),
    (NormSettings, {"eps": 0.0}, "eps", "0.0", "1e-05"),
    (PositionSettings, {"relative_buckets": 0}, "relative_buckets", "0", "32"),
    (ModelSettings, {"layers": 2.5}, "layers", "2.5", "4"),
    (ModelSettings, {"width": 130}, "width", "130", "head_dim"),
    (ModelSettings, {"layers": 3, "attention": AttentionSettings(pattern=("dense", "dense"))}, "layers", "3", ""),
    (ModelSettings, {"attention": AttentionSettings(pattern=())}, "layers", "4", "change one"),
    (
        ModelSettings,
        {"attention": AttentionSettings(head_dim=5), "positions": PositionSettings(kind="rotary")},
        *("attention.head_dim", "5", "change it"),
    ),
    (ModelSettings, {"attention": AttentionSettings(pattern=("nope",))}, "attention.pattern", "('nope',)", "dense"),
    (
        ModelSettings,
        {"attention": AttentionSettings(scores=ScoreSettings(cap=1.0)), "positions": PositionSettings(kind="relative")},
        *("attention.scores.cap", "1.0", "leave it out"),
    ),
    (
        ModelSettings,
        {
            "attention": AttentionSettings(qk_norm="head"),
            "encoder_layers": 2,
            "positions": PositionSettings(kind="relative"),
        },
        *("attention.qk_norm", "'head'", "leave it out"),
    ),
    (ComputeSettings, {"dtype": "bf16"}, "dtype", "'bf16'", "did you mean 'bfloat16'"),
    (ComputeSettings, {"loss_chunk": 0}, "loss_chunk", "0", "leave it out"),
    (MeshSettings, {"tensor": 0}, "tensor", "0", "use 1"),
    (
        MeshSettings,
        {"data": -1, "fsdp": -1},
        "",
        "{'replica': 1, 'data': -1",
        "give all but one of data, fsdp a size",
    ),
    (ScheduleSettings, {"warmup": -1}, "warmup", "-1", "0 for no warmup"),
    (ScheduleSettings, {"warmup": 9, "decay": 9}, "warmup", "9", "shorten it"),
    (ScheduleSettings, {"final": 1.5}, "final", "1.5", "0.1"),
    (ScheduleSettings, {"stable": 1.0}, "stable", "1.0", "0.8"),
    (MuPSettings, {"base_head_dim": 8}, "base_width", "None", "set both"),
    (OptimizerSettings, {"learning_rate": 0.0}, "learning_rate", "0.0", "0.0003"),
    (OptimizerSettings, {"learning_rate": float("nan")}, "learning_rate", "nan", "0.0003"),
    (OptimizerSettings, {"clip_norm": float("inf")}, "clip_norm", "inf", "1.0"),
    (OptimizerSettings, {"b2": 1.0}, "b2", "1.0", "0.95"),
    (OptimizerSettings, {"name": "adafactor", "state_dtype": "bfloat16"}, "state_dtype", "'b", "adamw"),
    (OptimizerSettings, {"weight_decay": -0.1}, "weight_decay", "-0.1", "0 for none"),
    (TrainSettings, {"steps": "100"}, "steps", "'100'", "1000"),
    (TrainSettings, {"steps": 1e4}, "steps", "10000.0", "use 10000"),
    (TrainSettings, {"steps": True}, "steps", "True", "1000"),
    (TrainSettings, {"z_loss": -1.0}, "z_loss", "-1.0", "0 for none"),
    (TrainSettings, {"label_smoothing": 1.0}, "label_smoothing", "1.0", "0.0"),
    (EvaluationSettings, {"prompts": "The"}, "prompts", "'The'", "parentheses, with a comma"),
    (EvaluationSettings, {"temperature": -0.5}, "temperature", "-0.5", "0 for greedy"),
    (CheckpointSettings, {"keep_best": -1}, "keep_best", "-1", "0 for none"),
    (CheckpointSettings, {"keep_last": 0}, "keep_last", "0", "2"),
    (CheckpointSettings, {"at": (0, 5)}, "at", "(0, 5)", "leave the others out"),
    (LogSettings, {"profile": (5, 2)}, "profile", "(5, 2)", "(10, 12)"),
    (LogSettings, {"profile": (5,)}, "profile", "(5,)", "leave it out"),
]


@pytest.mark.parametrize(
    ("part", "values", "field", "value", "fix"), WRONG, ids=[f"{part.__name__}-{field}" for part, _, field, *_ in WRONG]
)
def test_a_wrong_value_is_refused_by_field_value_and_fix(part, values, field, value, fix):
    with pytest.raises(UserError) as caught:
        part(**values)
    said = FORM.match(str(caught.value))
    assert said, caught.value
    assert said["field"] == f"{part.__name__}.{field}".rstrip("."), "made alone, it is named by its class"
    assert said["value"].startswith(value)
    assert fix in said["fix"]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_field_refuses_a_value_of_another_type(part):
    for name, kind in field_types(part).items():
        with pytest.raises(UserError, match=rf"\b{name} = <object object at .*: expected .*; .+"):
            part(**{name: object()})
        if type(None) not in typing.get_args(kind):
            with pytest.raises(UserError, match=rf"\b{name} = None: expected"):
                part(**{name: None})


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_part_is_frozen_and_can_be_made_without_arguments(part):
    made = part()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(part)[0].name, 1)
    assert part() == made and hash(part()) == hash(made)


def test_a_whole_number_is_a_number_and_a_truth_value_is_none():
    assert OptimizerSettings(weight_decay=0).weight_decay == 0
    with pytest.raises(UserError, match=r"^OptimizerSettings.weight_decay = True: expected a finite number"):
        OptimizerSettings(weight_decay=True)
    with pytest.raises(UserError, match=r"^DataSettings.shuffle = 1: expected True or False"):
        DataSettings(shuffle=1)


def test_a_part_with_more_than_a_dozen_fields_is_two_parts():
    large = {part.__name__: len(dataclasses.fields(part)) for part in PARTS if len(dataclasses.fields(part)) > 13}
    expected = {"PPOSettings": 14, "ModelSettings": 16}
    assert large == expected, "which have the fields of PPO-ptx, and of two ends and a second stack"


def test_types_are_checked_in_nested_tuples():
    @dataclasses.dataclass(frozen=True)
    class Part:
        pairs: tuple[tuple[str, int], ...] = ()

    check_fields(Part((("a", 1), ("b", 2))))
    with pytest.raises(UserError, match=r"^pairs = \(\('a', 1\), \('b', '2'\)\): expected a tuple, each entry"):
        check_fields(Part((("a", 1), ("b", "2"))))
