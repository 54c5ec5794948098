"""A default that changed binds no run that is there: it goes on with what it began with."""

import dataclasses
import json

import pytest

from lmjax.errors import UserError
from lmjax.runs.recipe_changes import adopted
from lmjax.settings import PPO, OptimizerSettings, Pretrain, RewardSettings, ScheduleSettings
from lmjax.settings.former_defaults import FORMER, as_begun
from lmjax.settings.recipe_files import from_json, to_json


def warming(start, **schedule):
    return Pretrain(optimizer=OptimizerSettings(schedule=ScheduleSettings(warmup=5, warmup_from=start, **schedule)))


def test_a_saved_recipe_without_the_field_has_what_it_was_then_and_a_new_one_what_it_is_now():
    saved = json.loads(to_json(warming(None)))
    assert from_json(json.dumps(saved)) == warming(None)
    del saved["optimizer"]["schedule"]["warmup_from"]
    assert from_json(json.dumps(saved)) == warming(0.0)


def test_every_field_of_the_table_now_says_none():
    fields = {field.name: field.default for field in dataclasses.fields(ScheduleSettings)}
    assert {name: fields[name] for name in FORMER["ScheduleSettings"]} == {"warmup_from": None}


def test_a_run_goes_on_with_what_it_began_with_and_takes_no_force():
    old, new = warming(0.0), warming(None)
    assert adopted(old, new, 3, force=False, where="run") == (old, [])
    assert adopted(new, new, 3, force=False, where="run") == (new, [])


@pytest.mark.parametrize(("old", "new"), [(0.25, None), (None, 0.0), (0.0, 0.5)])
def test_what_was_chosen_and_is_another_now_is_a_change(old, new):
    with pytest.raises(UserError, match=rf"optimizer\.schedule\.warmup_from: {old} -> {new}\n"):
        adopted(warming(old), warming(new), 3, force=False, where="run")


def test_other_fields_stay_those_of_the_new_recipe_in_every_optimizer():
    def ppo(start, kind):
        settings = OptimizerSettings(schedule=ScheduleSettings(kind, warmup_from=start))
        return PPO(start="base", reward=RewardSettings("lmjax.x:f"), optimizer=settings, value_optimizer=settings)

    assert as_begun(ppo(0.0, "cosine"), ppo(None, "linear")) == ppo(0.0, "linear")
    assert as_begun(Pretrain(), ppo(None, "linear")) == ppo(None, "linear")
