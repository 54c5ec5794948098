"""Mistakes in `lmjax plan`: each is one line that says what to do, with exit code 2, before anything is compiled."""

import importlib.util
from pathlib import Path

import jax
import pytest

from lmjax.cli import main
from lmjax.plan import compile as compiling
from lmjax.plan import planner, search
from lmjax.settings import Compare, DialogueSourceSettings, Pipeline
from tests.tiny import for_slice, sft, write_recipe

INSTALL = "pip install -c constraints.txt -e '.[tpu]'"


def recipe_of(topology, pipeline=False):
    """Pretraining alone or in a pipeline with what is not planned."""
    twelve = {"width": 96, "model__attention__heads": 12, "plan__topology": topology}
    base, rows = for_slice(layers=1, name="base", **twelve), (DialogueSourceSettings(path="rows.jsonl"),)
    tuned = sft(rows, dialogue__sequence_length=128)
    compared = Compare(start="sft", known_reward="a:b", dialogue=tuned.dialogue)
    return Pipeline("all", (base, tuned, compared)) if pipeline else base


@pytest.fixture
def mistaken(tmp_path, monkeypatch, capsys):
    """A function from arguments to the one line that `lmjax plan` says of them; CPU devices stand for a slice's."""

    def run(*arguments, pipeline=False, topology="v5e-8"):
        write_recipe(tmp_path / "small.py", recipe_of(topology, pipeline))
        assert main(["plan", str(tmp_path / "small.py"), *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        return said.err.rstrip("\n")

    for module in (compiling, search):
        monkeypatch.setattr(module, "slice_devices", lambda where: jax.devices()[: where.devices])
    for module in (planner, search):
        monkeypatch.setattr(module, "compile_step", lambda *_: pytest.fail("compiled"))
    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--topology v5ee-8", "topology 'v5ee-8': no TPU is called 'v5ee'; did you mean 'v5e'?"),
        ("--topology v5e-9", "topology 'v5e-9': not a usual size (it counts chips); the nearest are v5e-4 or v5e-8"),
        ("--topology eight", "topology 'eight': expected a name such as 'v5e-256'"),
        ("--mesh fdsp=2", "--mesh fdsp=2: no mesh axis 'fdsp'; did you mean 'fsdp'?"),
        ("--mesh fsdp", "--mesh fsdp: 'fsdp': expected a whole number, as in fsdp=64"),
        ("--mesh fsdp=2,fsdp=4", "--mesh fsdp=2,fsdp=4: fsdp has two sizes; expected each axis once"),
        ("--mesh fsdp=0", "mesh.fsdp = 0: expected a size above 0, or -1 once; use 1"),
        ("--mesh data=-1,fsdp=-1", "at most one axis at -1; give all but one of data, fsdp a size"),
        (
            "--mesh fsdp=16",
            "mesh.fsdp = 16: expected a product that divides the 8 devices; use mesh.fsdp = 8",
        ),
        (
            "--mesh tensor=8",
            "mesh.tensor = 8: expected a divisor of model.attention.heads = 12; use mesh.data = 2 with mesh.tensor = 4"
            ", or model.attention.heads = 8 or 16",
        ),
        (
            "--data.batch-size 12 --mesh data=8",
            "mesh.data = 8: expected a divisor of data.batch_size = 12; use mesh.data = 4 with mesh.sequence = 2, "
            "or data.batch_size = 8 or 16",
        ),
        (
            "--train.microbatches 3",
            "train.microbatches = 3: expected a divisor of data.batch_size = 8; use train.micro",
        ),
        ("--step eval --save step.bin", "--save = 'step.bin': expected the training step of a pretraining"),
        ("--stage bse", "--stage bse: no such stage in 'base'; did you mean 'base'?"),
        ("--limit 3", "--limit 3: only a search compiles several; add --auto"),
        ("--auto --limit 0", "--limit = 0: expected how many candidates to compile, 1 or more"),
        ("--auto --explain", "--auto with --explain: expected one of them"),
        ("--auto --step eval", "--auto: it searches for the training step of a pretraining"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(mistaken, arguments, message):
    said = mistaken(*arguments.split())
    assert said.startswith("lmjax: ") and message in said and "\n" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--stage stf", "--stage stf: no such stage in 'all'; did you mean 'sft'?"),
        ("--stage compare", "--stage compare: it trains nothing; plan one of base, sft"),
        ("--stage sft --step generate --topology v5e-8", "--step = 'generate': expected 'train' for SFT"),
        ("--stage sft", "plan.topology = '': expected a slice; give --topology, such as --topology v5e-256"),
    ],
)
def test_a_mistake_about_a_stage_is_one_line_too(mistaken, arguments, message):
    said = mistaken(*arguments.split(), pipeline=True)
    assert said.startswith(f"lmjax: {message}") and "\n" not in said


def test_a_recipe_that_names_no_slice_asks_for_one(mistaken):
    assert mistaken(topology="").startswith("lmjax: plan.topology = '': expected a slice; give --topology")


def test_an_unknown_program_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as refusal:
        main(["plan", "small.py", "--step", "validate"])
    said = capsys.readouterr().err
    assert refusal.value.code == 2 and "Traceback" not in said
    assert "invalid choice: 'validate'" in said and all(kind in said for kind in ("train", "eval", "generate"))


@pytest.mark.parametrize("option", ["--explain", "--auto"])
def test_where_libtpu_is_missing_the_plan_says_how_the_readme_installs_it(tmp_path, monkeypatch, capsys, option):
    write_recipe(tmp_path / "small.py", recipe_of("v5e-8"))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else find(name, *rest)
    )
    assert main(["plan", str(tmp_path / "small.py"), option]) == 2
    said = capsys.readouterr().err
    assert (
        said
        == f"lmjax: libtpu: expected the TPU's compiler, which is not installed; in lmjax's own folder, run {INSTALL}\n"
    )
    assert f"\n{INSTALL}\n" in (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
