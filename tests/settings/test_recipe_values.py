"""Recipes by name with other values of fields, as Python gives them: the same as the command line makes of them."""

import pytest

from lmjax.errors import UserError
from lmjax.runs.overrides import overridden
from lmjax.settings import MeasureSettings, Pipeline
from lmjax.settings.recipe_files import load_recipe
from lmjax.settings.recipe_values import recipe, with_values
from tests import tiny


@pytest.fixture
def pipeline():
    return Pipeline("both", (tiny.pretrain(name="base"), tiny.sft((), name="sft")))


def test_a_name_gives_the_recipe_of_its_file_and_values_those_of_the_command_line():
    assert recipe("gpt2:355m") == load_recipe("gpt2:355m")
    given = recipe("gpt2:355m", {"train.steps": 7, "mesh.fsdp": 2, "data.train.0.path": "a.txt"})
    words = ["--train.steps", "7", "--mesh.fsdp", "2", "--data.train.0.path", "a.txt"]
    assert given == overridden(load_recipe("gpt2:355m"), words, "gpt2", "lmjax run")
    assert given.train.steps == 7 and given.data.train[0].path == "a.txt"


def test_in_a_pipeline_a_path_begins_with_a_stage_or_is_the_first_stages(pipeline):
    given = with_values(pipeline, {"train.steps": 3, "sft.epochs": 2.0, "measures.limit": 5})
    assert [given.stages[0].train.steps, given.stages[1].epochs] == [3, 2.0]
    assert given.measures == MeasureSettings(limit=5)
    assert given.stages[1].train == pipeline.stages[1].train


def test_values_are_checked_when_all_are_in_the_recipe():
    wider = {"model.attention.heads": 3, "model.width": 48}  # no head of width 16 / 3 on the way
    assert with_values(tiny.pretrain(), wider).model.width == 48
    assert with_values(tiny.pretrain(), {}) == tiny.pretrain()


def test_settings_that_are_none_begin_with_their_defaults_as_they_do_for_an_option():
    alone = tiny.sft((), name="sft")
    assert alone.model is None
    given = with_values(alone, {"model.layers": 3})
    assert given.model is not None and given.model.layers == 3
    assert given == overridden(alone, ["--model.layers", "3"], "sft", "lmjax run")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.step": 3}, r"^train\.step: TrainSettings has no field 'step'; did you mean 'steps'"),
        ({"trian.steps": 3}, r"^trian\.steps: Pretrain has no field 'trian'; did you mean 'train'"),
        ({"train.steps": 0}, r"^train\.steps = 0: expected a number above 0"),
        ({"train.steps": "5"}, r"^train\.steps = '5': expected a whole number"),
        ({"model.attention.heads": 3}, r"^model\.width = 16: expected a multiple of attention\.heads 3"),
        ({"data.train.4.path": "x"}, r"^data\.train\.4\.path = '4': expected the number of an entry, below 1"),
        ({"name.first": "x"}, r"^name\.first: name is 'tiny', which has no fields; set name as a whole"),
    ],
)
def test_a_field_that_is_not_there_and_a_value_that_does_not_fit_are_named_with_their_path(values, message):
    with pytest.raises(UserError, match=message):
        with_values(tiny.pretrain(), values)


def test_an_error_in_a_later_stage_begins_with_the_stages_name(pipeline):
    with pytest.raises(UserError, match=r"^sft\.dialogue\.batch_size = 0: expected"):
        with_values(pipeline, {"sft.dialogue.batch_size": 0})


def test_an_old_name_gives_the_new_one(tmp_path):
    ppo = tiny.stage(tiny.PPO, tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}]))
    with pytest.raises(UserError, match=r"'average' is now called 'ema_decay'"):
        with_values(ppo, {"ppo.average": 0.9})
