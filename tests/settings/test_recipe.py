"""A recipe survives its JSON form exactly; what is wrong in one, its file or its JSON is named by place and fix."""

import dataclasses
import json
import re
import types
import typing
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from lmjax.errors import UserError
from lmjax.fields import field_types
from lmjax.settings import (
    DataSettings,
    LogSettings,
    ModelSettings,
    Pipeline,
    PositionSettings,
    Pretrain,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.settings.recipe_files import difference, from_json, load_recipe, load_sweep, to_json
from lmjax.settings.stage import KINDS
from tests.tiny import experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def _specs(sweeps: bool = False) -> list[str]:
    """Of all stages and pipelines, or of all sweeps."""
    specs = []
    for file in sorted(EXPERIMENTS.rglob("*.py")):
        text = file.read_text()
        if ("-> Sweep:" in text) != sweeps:
            continue
        name = file.stem if file.parent == EXPERIMENTS else str(file)
        sizes = re.search(r"size: Literal\[([^\]]*)\]", text)
        if sizes:
            specs += [f"{name}:{size}" for size in re.findall(r'"([^"]+)"', sizes[1])]
        elif "def recipe(" in text:
            specs.append(name)
    return specs


def test_the_experiments_hold_every_published_size():
    assert {spec for spec in _specs() if spec.startswith(("gpt2:", "gpt3:"))} == {
        *("gpt2:124m", "gpt2:355m", "gpt2:774m", "gpt2:1558m"),
        *("gpt3:125m", "gpt3:350m", "gpt3:760m", "gpt3:1300m"),
        *("gpt3:2700m", "gpt3:6700m", "gpt3:13b", "gpt3:175b"),
    }
    assert {spec for spec in _specs() if spec.startswith(("bert:", "t5:"))} == {
        *(f"bert:{size}" for size in ("embedded", "tiny", "mini", "small", "medium", "base", "large")),
        *(f"t5:{size}" for size in ("embedded", "small", "base", "large", "3b", "11b")),
        *(f"t5:v1_1_{size}" for size in ("small", "base", "large", "xl", "xxl")),
    }
    assert {"quickstart", "shakespeare_char", "gpt1"} <= set(_specs())


@pytest.mark.parametrize("spec", _specs(sweeps=True))
def test_every_run_of_a_sweep_survives_its_json(spec):
    stages = load_sweep(spec).stages
    assert [from_json(to_json(stage)) for stage in stages] == list(stages)


@pytest.mark.parametrize("spec", _specs(), ids=lambda spec: Path(spec).name)
def test_every_experiment_survives_its_json(spec):
    recipe = experiment(spec)
    for stage in recipe.stages if isinstance(recipe, Pipeline) else [recipe]:
        text = to_json(stage)
        again = from_json(text)
        assert again == _with_saved_task(stage, again)
        assert to_json(again) == text
        written = json.loads(text)
        assert KINDS[written.pop("stage")] is type(stage)
        assert sorted(written) == sorted(field_types(type(stage)))


def _with_saved_task(stage: typing.Any, again: typing.Any) -> typing.Any:
    """The stage with its task as recipe.json has it: names and values, and no code."""
    return dataclasses.replace(stage, task=again.task) if getattr(stage, "task", None) is not None else stage


# Any value that a field's type allows; what the parts then refuse is thrown away.
def _values(kind: typing.Any) -> st.SearchStrategy:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(_values, arguments))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(_values(arguments[0]), max_size=3).map(tuple)
        return st.tuples(*map(_values, arguments))
    if dataclasses.is_dataclass(kind):
        return _parts(kind)
    return {
        type(None): st.none(),
        bool: st.booleans(),
        int: st.integers(1, 1 << 62),
        float: st.floats(0, 1, exclude_max=True) | st.floats(1e-300, 1e300),
        str: st.text(max_size=8),
    }[kind]


def _parts(part: type, base: typing.Any = None) -> st.SearchStrategy:
    """The part, or `base`, with up to three of its fields at any value, as far as the part accepts them."""
    kinds = field_types(part)

    def make(names: list[str]) -> st.SearchStrategy:
        return st.fixed_dictionaries({name: _values(kinds[name]) for name in names}).map(attempt)

    def attempt(values: dict[str, typing.Any]) -> typing.Any:
        try:
            return part(**values) if base is None else dataclasses.replace(base, **values)
        except UserError:
            return base or default()

    def default() -> typing.Any:
        try:
            return part()
        except UserError:  # a part that has no default, such as a source without its path
            reject()

    return st.lists(st.sampled_from(sorted(kinds)), max_size=3, unique=True).flatmap(make)


def _stages() -> list[typing.Any]:
    """A recipe of every stage that the experiments hold, but of those with a task, whose values are no settings."""
    recipes = [experiment(spec) for spec in _specs()]
    stages = [stage for recipe in recipes for stage in getattr(recipe, "stages", [recipe])]
    return list({type(stage): stage for stage in stages if getattr(stage, "task", None) is None}.values())


@given(st.one_of([_parts(type(stage), stage) for stage in _stages()]))
@settings(max_examples=200, deadline=None)
def test_any_recipe_survives_its_json_exactly(recipe):
    again = from_json(to_json(recipe))
    assert again == recipe and hash(again) == hash(recipe)
    assert to_json(again) == to_json(recipe)
    assert difference(recipe, again) == []


def _changed_json(change) -> str:
    value = json.loads(to_json(Pretrain()))
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(trian={}), r"run.json: unknown field 'trian'; did you mean 'train'\?"),
        (lambda v: v["train"].update(step=5), r"run.json: unknown field 'train.step'; did you mean 'steps'\?"),
        (
            lambda v: v["data"]["train"][0].update(pth="x"),
            r"run.json: unknown field 'data.train\[0\].pth'; did you mean 'path'\?",
        ),
        (lambda v: v["train"].update(steps="9"), r"run.json: train.steps = '9': expected a whole number"),
        (lambda v: v["train"].update(steps=-9), r"run.json: train.steps = -9: expected a number above 0"),
        (lambda v: v.update(train=3), r"run.json: train = 3: expected TrainSettings"),
        (lambda v: v.update(name={"a": 1}), r"run.json: name = \{'a': 1\}: expected a string, found an object"),
        (lambda v: v["log"].update(profile=[1]), r"run.json: log.profile = \[1\]: expected a tuple of 2: .* or None"),
        (lambda v: v["model"].update(vocab_size=100), r"run.json: model.vocab_size = 100: expected at least .* 257"),
        (lambda v: v.update(stage="pretrian"), r"run.json: expected an object whose 'stage' is one of pretrain"),
        (lambda v: v.pop("stage"), r"run.json: expected an object whose 'stage' is one of pretrain"),
    ],
)
def test_json_that_is_no_recipe_is_refused_by_file_and_field(change, message):
    with pytest.raises(UserError, match=message):
        from_json(_changed_json(change), "run.json")


def test_json_that_is_not_json_is_refused_by_file_and_line():
    with pytest.raises(UserError, match=r"run.json:3: expected JSON .*; restore the file"):
        from_json('{\n"stage": "pretrain",\n"train": {,}\n}', "run.json")


def test_a_difference_names_each_field_and_both_values():
    old = Pretrain()
    new = dataclasses.replace(
        old,
        train=TrainSettings(steps=7),
        data=DataSettings(train=(SourceSettings(weight=2.0), SourceSettings(weight=1.0))),
        log=LogSettings(profile=(1, 2)),
    )
    lines = difference(old, new)
    assert "train.steps: 1000 -> 7" in lines
    assert "data.train.0.weight: '(absent)' -> 2.0" in lines
    assert "data.train.1.kind: '(absent)' -> 'embedded'" in lines
    assert "log.profile: None -> (1, 2)" in lines
    assert not any(line.startswith(("model", "optimizer", "data.train.0.path")) for line in lines)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"name": "../up"}, r"name = '../up': expected letters, digits"),
        ({"name": ""}, r"name = '': expected letters, digits"),
        ({"train": TokenizerSettings()}, r"^train = TokenizerSettings\(.*: expected TrainSettings"),
        (
            {"data": DataSettings(sequence_length=512)},
            r"data.sequence_length = 512: .* at most model.context 256",
        ),
        (
            {"train": TrainSettings(microbatches=3)},
            r"train.microbatches = 3: expected a divisor of data.batch_size = 8; use .* = 2 or 4, or .* = 6 or 9$",
        ),
        (
            {
                "data": DataSettings(batch_size=8, ramp_from=2, ramp_tokens=9999),
                "train": TrainSettings(microbatches=4),
            },
            r"train.microbatches = 4: expected a divisor of data.ramp_from = 2; use train.microbatches = 2$",
        ),
        ({"model": ModelSettings(vocab_size=256)}, r"model.vocab_size = 256: expected at least the tokenizer's 257"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_by_field_value_and_fix(parts, message):
    with pytest.raises(UserError, match=message):
        Pretrain(**parts)


def test_a_table_with_spare_rows_and_rotary_rows_longer_than_the_context_are_recipes():
    assert Pretrain(model=ModelSettings(vocab_size=512)).model.vocab_size == 512
    rotary = ModelSettings(positions=PositionSettings(kind="rotary"))
    assert Pretrain(model=rotary, data=DataSettings(sequence_length=512)).data.sequence_length == 512


def _file(folder: Path, body: str, name: str = "mine.py") -> str:
    path = folder / name
    path.write_text(body)
    return str(path)


IMPORT = "from lmjax.settings import Pretrain\nfrom lmjax.settings import *\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def recipe(:\n", r"mine.py:1: SyntaxError: .*"),
        ("x = 1\nimport no_such_module\n", r"mine.py:2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def recipe():\n    return 1 / 0\n", r"mine.py:2: ZeroDivisionError"),
        ("def recipe():\n    raise RuntimeError('no')\n", r"mine.py:2: RuntimeError: no"),
        ("def recipes():\n    pass\n", r"mine.py: expected a function recipe\(\) that returns a recipe; add one"),
        ("recipe = 3\n", r"mine.py: expected a function recipe\(\)"),
        (
            "def recipe():\n    pass\n",
            r"mine.py: recipe\(\) returned NoneType; return one of lmjax.settings's stages",
        ),
        ("def recipe():\n    return {'train': 1}\n", r"mine.py: recipe\(\) returned dict"),
        ("def recipe(seed):\n    return seed\n", r"mine.py: TypeError: recipe\(\) missing 1 required .* 'seed'"),
        (
            IMPORT + "def recipe():\n    return Pretrain(\n        train=TrainSettings(step=3))\n",
            r"mine.py:5: TypeError: .*'step'.*; did you mean 'steps'\?",
        ),
        (
            IMPORT + "def recipe():\n    return Pretrain(trian=TrainSettings())\n",
            r"mine.py:4: TypeError: .*'trian'.*; did you mean 'train'\?",
        ),
        (
            IMPORT + "def recipe():\n    x = 0\n    return Pretrain(train=TrainSettings(steps=x))\n",
            r"mine.py:5: train.steps = 0: expected a number above 0; the default is 1000",
        ),
        (IMPORT + "def recipe(size: Litral['a'] = 'a'):\n    return Pretrain()\n", r"mine.py:3: NameError: .*Litral"),
    ],
)
def test_a_recipe_file_that_fails_is_refused_by_file_and_line(tmp_path, body, message):
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(_file(tmp_path, body))
    assert str(tmp_path / "mine.py") in str(caught.value)


def test_a_syntax_error_is_placed_in_the_file_that_has_it(tmp_path, monkeypatch):
    _file(tmp_path, "\n\n)\n", "broken_import.py")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"mine.py:2: SyntaxError: .*broken_import.py, line 3"):
        load_recipe(_file(tmp_path, "x = 1\nimport broken_import\n"))


def test_a_recipe_that_is_not_there_names_where_it_was_sought_and_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"no recipe 'quickstrat': .*experiments/quickstrat.py.*did you mean 'quickstart'"
    ):
        load_recipe("quickstrat")
    with pytest.raises(UserError, match=r"no recipe 'nowhere/mine.py': looked for nowhere/mine.py"):
        load_recipe("nowhere/mine.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    _file(tmp_path / "experiments", IMPORT + "def recipe():\n    return Pretrain(name='here')\n", "quickstart.py")
    assert load_recipe("quickstart").name == "here", "the folder where one is comes before the installation's"
    assert load_recipe("shakespeare_char").name == "shakespeare_char"


def test_sizes_choose_and_unknown_ones_are_refused():
    assert load_recipe("gpt2:355m").model.layers == 24
    assert load_recipe("gpt2") == load_recipe("gpt2:124m")
    assert load_recipe(f"{EXPERIMENTS / 'gpt3.py'}:175b").model.layers == 96
    with pytest.raises(UserError, match=r"gpt2:335m: .* has no size '335m'; did you mean '355m'\? \(sizes: 124m, "):
        load_recipe("gpt2:335m")
    with pytest.raises(UserError, match=r"quickstart:big: .* offers no sizes; leave out ':big'"):
        load_recipe("quickstart:big")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise GeneratorExit", "odd.py:1: GeneratorExit: "),
        (
            "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
            "odd.py:3: E: its own text cannot be made: ValueError",
        ),
        ("raise ValueError('x' * 10_000)", "odd.py:1: ValueError: xxx"),
    ],
)
def test_whatever_a_recipe_file_raises_is_named_with_its_line(tmp_path, source, message):
    (tmp_path / "odd.py").write_text(source)
    with pytest.raises(UserError) as error:
        load_recipe(str(tmp_path / "odd.py"))
    assert message in str(error.value) and len(str(error.value)) < 2_000


def test_a_whole_number_of_more_than_64_bits_is_refused():
    with pytest.raises(
        UserError, match=r"TrainSettings\.steps = 9223372036854775808: expected a whole number, of at most 64"
    ):
        TrainSettings(steps=2**63)
