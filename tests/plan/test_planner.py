"""The plan of a recipe: what is asked for, what is tried when it does not fit, and one real compilation."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import pytest

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.model.flops import count
from lmjax.parallel.chips import GIB
from lmjax.plan import planner
from lmjax.plan.compile import Compiled, OutOfMemory, compile_step, read_refusal
from lmjax.plan.hlo import parse
from lmjax.plan.planner import alternatives, parse_mesh, plan, planned_recipe
from lmjax.plan.report import lines
from lmjax.plan.slices import find_slice
from lmjax.plan.target import target_of
from lmjax.settings import AttentionSettings, ComputeSettings, MeshSettings, ModelSettings, PlanSettings, Pretrain
from tests.tiny import for_slice, write_recipe

JUDGE = Path(__file__).parents[3] / "shared" / "tools" / "hlo_cost.py"

SMALL = for_slice(layers=3, width=512, mesh=MeshSettings(data=1, fsdp=2, tensor=2))


def test_mesh_text_is_read_and_data_takes_what_is_left():
    assert parse_mesh("fsdp=64,tensor=8") == MeshSettings(fsdp=64, tensor=8)
    assert MeshSettings(fsdp=64, tensor=8).sizes == {"replica": 1, "data": -1, "fsdp": 64, "sequence": 1, "tensor": 8}
    assert parse_mesh("data=2, fsdp=8") == MeshSettings(data=2, fsdp=8)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("fdsp=4", "did you mean 'fsdp'?"),
        ("fsdp=x", "whole number"),
        ("fsdp=2,fsdp=4", "fsdp has two sizes"),
        ("", "axis"),
    ],
)
def test_a_mesh_that_cannot_be_read_is_refused(text, word):
    with pytest.raises(UserError, match=word.replace("?", r"\?")):
        parse_mesh(text)


def test_what_the_command_says_goes_before_what_the_recipe_says():
    recipe = Pretrain(mesh=MeshSettings(fsdp=4), plan=PlanSettings(topology="v5e-16"))
    assert planned_recipe(recipe).plan == recipe.plan and planned_recipe(recipe).mesh.sizes["fsdp"] == 4
    changed = planned_recipe(recipe, "v5p-8", "tensor=2")
    assert changed.plan.topology == "v5p-8" and changed.mesh.sizes["tensor"] == 2
    with pytest.raises(UserError, match="--topology"):
        planned_recipe(Pretrain())


@pytest.mark.parametrize(
    ("message", "needed", "available"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5, 15.75),
        ("the total memory required for HLO temporaries (298.12G) exceeds available HBM (95.74G).", 298.12, 95.74),
    ],
)
def test_the_compilers_refusals_are_read(message, needed, available):
    refusal = read_refusal(message)
    assert refusal.needed / GIB == pytest.approx(needed)
    assert refusal.available / GIB == pytest.approx(available)


def test_other_errors_of_the_compiler_are_not_taken_for_a_lack_of_memory():
    assert read_refusal("INTERNAL: Mosaic failed to compile TPU kernel") is None


def test_alternatives_need_ever_less_memory():
    recipe = Pretrain(compute=ComputeSettings(remat="minimal"), mesh=MeshSettings(data=4, fsdp=2))
    meshes = [(each.compute.remat, each.mesh.sizes) for each in alternatives(recipe, 8)]
    found = [(remat, sizes["data"], sizes["fsdp"], sizes["tensor"]) for remat, sizes in meshes]
    assert all(remat != "minimal" for remat, *_ in found)
    assert found.index(("full", 4, 2, 1)) < found.index(("full", 2, 4, 1)) < found.index(("full", 1, 8, 1))
    assert found[-1] == ("full", 1, 1, 8)


def test_what_does_not_fit_is_answered_with_the_first_that_does(monkeypatch):
    recipe = planned_recipe(Pretrain(compute=ComputeSettings(remat="none")), "v5e-16", "fsdp=1")
    compiled = []

    def compile_step(target, where):
        recipe = target.recipe
        compiled.append(recipe.compute.remat)
        if recipe.compute.remat == "full" and recipe.mesh.sizes["fsdp"] > 1:
            return Compiled(None, "", 0, 0, 9 * GIB, 0.0)
        return OutOfMemory(20 * GIB, 15 * GIB, "too much")

    monkeypatch.setattr(planner, "compile_step", compile_step)
    monkeypatch.setattr(planner, "slice_mesh", lambda target, where: None)
    answer = plan(recipe)
    assert compiled[0] == "none" and compiled[-1] == "full"
    assert [each.fits for each in answer.tried] == [False] * (len(answer.tried) - 1) + [True]
    assert answer.tried[-1].mesh["fsdp"] == 2 and answer.tried[-1].peak_hbm_gib == 9
    text = "\n".join(lines(answer))
    assert "5.00 GiB too much" in text and "remat 'full' on data=8,fsdp=2: 9.00 GiB, fits" in text


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """`lmjax plan` as a user runs it, in a process of its own whose environment says nothing of TPUs."""
    folder = tmp_path_factory.mktemp("plan")
    write_recipe(folder / "small.py", SMALL)
    command = [sys.executable, "-m", "lmjax.cli", "plan", "small.py", "--json", "--explain"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_", "XLA_"))}
    done = subprocess.run(
        [*command, "--hlo", "step.hlo", "--save", "step.bin"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_a_real_compilation_gives_every_figure(planned):
    _, found, _ = planned
    assert found["fits"] and found["mesh"] == {"replica": 1, "data": 1, "fsdp": 2, "sequence": 1, "tensor": 2}
    model = ModelSettings(3, 512, 128, 512, AttentionSettings(heads=2))
    state = 12 * count(model).parameters / 4  # float32 parameters and two moments, cut in four
    assert state < found["arguments_gib"] * GIB < 1.5 * state
    assert found["arguments_gib"] < found["peak_hbm_gib"] < found["hbm_gib"]
    for name in ("gcycles", "mfu", "step_seconds", "collective_gib", "collective_sent_gib", "tokens_per_second"):
        assert found[name] > 0, name
    # forward and backward once each; the biases' gradients are products with eight rows of ones (8 / 128 of some)
    assert 0 <= found["remat_overhead"] < 0.05
    assert {"fsdp", "tensor"} <= {each["axis"] for each in found["collectives"]}
    assert found["unknown_loops"] == 0


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_the_saved_step_says_what_it_is_for_and_no_other_devices_take_it(planned, tmp_path, capsys):
    folder, _, _ = planned
    first, header, payload = (folder / "step.bin").read_bytes().split(b"\n", 2)
    told = json.loads(header)
    assert first == b"lmjax executable" and told["digest"] == hashlib.sha256(payload).hexdigest()
    assert told["device_kind"] == "TPU v5 lite" and told["versions"]["libtpu"] == metadata.version("libtpu")
    assert sorted(told["places"]) == [[i, i % 2, i // 2, 0, 0] for i in range(4)]  # a number, and where it stands
    assert told["mesh"] == {"replica": 1, "data": 1, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert told["about"]["model.layers"] == 3 and told["about"]["tokenizer's entries"] == 257
    run = ["run", str(folder / "small.py"), "--workdir", str(tmp_path / "run"), "--mesh.data", "2"]
    assert main([*run, "--executable", str(folder / "step.bin")]) == 2
    assert "compiled for other devices: 'TPU v5 lite', here 'cpu'" in capsys.readouterr().err


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_a_plan_says_only_what_it_means_to(planned):
    _, _, stderr = planned
    assert "compiling small for 4 chips, v5e-4" in stderr
    assert "heads            tensor" in stderr  # the table of axis rules
    assert not [line for line in stderr.splitlines() if "WARNING" in line or "E0000" in line or "libtpu" in line]


def gathers(module, instruction, target):
    """The channels of the gathers that a fusion starts or ends, which its custom call says."""
    inside = [i for name in instruction.called("calls") for i in module.computations[name]]
    if not any(i.opcode == "custom-call" and target in i.attributes for i in inside):
        return set()
    return {i.attribute("channel_id") for i in inside if i.opcode == "all-gather"}


def multiplies(module, instruction):
    inside = [i for name in instruction.called("calls") for i in module.computations[name]]
    nested = any(multiplies(module, i) for i in inside if i.opcode == "fusion")
    return nested or any(i.opcode in ("convolution", "dot") for i in inside)


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_parameters_are_gathered_while_products_run(planned):
    text = (planned[0] / "step.hlo").read_text()
    assert "is_scheduled=true" in text.splitlines()[0]  # instructions run in the order in which they stand
    module, beside = parse(text), {}
    for body in module.computations.values():
        fusions = [i for i in body if i.opcode == "fusion"]
        started = {channel: n for n, i in enumerate(fusions) for channel in gathers(module, i, "AsyncCollectiveStart")}
        ended = {channel: n for n, i in enumerate(fusions) for channel in gathers(module, i, "AsyncCollectiveDone")}
        for channel, start in started.items():
            between = fusions[start + 1 : ended[channel]]
            beside[channel] = sum(multiplies(module, each) for each in between)
    assert len(beside) >= 4  # of query, keys and values, output and the way up, at least
    assert min(beside.values()) >= 1


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
@pytest.mark.skipif(not JUDGE.exists(), reason=f"{JUDGE} is absent")
def test_an_independent_reader_of_the_written_text_finds_the_same_cycles(planned):
    folder, found, _ = planned
    done = subprocess.run([sys.executable, JUDGE, folder / "step.hlo"], capture_output=True, text=True, check=True)
    judged = json.loads(done.stdout)
    assert judged["gcycles"] == round(found["gcycles"], 4)
    assert {name.split(":")[1]: n for name, n in judged["custom"].items() if "splash" in name} == {
        "splash_mha_fwd_residuals": 3,
        "splash_mha_dkv_no_residuals": 3,  # makes the queries' gradient, too, where a row is one block
    }


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_the_loop_of_sampling_counts_as_often_as_it_makes_a_token():
    recipe = for_slice(evaluation__sample_tokens=96)
    found = plan(recipe, step="generate").estimate
    assert found.step == "generate" and found.unknown_loops == 0
    assert found.tokens_per_second == pytest.approx(8 * 96 / found.step_seconds)
    # Counted once, the loop's 96 tokens would be one, and the program would do a quarter of what the model needs. Some
    # of the scores against the cache are made without products, whose FLOPs alone are counted.
    assert found.executed_tflop == pytest.approx(found.model_tflop, rel=0.1)


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_both_gradients_of_a_table_that_is_embedding_and_head_are_summed_over_copies_as_one():
    recipe = for_slice(layers=1, model__vocab_size=4096, mesh=MeshSettings(data=4))
    found = plan(recipe)
    table, others = 4096 * 128, count(recipe.model).parameters - 4096 * 128
    most = 4 * table + 4 * others + 64  # float32, and some numbers; the table twice, once in bfloat16, is more
    assert most < 6 * table
    assert 4 * table <= found.estimate.collective_gib * GIB <= most


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_the_heads_gradient_is_exchanged_once_and_not_chunk_by_chunk():
    recipe = for_slice(layers=1, model__vocab_size=4096, mesh=MeshSettings(data=1, fsdp=4))
    chunked = (dataclasses.replace(recipe, compute=ComputeSettings(loss_chunk=chunk)) for chunk in (128, 32))
    two, eight = (plan(each).estimate.collective_gib for each in chunked)
    assert eight == pytest.approx(two, rel=0.01)


@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
def test_a_step_that_does_not_fit_is_an_answer():
    huge = {"width": 4096, "model__vocab_size": 400_000, "model__attention__heads": 32, "data__batch_size": 1}
    recipe = for_slice(layers=1, plan__topology="v5e-1", **huge)
    refusal = compile_step(target_of(recipe), find_slice("v5e-1"))
    assert isinstance(refusal, OutOfMemory)
    assert refusal.available == round(15.75 * GIB)
    assert refusal.needed > 12 * count(recipe.model).parameters


def test_planning_leaves_this_process_its_devices():
    assert jax.default_backend() == "cpu"
    assert dataclasses.asdict(PlanSettings()) == {"topology": ""}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A recipe file, and libtpu's devices without libtpu: nothing is compiled."""
    write_recipe(tmp_path / "small.py", SMALL)
    monkeypatch.setattr(planner, "slice_mesh", lambda target, where: None)
    return tmp_path


@pytest.mark.parametrize("option", ["--hlo", "--save"])
@pytest.mark.parametrize(
    ("place", "word"), [("nowhere/step", "No such file"), ("small.py/step", "Not a directory"), ("", "")]
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_compiled(
    small, monkeypatch, capsys, option, place, word
):
    monkeypatch.setattr(planner, "compile_step", lambda *_: pytest.fail("compiled"))
    assert main(["plan", str(small / "small.py"), option, str(small / place)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"lmjax: {option} = '{small / place}': expected a file") and word in said


def test_files_of_a_step_that_does_not_fit_are_not_written_and_the_plan_says_so(small, monkeypatch, capsys):
    monkeypatch.setattr(planner, "compile_step", lambda *_: OutOfMemory(20 * GIB, 15 * GIB, "too much"))
    files = small / "step.hlo", small / "step.bin"
    command = ["plan", str(small / "small.py"), "--json", "--hlo", str(files[0]), "--save", str(files[1])]
    assert main(command) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["fits"] is False
    for option, file in zip(("--hlo", "--save"), files, strict=True):
        reason = f"{file} was not written: the step does not fit; plan one that does with {option} {file}"
        assert reason in said.err.splitlines() and not file.exists()
