"""A kind of stage that a program adds: a class of settings and a `StageKind`; nothing else asks which it is."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import lmjax
from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.fields import field_types
from lmjax.runs.recipe_changes import adopted
from lmjax.settings import Pipeline, SourceSettings, Stage
from lmjax.settings.recipe_files import from_json, to_json
from lmjax.settings.stage import KINDS
from lmjax.stages.changes import Kind
from lmjax.stages.kind import StageKind
from lmjax.stages.registry import MODULES, STAGES, kind_of
from lmjax.stages.shown import Shown

PACKAGE = Path(lmjax.__file__).parent


@dataclass(frozen=True)
class CountWords(Stage):
    """Counts the words of a file."""

    kind: ClassVar[str] = "count_words"

    name: str = "words"
    path: str = ""

    def texts(self):
        return {"path": (SourceSettings(kind="text", path=self.path),)}


KINDS.pop("count_words")  # other tests go through all kinds that lmjax has


def count_words(resolved, session):
    words = Path(resolved.settings.path).read_text().split()
    (resolved.folder / "words.json").write_text(json.dumps(words))
    session.display.say(f"{len(words)} words")
    return {"words": len(words)}


@pytest.fixture
def registered(monkeypatch):
    changes = {Kind.FREE: ("name", "reasons", "mesh.", "compute.", "start", "model"), Kind.BREAKING: ("path",)}
    state = lambda recipe, summary: f"{summary['words']} words." if summary else "not counted."  # noqa: E731
    shown, form = Shown(charts=(), tiles=(), seen=None, state=state), dict[str, int]
    kind = StageKind(CountWords, shown, (changes,), produce=count_words, summary_form=form)
    monkeypatch.setitem(STAGES, "count_words", kind)
    monkeypatch.setitem(KINDS, "count_words", CountWords)


def test_a_new_kind_runs_resumes_and_is_reported_in_a_pipeline(registered, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("one two three")
    stages = (CountWords(path=str(tmp_path / "text.txt")), CountWords(name="again", path=str(tmp_path / "text.txt")))
    result = lmjax.run(Pipeline("both", stages), tmp_path / "run")
    assert result.summary == {"words": {"words": 3}, "again": {"words": 3}}
    assert "3 words" in capsys.readouterr().out
    assert "Done: </b>3 words." in (tmp_path / "run" / "words" / "report.html").read_text()
    assert lmjax.run(Pipeline("both", stages), tmp_path / "run").exit_code == 0
    assert "words: is done" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "run")]) == 0


def test_its_recipe_is_read_back_and_its_changes_are_of_the_kinds_that_it_says(registered, tmp_path):
    recipe = CountWords(path="a.txt")
    assert from_json(to_json(recipe)) == recipe and recipe.paths() == {"a.txt"}
    with pytest.raises(UserError, match=r"path: 'a.txt' -> 'b.txt'"):
        adopted(recipe, CountWords(path="b.txt"), 0, True, tmp_path)
    assert set(field_types(CountWords)) == {"name", "reasons", "start", "model", "compute", "mesh", "path"}


def test_every_kind_of_settings_has_its_entry_and_the_other_way_round():
    kinds = {name: kind for name, kind in KINDS.items() if kind.__module__.startswith("lmjax.")}
    assert set(kinds) == set(MODULES)
    assert {name: kind_of(settings).settings for name, settings in kinds.items()} == kinds


def test_nothing_outside_of_the_kinds_asks_which_stage_it_is():
    names = "|".join(kind.__name__ for kind in KINDS.values())
    asks = re.compile(rf"(isinstance|issubclass)\([^)]*\b({names})\b|type\(\w+\) (is|==|in) .*\b({names})\b")
    found = {
        f"{file.relative_to(PACKAGE)}:{number}": line.strip()
        for file in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if asks.search(line) and not line.strip().startswith("assert")
    }
    assert found == {}
