"""The search: what is compiled and what is not, the ranking, and one real search of a tiny model on four chips."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import types

import jax
import pytest
from rich.console import Console

from lmjax.errors import UserError
from lmjax.parallel.chips import GIB
from lmjax.plan import search as module
from lmjax.plan import search_display
from lmjax.plan.cache import Cache
from lmjax.plan.candidates import Candidate, candidates
from lmjax.plan.estimate import Estimate
from lmjax.plan.predict import Analyst
from lmjax.plan.search import REFINED, search, usual_minutes
from lmjax.plan.search_display import watching
from lmjax.plan.tables import lines, run_command, to_json
from lmjax.settings import AttentionSettings, MeshSettings, ModelSettings, PlanSettings
from lmjax.settings.recipe_files import load_recipe
from tests.tiny import changed, for_slice, write_recipe

RECIPE = for_slice(layers=4, width=256, length=256, model__vocab_size=2048, compute__loss_chunk=256)


class FakeCompiler:
    """In place of libtpu: `needs` gives the GiB of a recipe's step; more devices along tensor are slower."""

    def __init__(self, needs):
        self.needs, self.compiled = needs, []

    def compile_step(self, target, where):
        recipe = target.recipe
        self.compiled.append(recipe)
        found = self.needs(recipe)
        if isinstance(found, BaseException):
            raise found
        return found

    def estimate(self, target, where, mesh, peak):
        recipe = target.recipe
        shape = dataclasses.asdict(recipe.mesh)
        common = (recipe.name, where.name, 4, 4, shape, recipe.compute.remat, 8, 256, 1000)
        if peak > 15.75:
            return Estimate(*common, False, 15.75, peak, over_by_gib=peak - 15.75)
        seconds = 0.001 * recipe.mesh.tensor * recipe.train.microbatches
        known = {"gcycles": 1.0, "step_seconds": seconds, "tokens_per_second": 2048 / seconds, "mfu": 0.5}
        return Estimate(*common, True, 15.75, peak, bound_by="matrix units", **known)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    def install(needs):
        compiler = FakeCompiler(needs)
        monkeypatch.setattr(module, "compile_step", compiler.compile_step)
        monkeypatch.setattr(module, "estimate", compiler.estimate)
        monkeypatch.setattr(module, "slice_mesh", lambda target, where: None)
        monkeypatch.setattr(module, "slice_devices", lambda where: [])
        return compiler

    return install


def candidate_of(recipe):
    compute = recipe.compute
    chosen = (compute.remat, compute.attention_block, compute.unroll_layers, compute.vector_memory, compute.loss_chunk)
    return Candidate(tuple(dataclasses.asdict(recipe.mesh).values()), recipe.train.microbatches, *chosen)


def test_the_most_promising_are_compiled_and_ranked_by_what_the_compiler_says(fake, tmp_path):
    compiler = fake(lambda recipe: 1.0 + recipe.mesh.data)
    found = search(RECIPE, limit=13, cache=Cache(tmp_path))
    assert len(compiler.compiled) == len(found.ranked) == 13 and not found.refused
    assert [each.seconds for each in found.ranked] == sorted(each.seconds for each in found.ranked)
    assert found.considered == found.too_large + found.slower + 13
    analyst = Analyst(RECIPE, found.where)
    chosen, refined = compiler.compiled[1:-3], compiler.compiled[-3:]
    predicted = [analyst.predict(candidate_of(recipe)).step_seconds for recipe in chosen]
    assert predicted == sorted(predicted)
    meshes = [candidate_of(recipe).mesh for recipe in chosen]
    assert max(map(meshes.count, meshes)) == 5  # half of those that are left, so that one mesh does not take it all
    best = min(compiler.compiled[:-3], key=lambda recipe: recipe.mesh.tensor * recipe.train.microbatches)
    changed = [dataclasses.replace(candidate_of(best), **change) for change in REFINED]
    assert [candidate_of(recipe) for recipe in refined] == changed
    assert all(recipe.data == RECIPE.data and recipe.model == RECIPE.model for recipe in compiler.compiled)


def test_the_recipes_own_choices_are_compiled_first_and_may_turn_out_to_be_the_best(fake, tmp_path):
    compiler = fake(lambda recipe: 2.0)
    slow = dataclasses.replace(RECIPE, mesh=MeshSettings(data=1, tensor=2, fsdp=2))
    found = search(slow, limit=3, cache=Cache(tmp_path))
    assert candidate_of(compiler.compiled[0]) == found.own == Candidate((1, 1, 2, 1, 2), 1, "none", loss_chunk=256)
    assert len(compiler.compiled) == 3 and found.considered == found.too_large + found.slower + 3
    assert sum("the recipe's own" in line for line in lines(found, "")) == 1
    alone = search(slow, limit=1, cache=Cache(tmp_path))
    assert [each.candidate for each in alone.ranked] == [found.own]
    assert run_command(alone, "small") == "lmjax run small"
    elsewhere = dataclasses.replace(RECIPE, mesh=MeshSettings(data=3))  # which does not fit four chips
    assert search(elsewhere, limit=3, cache=Cache(tmp_path)).own is None


def test_a_second_search_compiles_nothing_and_an_interrupted_one_goes_on(fake, tmp_path):
    def interrupted(recipe):
        return KeyboardInterrupt() if len(compiler.compiled) == 4 else 2.0

    compiler = fake(interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(RECIPE, limit=6, cache=Cache(tmp_path))
    again = fake(lambda recipe: 2.0)
    found = search(RECIPE, limit=6, cache=Cache(tmp_path))
    assert len(again.compiled) == 3  # the one that was interrupted and those after it
    assert sum(each.cached for each in found.ranked) == 3
    third = fake(lambda recipe: 2.0)
    assert [each.result for each in search(RECIPE, limit=6, cache=Cache(tmp_path)).ranked] == [
        each.result for each in found.ranked
    ]
    assert not third.compiled


def test_none_is_begun_that_would_not_end_in_time_and_the_same_search_resumes(fake, monkeypatch, tmp_path):
    """Each takes a minute. Of eight in seven minutes, two refinements among them, one is left for the next search."""
    clock = [0.0]
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def a_minute(recipe):
        clock[0] += 60.0
        return 2.0

    first = fake(a_minute)
    found = search(RECIPE, limit=8, minutes=7.5, cache=Cache(tmp_path))
    assert len(first.compiled) == len(found.ranked) == 7 and clock == [420.0] and found.postponed == 1
    assert [candidate_of(each).vector_memory for each in first.compiled[-2:]] == [48, 64], "the last minutes are theirs"
    assert found.considered == found.too_large + found.slower + 7
    assert "the time was over before 1 more: the same command resumes" in "\n".join(lines(found, ""))
    assert json.loads(to_json(found, ""))["postponed"] == 1
    again = fake(a_minute)
    whole = search(RECIPE, limit=8, minutes=7.5, cache=Cache(tmp_path))
    assert len(again.compiled) == 1 and len(whole.ranked) == 8 and whole.postponed == 0
    assert "the time was over" not in "\n".join(lines(whole, ""))


@pytest.mark.parametrize(
    ("recipe", "minutes"), [("gpt2:124m", 9.0), ("gpt3:760m", 9.0), ("gpt3:1300m", 25.0), ("gpt3:13b", 25.0)]
)
def test_small_models_are_searched_in_less_than_ten_minutes(recipe, minutes):
    assert usual_minutes(load_recipe(recipe)) == minutes


def test_after_one_that_did_not_fit_none_that_needs_more_on_its_mesh_is_compiled(fake, tmp_path):
    compiler = fake(lambda recipe: 20.0 if recipe.mesh.fsdp == 4 else 2.0)
    found = search(RECIPE, limit=8, cache=Cache(tmp_path))
    refused = {each.candidate: each.prediction.memory for each in found.refused}
    needs = [refused[candidate] for recipe in compiler.compiled if (candidate := candidate_of(recipe)) in refused]
    assert len(needs) > 1 and needs == sorted(needs, reverse=True)
    assert found.ranked and all(each.candidate.mesh[2] != 4 for each in found.ranked)


def test_another_refusal_of_the_compiler_is_shown_and_the_search_goes_on(fake, tmp_path):
    error = jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile\nmore")
    fake(lambda recipe: error if recipe.mesh.fsdp == 4 else 2.0)
    found = search(RECIPE, limit=8, cache=Cache(tmp_path))
    assert found.ranked and found.refused
    assert {each.result.refusal for each in found.refused} == {"INTERNAL: Mosaic failed to compile"}
    assert "INTERNAL: Mosaic failed to compile" in "\n".join(lines(found, ""))
    assert all(each.cached for each in search(RECIPE, limit=8, cache=Cache(tmp_path)).refused)


def test_where_nothing_fits_the_least_is_compiled_and_the_answer_says_what_is_missing(fake, tmp_path):
    compiler = fake(lambda recipe: 17.0 if len(compiler.compiled) == 4 else 20.0)
    found = search(RECIPE, limit=3, cache=Cache(tmp_path))
    assert not found.ranked
    analyst = Analyst(RECIPE, found.where)
    *first, last = map(candidate_of, compiler.compiled)
    rest = [each for each in candidates(RECIPE, found.where) if each not in first]
    assert len(first) == 3 and last == min(rest, key=lambda each: analyst.predict(each).memory)
    text = "\n".join(lines(found, run_command(found, "small")))
    assert "nothing fits: the nearest" in text and "needs 1.25 GiB more than there are" in text
    assert "a larger slice, v5e-8 or v5e-16" in text
    assert "lmjax run" not in text
    assert json.loads(to_json(found, ""))["results"] == []


def test_what_arithmetic_says_cannot_fit_is_not_compiled(fake, tmp_path):
    wide = ModelSettings(layers=24, width=4096, context=256, vocab_size=2048, attention=AttentionSettings(heads=32))
    large = dataclasses.replace(RECIPE, model=wide)
    compiler = fake(lambda recipe: 99.0)
    found = search(large, limit=5, cache=Cache(tmp_path))
    assert len(compiler.compiled) == 1  # the one that needs the least, to say by how much
    assert found.too_large == found.considered - 1


def test_the_table_and_the_command_say_what_was_found(fake, tmp_path):
    fake(lambda recipe: 2.0)
    found = search(RECIPE, limit=4, cache=Cache(tmp_path))
    command = run_command(found, "small", ["--train.steps", "7"])
    table = list(lines(found, command))
    columns = ["rank", "mesh", "micro", "remat", "block", "chunk", "vmem", "HBM GiB", "Gcycles"]
    columns += ["predicted s", "step s", "tokens/s"]
    assert re.split(" {2,}", table[1])[:12] == columns
    predicted = f"{found.ranked[0].prediction.step_seconds:.4f}"
    assert re.search(rf"1\.0000 +{predicted} ", table[2]), "beside what the compiler says"
    best = found.ranked[0]
    assert table[2].split()[0] == "1" and "2,048,000" in table[2] and "50.0%" in table[2]
    assert len({line.index(word) for line, word in zip(table[2:6], ["matrix units"] * 4, strict=True)}) == 1
    assert table[-1] == command and command.startswith("lmjax run small --train.steps 7 --mesh.")
    assert f"--compute.remat {best.candidate.remat}" in command or best.candidate.remat == "none"
    assert f"{found.slower} to be slower, by arithmetic alone" in "\n".join(table)
    value = json.loads(to_json(found, command))
    assert [each["rank"] for each in value["results"]] == [1, 2, 3, 4] and value["command"] == command
    assert value["results"][0]["mesh"] == best.candidate.sizes and value["results"][0]["mfu"] == 0.5
    assert value["results"][0]["predicted"]["memory"] == best.prediction.memory


@pytest.mark.parametrize("name", ["limit", "minutes"])
@pytest.mark.parametrize("value", [0, -1])
def test_no_candidates_and_no_time_are_refused(name, value):
    with pytest.raises(UserError, match=f"--{name} = {value}"):
        search(RECIPE, **{name: value})


def test_a_topology_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="v5e-4"):
        search(dataclasses.replace(RECIPE, plan=PlanSettings(topology="v5e-5")))


def test_without_a_terminal_every_candidate_is_a_line_with_the_time_left(monkeypatch):
    now = iter([0.0, 0.0, 30.0, 90.0, 100.0])
    monkeypatch.setattr(search_display, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    console = Console(file=io.StringIO(), width=60)
    with watching(4, 140, console) as show:
        for done, cached in enumerate([False, False, True, False]):
            show(done, Candidate((1, 1, 4, 1, 1), 2, "full"), cached)
    written = console.file.getvalue().splitlines()
    assert written == [
        "1/4 compiling fsdp=4, 2 microbatches, remat 'full'",
        "2/4 compiling fsdp=4, 2 microbatches, remat 'full'  1:30 left",  # three at 30 s
        "3/4 compiled earlier: fsdp=4, 2 microbatches, remat 'full'  0:50 left",  # of the 140 s that there are
        "4/4 compiling fsdp=4, 2 microbatches, remat 'full'  0:40 left",
    ]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A function from words to what `lmjax plan small.py --auto` does, as a user runs it."""
    folder = tmp_path_factory.mktemp("search")
    write_recipe(folder / "small.py", changed(RECIPE, data__batch_size=64))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_", "XLA_"))}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")  # not here, where its lmjax/ would hide the package

    def run(*words):
        whole = [sys.executable, "-m", "lmjax.cli", "plan", "small.py", "--auto", *words]
        return subprocess.run(whole, cwd=folder, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def searched(command):
    """What a first search of two candidates found and said."""
    first = command("--limit", "2", "--json")
    assert first.returncode == 0, first.stderr
    return json.loads(first.stdout), first.stderr


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_a_real_search_ranks_steps_that_fit(searched):
    found, said = searched
    assert len(found["results"]) == 2 and not found["refused"]
    for each in found["results"]:
        assert each["fits"] and 0 < each["peak_hbm_gib"] < 15.75 and each["gcycles"] > 0 and not each["cached"]
        assert 1 / 1.5 < each["predicted"]["memory"] / GIB / each["peak_hbm_gib"] < 1.5
    assert found["results"][0]["step_seconds"] <= found["results"][1]["step_seconds"]
    assert [line[:14] for line in said.splitlines()] == ["1/2 compiling ", "2/2 compiling "]
    assert "left" in said.splitlines()[1]


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_the_same_search_again_prints_from_the_cache(command, searched):
    found, _ = searched
    done = command("--limit", "2")
    assert done.returncode == 0, done.stderr
    assert all("compiled earlier" in line for line in done.stderr.splitlines()), done.stderr
    table = done.stdout.splitlines()
    for rank, (line, each) in enumerate(zip(table[2:4], found["results"], strict=True), 1):
        assert line.split()[0] == str(rank) and f"{each['step_seconds']:.4f}" in line and each["remat"] in line
    assert table[-1] == found["command"] and found["command"].startswith("lmjax run small.py --mesh.")


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hlo", "x.txt"], "--auto with --hlo"),
        (["--topology", "v5e-5"], "v5e-4"),
        (["--data.batch-size", "1", "--data.sequence-length", "100", "--topology", "v5e-64"], "any mesh of 64"),
    ],
)
def test_mistakes_are_said_in_a_line(command, words, said):
    done = command(*words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_mesh_may_be_given(fake, tmp_path):
    compiler = fake(lambda recipe: 2.0)
    found = search(RECIPE, MeshSettings(fsdp=4), limit=3, cache=Cache(tmp_path))
    assert {candidate_of(recipe).mesh for recipe in compiler.compiled} == {(1, 1, 4, 1, 1)} and len(found.ranked) == 3
