"""The four recipes that are held against MaxText: what they are, and what the compiler says of their steps."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmjax.model.flops import count
from lmjax.parallel.chips import GIB
from lmjax.plan.planner import plan
from lmjax.plan.slices import find_slice

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
PEER = runpy.run_path(str(BENCHMARKS / "plan_against_maxtext.py"))
MAXTEXT = PEER["maxtext"]()


@pytest.fixture
def benchmark(monkeypatch):
    """A script of the folder as names; scripts there import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: runpy.run_path(str(BENCHMARKS / f"{name}.py"))


recipe_of = PEER["benchmark"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *(("gpt2_124m", 124e6), ("gpt3_6b", 5.6e9), ("gpt3_22b", 22e9), ("gpt3_175b", 175e9), ("llama2_7b", 6.74e9)),
        *(("gpt3_13b", 13e9), ("llama3_8b", 8.03e9), ("gpt3_2700m", 2.65e9), ("llama2_7b:32k", 6.74e9)),
        ("gpt3_13b:tensor", 13e9),
    ],
)
def test_benchmarks_say_what_they_are(name, parameters):
    recipe = recipe_of(name)
    assert count(recipe.model).parameters == pytest.approx(parameters, rel=0.02)
    assert recipe.optimizer.state_dtype == "float32" and recipe.optimizer.clip_norm == 1.0
    where = find_slice(recipe.plan.topology)
    tokens = recipe.data.batch_size * recipe.data.sequence_length / where.devices
    wide = {"gpt2_124m": 16, "llama3_8b": 16, "gpt3_2700m": 8, "llama2_7b:32k": 8, "gpt3_13b": 8, "gpt3_13b:tensor": 8}
    assert tokens == 1024 * wide.get(name, 4)
    assert recipe.name == f"plan_{name.replace(':', '_')}"


def test_maxtext_is_given_remat_vector_memory_windows_scan_and_kernels(benchmark):
    script = benchmark("maxtext_step")
    flags = "compile_xla_flags=--xla_tpu_scoped_vmem_limit_kib=49152"
    never = " --xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"
    apart = "sa_use_fused_bwd_kernel=false"
    scanned = ("remat_policy=minimal", "scan_layers=true", apart, flags + never)
    assert script["Choice"]("minimal").settings() == scanned
    assert script["Choice"]("full", 16, True, False, True).settings() == (
        *("remat_policy=full", "scan_layers=false", "sa_use_fused_bwd_kernel=true"),
        "compile_xla_flags=--xla_tpu_scoped_vmem_limit_kib=16384",
    )


def test_a_step_of_maxtext_is_counted_and_printed(benchmark, monkeypatch, tmp_path, capsys):
    text = """HloModule m
ENTRY %main (a: f32[2]) -> f32[2] {
  %a = f32[2] parameter(0)
  ROOT %b = f32[2] negate(%a), backend_config={"estimated_cycles":"3000000"}
}
"""
    memory = SimpleNamespace(peak_memory_in_bytes=GIB)
    compiled = SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: memory)
    script, asked = benchmark("maxtext_step"), []
    monkeypatch.setitem(
        script["main"].__globals__, "compiled_step", lambda settings: asked.append(settings) or compiled
    )
    file = tmp_path / "step.hlo"
    words = ["gpt3_6b", "--remat", "minimal", "--vector-memory", "64", "--windowed", "--hlo", str(file)]
    monkeypatch.setattr("sys.argv", ["maxtext_step.py", *words])
    script["main"]()
    assert asked == [script["CASES"]["gpt3_6b"] + script["Choice"]("minimal", 64, True).settings()]
    printed = json.loads(capsys.readouterr().out)
    assert printed["gcycles"] == 0.003 and printed["peak_hbm_gib"] == 1.0 and file.read_text() == text
    choice = {"remat": "minimal", "vector_memory": 64, "windowed": True, "scanned": True, "fused": False}
    assert choice.items() <= printed.items()


def test_maxtexts_best_is_looked_for_one_choice_at_a_time(benchmark):
    script, compiled = benchmark("maxtext_search"), []

    def compile(case, choice):
        compiled.append((choice.remat, choice.vector_memory, choice.windowed, choice.scanned, choice.fused))
        if choice.remat == "minimal_with_context":
            return {"refusal": "RESOURCE_EXHAUSTED"}
        cycles = 1.0 + 0.1 * (choice.remat != "minimal") + 0.1 * choice.windowed - 0.2 * (not choice.scanned)
        cycles -= 0.3 * choice.fused
        return {"gcycles": cycles + {96: 0.02, 64: 0.01, 48: 0.03, 32: 0.04, 16: 0.05}[choice.vector_memory]}

    assert script["search"]("gpt2_124m", compile) == {"gcycles": pytest.approx(0.51)}
    policies = ["minimal_with_context", "minimal", "save_dot_with_context_except_mlp"]
    tried = [(policy, 48, False, True, False) for policy in policies]
    tried += [("minimal", size, False, True, False) for size in (64, 96, 32)]
    tried += [("minimal", 64, True, True, False), ("minimal", 64, False, False, False)]
    tried += 2 * [("minimal", 64, False, False, True)]
    assert compiled == tried


def test_no_step_of_maxtext_is_compiled_twice_and_refusals_are_kept(benchmark, monkeypatch, tmp_path):
    script, asked = benchmark("maxtext_search"), []

    def run(command, **options):
        asked.append(command[2:])
        refused = "--unscanned" in command
        full = {"remat": "full", "vector_memory": 16, "windowed": True, "scanned": True, "fused": True}
        out = json.dumps({"case": "gpt3_6b", **full})
        said = "a line\nRESOURCE_EXHAUSTED: 17 of 15 GiB\nanother"
        return SimpleNamespace(returncode=int(refused), stdout=f"noise\n{out}\n", stderr=said if refused else "")

    monkeypatch.setattr(script["subprocess"], "run", run)
    Choice, file = script["Choice"], tmp_path / "steps.jsonl"
    for _ in range(2):
        compile = script["compiled_or_kept"](file)
        compile("gpt3_6b", Choice("full", 16, windowed=True, fused=True))
        assert compile("gpt3_6b", Choice("full", scanned=False))["refusal"] == "RESOURCE_EXHAUSTED: 17 of 15 GiB"
    whole = ["gpt3_6b", "--remat", "full", "--vector-memory"]
    assert asked == [[*whole, "16", "--windowed", "--fused"], [*whole, "48", "--unscanned"]]
    assert len(file.read_text().splitlines()) == 2


def test_the_page_prints_maxtexts_best_and_what_follows_from_it():
    lines = (BENCHMARKS.parents[1] / "README.md").read_text(encoding="utf-8").splitlines()
    for name, its in MAXTEXT.items():
        row = next(line for line in lines if line.startswith(f"| `plan_{name}`"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        ours, cycles, saved, choice = cells[2:6]
        assert float(cycles) == pytest.approx(its["gcycles"], rel=5e-4)
        assert float(saved.strip("%")) == pytest.approx(100 * (1 - float(ours.split()[0]) / its["gcycles"]), abs=0.06)
        assert choice == PEER["chosen"](its)


BENCHMARKED = {  # Gcycles and GiB sent of each recipe, as the page says
    "gpt2_124m": (0.1672, 0.573),
    "gpt3_6b": (1.2425, 40.85),
    "gpt3_22b": (5.046, 163.4),
    "gpt3_175b": (17.606, 1300),
    "llama2_7b": (0.7602, 47.99),
    "gpt3_13b": (2.7223, 94.82),
    "llama3_8b": (3.2140, 55.37),
    "gpt3_2700m": (0.5763, 20.50),
}


@pytest.mark.slow
@pytest.mark.tpu
@pytest.mark.xdist_group("tpu")
@pytest.mark.parametrize(("name", "cycles", "sent"), [(name, *each) for name, each in BENCHMARKED.items()])
def test_a_benchmark_fits_and_neither_takes_nor_sends_more_than_the_page_says(name, cycles, sent):
    recipe = recipe_of(name)
    found = json.loads(plan(recipe).to_json())
    assert found["fits"], f"{found['over_by_gib']} GiB too much"
    assert found["peak_hbm_gib"] <= find_slice(recipe.plan.topology).device_hbm / GIB
    assert found["gcycles"] <= 1.0025 * cycles
    assert found["collective_sent_gib"] <= 1.0025 * sent
    assert found["step_seconds"] > 0 and 0 < found["mfu"] < 1
