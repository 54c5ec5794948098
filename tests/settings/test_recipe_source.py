"""A recipe that is written as a file is the same recipe when it is read."""

import dataclasses
from pathlib import Path

import pytest

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.settings import Finetune, LabelledSettings, MeasureSettings, Pretrain
from lmjax.settings.recipe_files import load_recipe, recipe_names
from lmjax.settings.recipe_functions import recipe_function
from lmjax.settings.recipe_source import source_of
from lmjax.settings.stage import SavedTask
from lmjax.tasks.sentences import Sentences

ROOT = Path(__file__).parents[2]


def specs() -> list[str]:
    """Every recipe in experiments, in every size."""
    return [
        f"{name}:{size}" if size else name for name in recipe_names() for size in recipe_function(name).sizes or ("",)
    ]


@pytest.mark.parametrize("spec", specs())
def test_every_recipe_is_printed_as_a_file_that_makes_it(spec, tmp_path, capsys):
    own_text = ["--data", str(ROOT / "README.md")] if spec.startswith("text:") else []
    assert main(["recipe", spec, *own_text]) == 0
    path = tmp_path / "printed.py"
    path.write_text(capsys.readouterr().out)
    printed = recipe_function(str(path)).recipe({})
    assert printed == recipe_function(spec).recipe({"data": tuple(own_text[1:])} if own_text else {})


def test_a_printed_recipe_has_the_fields_that_the_command_sets(tmp_path, capsys):
    assert main(["recipe", "quickstart", "--train.steps", "7", "--sft.epochs", "2", "--measures.data", "sets"]) == 0
    said = capsys.readouterr().out
    assert said.startswith('"""As `lmjax recipe quickstart --train.steps 7')
    path = tmp_path / "printed.py"
    path.write_text(said)
    recipe = load_recipe(str(path))
    assert recipe.stages[0].train.steps == 7 and recipe.stages[1].epochs == 2.0
    assert recipe.measures == MeasureSettings("sets")


@pytest.mark.parametrize(
    "stage", [Pretrain(reasons=('a "quoted" \\ line', "it's another"))], ids=lambda stage: stage.name
)
def test_quotes_and_slashes_come_back(stage, tmp_path):
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
