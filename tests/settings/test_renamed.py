"""What has another name now: saved recipes are read all the same, files and commands are answered with the new name."""

import dataclasses
import importlib
import json
import re

import pytest

from lmjax.errors import UserError
from lmjax.rl.reward_function import load_function
from lmjax.runs.overrides import overridden
from lmjax.settings import PPO, Compare, Pipeline, PPOSettings, Pretrain, RewardSettings
from lmjax.settings.recipe_files import difference, from_json, load_recipe, to_json
from lmjax.settings.renamed import MODULES, RENAMED, renamed_function

NEW = PPO(
    start="base",
    reward=RewardSettings(source="lmjax.rl.known_rewards:short_sentence"),
    ppo=PPOSettings(value_clip=0.5),
    epochs=2.0,
)


@pytest.fixture
def renamed(monkeypatch):
    monkeypatch.setitem(RENAMED, "PPOSettings", {"clip_of_values": "value_clip"})
    monkeypatch.setitem(RENAMED, "DialogueStage", {"passes": "epochs"})  # subclasses have it, too
    monkeypatch.setitem(RENAMED, "ModelSettings", {"shared_head": "tied_head"})
    monkeypatch.setitem(RENAMED, "SourceSettings", {"file": "path"})


def old_json() -> dict:
    value = json.loads(to_json(NEW))
    value["ppo"]["clip_of_values"] = value["ppo"].pop("value_clip")
    value["passes"] = value.pop("epochs")
    return value


def test_a_saved_recipe_with_old_names_is_read_with_the_new_ones(renamed):
    assert from_json(json.dumps(old_json())) == NEW
    assert difference(from_json(json.dumps(old_json())), NEW) == []
    value = old_json()
    value["ppo"]["clip_of_values"] = -1
    with pytest.raises(UserError, match=r"^recipe.json: ppo\.value_clip = -1: expected a number above 0"):
        from_json(json.dumps(value))


def test_a_saved_recipe_with_both_names_is_refused(renamed):
    value = old_json()
    value["ppo"]["value_clip"] = 0.2
    with pytest.raises(UserError) as caught:
        from_json(json.dumps(value))
    said = "recipe.json: unknown field 'ppo.clip_of_values'; 'clip_of_values' is now called 'value_clip'"
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ppo.clip-of-values", "0.5"], "--ppo.clip-of-values: this field is now called 'value_clip'; use --ppo."),
        (["--ppo.clip_of_values=0.5"], "--ppo.clip_of_values: this field is now called 'value_clip'; use --ppo.value"),
        (["--kl.target", "-1", "--passes", "2"], "--passes: this field is now called 'epochs'; use --epochs"),
        (["--mix.0.file", "a"], "--mix.0.file: this field is now called 'path'; use --mix.0.path"),
    ],
)
def test_an_old_name_in_a_command_is_answered_with_the_new_one(renamed, words, message):
    recipe = dataclasses.replace(NEW, mix=Pretrain().data.train, ppo=PPOSettings(ptx_coefficient=1.0))
    with pytest.raises(UserError) as caught:
        overridden(recipe, words, "r", "lmjax run")
    assert str(caught.value).startswith(message)
    pair = Pipeline("two", (Pretrain(name="base"), recipe))
    with pytest.raises(UserError) as caught:
        overridden(pair, [f"--ppo.{word[2:]}" if word.startswith("--") else word for word in words], "r", "lmjax run")
    assert str(caught.value).startswith(message.replace("--", "--ppo."))


def test_an_old_name_of_the_first_stage_is_answered_in_a_pipeline(renamed):
    pair = Pipeline("two", (Pretrain(name="base"), NEW))
    with pytest.raises(UserError) as caught:
        overridden(pair, ["--model.no-shared-head"], "r", "lmjax run")
    assert str(caught.value).startswith(
        "--model.no-shared-head: this field is now called 'tied_head'; use --model.tied"
    )
    assert overridden(pair, ["--model.no-tied-head"], "r", "lmjax run").stages[0].model.tied_head is False


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("PPO(passes=2.0)", "'passes' is now called 'epochs'"),
        ("PPO(ppo=PPOSettings(clip_of_values=0.2))", "'clip_of_values' is now called 'value_clip'"),
        ("PPO(ppo=PPOSettings(clip_of_value=0.2))", "known: "),
        ("PPOSettings().clip_of_values", "'clip_of_values' is now called 'value_clip'"),
        ("PPOSettings().value_clp", "did you mean 'value_clip'?"),
    ],
)
def test_an_old_keyword_in_a_recipe_file_is_answered_with_the_new_one(tmp_path, renamed, line, hint):
    path = tmp_path / "mine.py"
    path.write_text(f"from lmjax.settings import *\n\ndef recipe():\n    return {line}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    assert re.match(rf"{path}:4: (Type|Attribute)Error: .*; ", str(caught.value)) and hint in str(caught.value)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("from lmjax.recipe import Pretrain", "; lmjax.recipe is now lmjax.settings"),
        ("import lmjax.rlhf_recipes", "; lmjax.rlhf_recipes is now lmjax.settings"),
        ("from lmjax.rlhf_settings import DialogueSettings", "; lmjax.rlhf_settings is now lmjax.settings"),
        ("import lmjax.rlhf.gold", "; lmjax.rlhf.gold is now lmjax.rl.known_rewards"),
        ("import lmjax.nothing", "No module named 'lmjax.nothing'"),
    ],
)
def test_a_moved_module_in_a_recipe_file_is_answered_with_its_place(tmp_path, line, hint):
    path = tmp_path / "mine.py"
    path.write_text(f"{line}\n\ndef recipe():\n    return 3\n")
    with pytest.raises(UserError) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(f"{path}:1: ModuleNotFoundError: ") and str(caught.value).endswith(hint)


def test_every_module_of_the_table_is_there_under_its_new_name_alone():
    for old, new in MODULES.items():
        importlib.import_module(new)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(old)


def test_a_function_in_a_moved_module_is_answered_with_its_place():
    with pytest.raises(UserError, match=r"^gold = .*No module .*; lmjax\.rlhf\.gold is now lmjax\.rl\.known_rewards$"):
        load_function("lmjax.rlhf.gold:short_sentence", "gold")


def test_a_function_of_lmjax_in_a_saved_recipe_has_its_modules_new_name():
    judged = dataclasses.replace(
        NEW, reward=dataclasses.replace(NEW.reward, known_reward=NEW.reward.source, functions=(NEW.reward.source,))
    )
    for recipe in (judged, Compare(start="base", known_reward=NEW.reward.source)):
        old = to_json(recipe).replace("lmjax.rl.known_rewards:", "lmjax.rlhf.gold:")
        assert "lmjax.rlhf.gold:short_sentence" in old and from_json(old) == recipe
    assert renamed_function("lmjax.rlhf.gold") == "lmjax.rlhf.gold", "a folder may be called so"
    assert renamed_function("mine.py:f") == "mine.py:f"
