"""What was compiled is found again under the same key, and under no other."""

import dataclasses
import json

import pytest

from lmjax.errors import UserError
from lmjax.plan import cache as module
from lmjax.plan.cache import IRRELEVANT, Cache, Result, key
from lmjax.plan.estimate import AxisTraffic, Estimate
from lmjax.settings import ComputeSettings, ModelSettings, Pretrain, TokenizerSettings, TrainSettings

RECIPE = Pretrain(name="one", model=ModelSettings(vocab_size=512))
ESTIMATE = Estimate(
    *("one", "v5e-4", 4, 4, {"data": 4}, "none", 8, 256, 1000, True, 15.75, 3.5),
    step_seconds=0.1,
    collectives=(AxisTraffic("data", {"all-reduce": 2}, 0.5, 0.75, 0.01),),
)


def test_a_result_comes_back_as_it_was_kept_under_the_recipes_present_name(tmp_path):
    cache = Cache(tmp_path / "new" / "folder")
    assert cache.get(RECIPE, "v5e-4") is None
    cache.put(RECIPE, "v5e-4", Result(ESTIMATE))
    assert cache.get(RECIPE, "v5e-4") == Result(ESTIMATE)
    renamed = dataclasses.replace(RECIPE, name="two")
    assert cache.get(renamed, "v5e-4").estimate == dataclasses.replace(ESTIMATE, recipe="two")
    assert cache.get(RECIPE, "v5e-8") is None
    cache.put(RECIPE, "v5e-8", Result(refusal="the kernel is too large"))
    assert cache.get(RECIPE, "v5e-8") == Result(refusal="the kernel is too large")
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2  # nothing half-written is left


def changed(value):
    """Another valid value of a field."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 if value else 1
    return None


def test_every_field_belongs_to_the_key_unless_it_is_listed():
    before = key(RECIPE, "v5e-4")
    found = {"": set(), "data": set(), "optimizer": set(), "train": set()}
    for part, names in found.items():
        fields = dataclasses.asdict(RECIPE if not part else getattr(RECIPE, part))
        for name, value in fields.items():
            other = "other" if part == "" and name == "name" else changed(value)
            if other is None:
                continue
            try:
                if part:
                    section = dataclasses.replace(getattr(RECIPE, part), **{name: other})
                    recipe = dataclasses.replace(RECIPE, **{part: section})
                else:
                    recipe = dataclasses.replace(RECIPE, **{name: other})
            except UserError:
                continue
            if key(recipe, "v5e-4") == before:
                names.add(name)
    assert found["data"] == {"seed", "shuffle", "prefetch", "ramp_sizes"}
    assert found["optimizer"] == {"learning_rate"}
    assert found["train"] == {"steps", "seed", "abort_after_skipped"}
    assert found[""] == {"name"}
    assert all(names <= set(IRRELEVANT[part]) for part, names in found.items())


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(RECIPE, compute=ComputeSettings(attention_block=512)),
        dataclasses.replace(RECIPE, compute=ComputeSettings(remat="full")),
        dataclasses.replace(RECIPE, train=TrainSettings(microbatches=2)),
        dataclasses.replace(RECIPE, model=ModelSettings(vocab_size=1024)),
        dataclasses.replace(
            RECIPE, model=ModelSettings(), tokenizer=TokenizerSettings(kind="bpe", vocab_size=1000)
        ),  # the table has as many rows as the tokenizer entries
    ],
)
def test_what_changes_the_program_changes_the_key(other):
    assert key(other, "v5e-4") != key(RECIPE, "v5e-4")


@pytest.mark.parametrize("name", ["jax", "libtpu", "lmjax", "sources"])
def test_another_version_of_anything_is_another_key(name, monkeypatch):
    before = key(RECIPE, "v5e-4")
    versions = module._versions() | {name: "another"}
    monkeypatch.setattr(module, "_versions", lambda: versions)
    assert key(RECIPE, "v5e-4") != before


def test_a_change_to_the_packages_own_sources_is_another_version(tmp_path, monkeypatch):
    for place in ("a", "b"):
        (tmp_path / place / "model").mkdir(parents=True)
        for source in module.SOURCES:
            path = tmp_path / place / source
            (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text("")
        (tmp_path / place / "model" / "gpt.py").write_text(place)
    found = []
    for place in ("a", "b", "a"):
        monkeypatch.setattr(module, "__file__", str(tmp_path / place / "plan" / "cache.py"))
        found.append(module._versions.__wrapped__()["sources"])
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"estimate": {"recipe": "x"}}', '{"estimate": {"unknown": 1}}'])
def test_a_damaged_file_is_named_and_compiled_again(text, tmp_path):
    said = []
    cache = Cache(tmp_path, said.append)
    cache.put(RECIPE, "v5e-4", Result(ESTIMATE))
    (path,) = tmp_path.iterdir()
    json.loads(path.read_text())
    path.write_text(text)
    assert cache.get(RECIPE, "v5e-4") is None
    assert len(said) == 1 and str(path) in said[0]
    cache.put(RECIPE, "v5e-4", Result(ESTIMATE))
    assert cache.get(RECIPE, "v5e-4") == Result(ESTIMATE)


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        Cache(tmp_path / "file" / "plans").put(RECIPE, "v5e-4", Result(ESTIMATE))


def test_the_cache_is_where_the_desktops_standard_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache().folder == tmp_path / "lmjax" / "plans"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Cache().folder == tmp_path / "home" / ".cache" / "lmjax" / "plans"


@pytest.mark.parametrize(
    "content",
    ["", "[" * 100_000, "7", '{"estimate": {"recipe": 7}}', '{"estimate": "x"}', '{"estimate": 1' + "0" * 5_000 + "}"],
)
def test_a_kept_file_of_another_form_is_said_and_compiled_again(tmp_path, content):
    said = []
    cache = Cache(tmp_path, said.append)
    (tmp_path / f"{key(RECIPE, 'v5e-4')}.json").write_text(content)
    assert cache.get(RECIPE, "v5e-4") is None
    assert len(said) == 1 and said[0].endswith("it is compiled again") and len(said[0]) < 500


@pytest.mark.parametrize(("field", "value"), [("chips", "4"), ("mesh", {"data": None}), ("collectives", [{"axis": 1}])])
def test_a_kept_estimate_whose_field_has_another_type_is_compiled_again(tmp_path, field, value):
    said = []
    cache = Cache(tmp_path, said.append)
    cache.put(RECIPE, "v5e-4", Result(ESTIMATE))
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())
    kept["estimate"][field] = value
    path.write_text(json.dumps(kept))
    assert cache.get(RECIPE, "v5e-4") is None and len(said) == 1
