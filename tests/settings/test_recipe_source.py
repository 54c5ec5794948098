"""A recipe that is written as a file is the same recipe when it is read."""

import dataclasses

import pytest

from lmjax.errors import UserError
from lmjax.settings import Finetune, LabelledSettings, Pretrain
from lmjax.settings.recipe_files import load_recipe, recipe_names
from lmjax.settings.recipe_source import source_of
from lmjax.settings.stage import SavedTask
from lmjax.tasks.sentences import Sentences
from tests.tiny import experiment

SWEEPS = {"isoflop"}
STAGES = [stage for name in recipe_names() if name not in SWEEPS for stage in experiment(name).stages]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_published_stage_comes_back(stage, tmp_path):
    path = tmp_path / "written.py"
    path.write_text(source_of(stage, 'As "written" in\\n a """test"""'))
    assert load_recipe(str(path)) == stage


def test_defaults_are_left_out():
    body = source_of(dataclasses.replace(Pretrain(), name="small"), "Small.")
    assert body.splitlines()[-2:] == ["def recipe() -> Pretrain:", "    return Pretrain(name='small')"]


def test_a_task_of_ones_own_cannot_be_written():
    stage = Finetune(start="base", task=SavedTask("mine", (), ()))
    with pytest.raises(UserError, match=r"task: .*; expected a task of lmjax's"):
        source_of(stage, "Mine.")


def test_a_task_of_lmjax_is_imported_from_where_it_is():
    task = Sentences(train=(LabelledSettings("a.csv"),), long="tail")
    lines = source_of(Finetune(start="base", task=task), "Mine.").splitlines()
    assert lines[2:10] == [
        *("from lmjax.settings import (", "    Finetune,", "    LabelledSettings,", ")"),
        *("from lmjax.tasks.sentences import (", "    Sentences,", ")", ""),
    ]
