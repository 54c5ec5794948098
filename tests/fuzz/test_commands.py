"""Odd words of a command, odd recipe files, and pipelines whose stages have odd names. Nothing is trained."""

import contextlib
import dataclasses
import io
import re
import sys
from random import Random

import pytest

import lmjax.cli
from lmjax.errors import UserError
from lmjax.runs.overrides import flag_of, overridden
from lmjax.runs.run import Result
from lmjax.settings import Pipeline, Pretrain
from lmjax.settings.recipe_files import flat, load_recipe
from lmjax.settings.stage import KINDS

from .harness import LONGEST_MESSAGE, shown, survives, written
from .mutations import JUNK, damaged_bytes

pytestmark = pytest.mark.slow

WORDS = [str(value) for value in JUNK if isinstance(value, str | int | float) and "\0" not in str(value)]
WORDS += ["9" * 5_000, "-" + "9" * 5_000, "1" * 400, "999999999999", "-1", "0x10", "1_000", "1e999", "1e-999", "[]"]
WORDS += [
    "(1,",
    "\u00e9",
    "None",
    "True",
    "false",
    "5e-4",
    "3.0",
    "a b",
    "--",
    "-",
    "",
    "=",
    ".",
    "*",
    "[a",
    "gs://a/b",
]
WORDS = [word.encode(errors="replace").decode() for word in WORDS]
SPECS = ["gpt1", "quickstart", "instructgpt", "gpt2:355m", "gpt3_175b", "nosuch", *WORDS[:20]]
COMMANDS = {
    "run": ["--workdir", "--only", "--from", "--executable", "--force", "--fields", "--help"],
    "count": ["--json"],
    "plan": [
        "--topology",
        "--mesh",
        "--stage",
        "--step",
        "--explain",
        "--auto",
        "--limit",
        "--hlo",
        "--save",
        "--json",
    ],
    "generate": ["--prompt", "--top", "--json"],
    "chat": [],
    "score": ["--json", "--skip-bad", "--text", "--top", "--field", "--kind", "--stride"],
    "evaluate": [
        "--data",
        "--json",
        "--skip-bad",
        "--mesh",
        "--documents",
        "--field",
        "--kind",
        "--stride",
        "--task",
        "--shots",
        "--task-data",
        "--limit",
    ],
    "report": [],
    "import-hf": [],
    "export-hf": ["--keep-rows"],
    "tokenizer train": ["--out"],
    "data prepare": ["--out", "--workers"],
}
SAMPLING = ["--max-tokens", "--temperature", "--top-k", "--top-p", "--repetition-penalty", "--stop", "--seed"]


def fields_of(recipe):
    return [f"--{name.replace('_', '-')}" for name in flat(dataclasses.asdict(recipe))]


@pytest.fixture(scope="module")
def fields():
    """The options that set fields, by recipe."""
    by_spec = {"gpt1": fields_of(load_recipe("gpt1"))}
    for spec in ("quickstart", "instructgpt"):
        stages = load_recipe(spec).stages
        named = [f"--{flag_of(s.name)}.{option[2:]}" for s in stages for option in fields_of(s)]
        by_spec[spec] = fields_of(stages[0]) + named
    return by_spec


def words_of(rng, fields):
    """A command with one to three of its options, or of words that are none."""
    command = rng.choice(list(COMMANDS))
    options = COMMANDS[command] + (SAMPLING if command in ("generate", "chat") else [])
    words = [*command.split(), rng.choice(SPECS[: 5 if rng.random() < 0.8 else None])]
    if command in ("score", "import-hf", "export-hf"):
        words.append(rng.choice(WORDS))
    if command in ("tokenizer train", "data prepare"):
        words += ["--out", rng.choice(WORDS)]
    own = fields.get(words[-1 if command in ("run", "count", "plan") else 2 % len(words)], fields["gpt1"])
    for _ in range(rng.randint(1, 3)):
        choice = rng.random()
        if choice < 0.1 or not options:
            words.append(rng.choice(WORDS))
        elif choice < 0.55 and command in ("run", "count", "plan", "tokenizer train", "data prepare"):
            words += [rng.choice(own), rng.choice(WORDS)]
        else:
            option = rng.choice(options)
            words += [option] if rng.random() < 0.1 else [option, rng.choice(WORDS)]
    return words


def is_readable(text):
    """Whether the error repeats no long word; it may list options, broken into lines."""
    return 0 < len(text) < 3 * LONGEST_MESSAGE and not re.search(r"(.)\1{300}", re.sub(r"[\s|-]", "", text))


def test_commands(tmp_path, monkeypatch, fields):
    """What trains, compiles or samples is replaced; everything before it is what it is."""

    def refuse(*_, **__):
        raise UserError("not in this test")

    prepare = ("stages.prepare_data.train_tokenizer", "stages.prepare_data.prepare_data")
    prepare += ("stages.prepare_shares.prepare_share", "stages.prepare_shares.merge_shares")
    for name in ("runs.load.load", "runs.score.open_scorer", *prepare):
        monkeypatch.setattr(f"lmjax.{name}", refuse)
    monkeypatch.setattr("lmjax.plan.planner.plan", refuse)
    monkeypatch.setattr("lmjax.plan.search.search", refuse)
    monkeypatch.setattr("lmjax.runs.run.check_ahead", lambda *_: None)  # so that a run of absent files gets further
    for name in ("_stage", "_pipeline"):
        monkeypatch.setattr(f"lmjax.runs.run.{name}", lambda recipe, folder, *_: Result(folder, None, {}))
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, codes, wrong = Random(7), [], {}
    for trial in range(1_200):
        words = words_of(rng, fields)
        monkeypatch.setattr(sys, "stdin", io.StringIO("a prompt"))
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            try:
                code = lmjax.cli.main(words)
            except SystemExit as leaving:
                code = leaving.code
        codes.append(code)
        text = said.getvalue()
        if code not in (0, 2):
            wrong.setdefault(text[-300:], f"trial {trial}: {shown(words)}\n{text[-2500:]}")
        elif code == 2 and not is_readable(text):
            wrong.setdefault("length", f"trial {trial}: {shown(words)}\n{len(text)} characters: {text[:2500]}")
    assert not wrong, "\n\n".join(wrong.values())
    assert codes.count(0) > 10 and codes.count(2) > 500


NAMES = ["1-pretrain", "class", "a-b", "a_b", "a.b", "pretrain", "pretrain.old", "help", "train", "\u00e9", "9", "None"]


def test_stage_names(capsys):
    """Any names, any fields of any of them, any words."""
    leaves = fields_of(Pretrain())

    def make(rng):
        names = rng.sample(NAMES, rng.randint(1, 3))
        names += [rng.choice(WORDS)] if rng.random() < 0.1 else []
        words = []
        for _ in range(rng.randint(1, 2)):
            prefix = rng.choice([*names, *map(flag_of, names), "", ""])
            field = rng.choice(leaves)[2:]
            words += [f"--{prefix}.{field}" if prefix else f"--{field}", rng.choice(WORDS)]
        return names, words

    def call(given):
        names, words = given
        pipeline = Pipeline("all", tuple(Pretrain(name=name) for name in names))
        try:
            overridden(pipeline, words, "all", "lmjax run")
        except SystemExit as leaving:
            said = capsys.readouterr().err
            assert leaving.code == 2 and is_readable(said), said
            raise UserError("the words cannot be read") from leaving

    survives(call, make, 250, 8)


RECIPE = b"""
from typing import Literal
from lmjax.settings import Pipeline, Pretrain
from lmjax.settings import *
from lmjax.settings import AttentionSettings, DataSettings, ModelSettings, SourceSettings, TrainSettings

def recipe(size: Literal["small", "large"] = "small"):
    model = ModelSettings(layers=1, width=16, context=64, attention=AttentionSettings(heads=2))
    data = DataSettings(train=(SourceSettings(),), sequence_length=16, batch_size=8)
    return Pretrain(name="small", data=data, model=model, train=TrainSettings(steps=1000))
"""
ODD = [
    "",
    "\0",
    "recipe = 5",
    "def recipe(): pass",
    "def recipe(): return 5",
    "def recipe(): return recipe",
    "import os.nosuch",
    "def recipe(a, b): return 1",
    "async def recipe(): pass",
    "def recipe(): yield 1",
    "recipe = lambda: 1",
    "class recipe: pass",
    "raise SystemExit",
    "raise SystemExit(3)",
    "import sys; sys.exit('x' * 10_000)",
    "raise ValueError('x' * 10_000)",
    "1 / 0",
    "def recipe(): return recipe()",
    "raise UnicodeDecodeError('a', b'b', 0, 1, 'c')",
    "def recipe(size: 'nosuch'): pass",
    "from typing import Literal\ndef recipe(size: Literal[1, 2]): pass",
    "def recipe(size: int): pass",
    "assert False",
    "class E(Exception):\n def __str__(self): raise ValueError\nraise E",
    "raise GeneratorExit",
    "raise BaseException('x')",
    "# -*- coding: latin-1 -*-\nx = '\u00e9'",
    "# coding: nosuch\n",
    "x = " + "(" * 500,
    "x = '" + "a" * 10_000,
    "\ufeffrecipe = 1",
    "def recipe():\n\treturn 1\n        return 2",
    "x = " + "9" * 5_000,
    "from lmjax.settings.recipe_files import Pipeline\ndef recipe(): return Pipeline('a', ())",
    "from lmjax.settings.recipe_files import Pipeline\ndef recipe(): return Pipeline('a', (1, None))",
    "import nosuch_module_of_nobody",
    "from lmjax.settings.recipe_files import Pipeline\ndef recipe(): return Pipeline(1, 2)",
    "from lmjax.settings.recipe_files import Pretrain\nrecipe = Pretrain",
]


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "odd.py"
    read = written(path, lambda: load_recipe(str(path)))
    return lambda content: read(content if isinstance(content, bytes) else content.encode())


def test_odd_recipe_files(program):
    contents = iter(ODD)
    survives(program, lambda rng: next(contents), len(ODD), 0, always="refused")


def test_damaged_recipe_files(program):
    survives(program, lambda rng: damaged_bytes(RECIPE, rng), 500, 9)


def settings_of(value):
    """All the settings objects of a recipe."""
    yield value
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from settings_of(inner)


def test_odd_values_of_every_field(program):
    """Of every field of every settings class that a stage has; what a run would write of it is written."""
    made = [stage() for stage in KINDS.values() if stage is Pretrain]
    made += [stage for spec in ("quickstart", "instructgpt") for stage in load_recipe(spec).stages]
    parts = {type(part): part for stage in made for part in settings_of(stage)}
    places = [(part, field.name) for part in parts.values() for field in dataclasses.fields(part)]
    values = [*JUNK, (), (None,), ("a", 1), object, b"a", 1j, {1, 2}, lambda: 1]

    def make(rng):
        part, name = rng.choice(places)
        return part, name, rng.choice(values)

    survives(lambda given: dataclasses.replace(given[0], **{given[1]: given[2]}), make, 1_500, 10)
