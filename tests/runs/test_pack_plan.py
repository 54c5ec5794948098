"""Into how many parts hosts are cut: by what a token costs, with what the shares of hosts and their parts take."""

import json

import pytest

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.plan.slices import find_slice
from lmjax.runs.pack_plan import packings, parts_of, shown
from lmjax.runs.slice_hours import SliceTime
from lmjax.scaling.ladder import grid, search
from lmjax.scaling.rules import fixed
from lmjax.settings import AttentionSettings, DataSettings, ModelSettings, Pretrain, Sweep

MODEL = ModelSettings(layers=1, width=16, context=16, attention=AttentionSettings(heads=2))
BASE = Pretrain(data=DataSettings(sequence_length=16, batch_size=4), model=MODEL)
SWEEP = Sweep("seeds", search(grid(BASE, [MODEL], [640], fixed(1e-2, 4)), seeds=range(6)))
NAMES = [one.name for one in SWEEP.runs]
SLICE = find_slice("v5e-16")  # 4 hosts of 4 chips


def timed(hours):
    """Hours of a run by the chips of its part; None does not fit."""
    found = {chips: SliceTime(None if own is None else 3600.0 * own, "too large") for chips, own in hours.items()}
    return lambda part: lambda one: found[part.chips]


def test_the_parts_of_a_host_are_slices_that_divide_it():
    assert [part.name for part in parts_of(SLICE, 4)] == ["v5e-1", "v5e-4"]
    assert [part.name for part in parts_of(find_slice("v5e-8"), 1)] == ["v5e-1", "v5e-4", "v5e-8"]
    assert [part.name for part in parts_of(find_slice("v5p-64"), 8)] == ["v5p-8"]


def test_the_cheapest_per_token_is_the_first_with_the_hours_of_its_shares():
    """Six runs on four hosts: two hosts have two of them, which one part trains after and four parts beside another."""
    best, other = packings(SWEEP, NAMES, SLICE, 4, timed({1: 3.0, 4: 1.0}))
    assert (best.part.name, best.per_host, best.hosts, best.chip_hours, best.hours) == ("v5e-1", 4, 4, 18.0, 3.0)
    assert (other.part.name, other.per_host, other.chip_hours, other.hours) == ("v5e-4", 1, 24.0, 2.0)
    best, _ = packings(SWEEP, NAMES, SLICE, 4, timed({1: 5.0, 4: 1.0}))
    assert (best.part.name, best.chip_hours) == ("v5e-4", 24.0)


def test_runs_that_have_a_row_are_left_out():
    best, _ = packings(SWEEP, NAMES[:2], SLICE, 4, timed({1: 3.0, 4: 1.0}))
    assert (best.chip_hours, best.hours) == (6.0, 3.0)


def test_a_part_that_cannot_train_a_run_comes_after_one_that_can():
    found = packings(SWEEP, NAMES, SLICE, 4, timed({1: None, 4: 9.0}))
    assert [one.part.name for one in found] == ["v5e-4", "v5e-1"]
    lines = shown(found, SLICE, 6).splitlines()
    assert lines[2].endswith("  6 of 6 runs cannot be trained")
    assert f"v5e-1: {NAMES[0]}: too large" in lines
    assert lines[-1] == "cheapest per token on v5e-16: parts of 4 chips, --pack 1 --shard I/4 on host I"


def test_a_size_that_no_slice_has_is_refused_with_those_there_are():
    (only,) = packings(SWEEP, NAMES, SLICE, 4, timed({1: 3.0, 4: 1.0}), 1)
    assert only.part.name == "v5e-4"
    for parts in (0, 2, 3):
        with pytest.raises(UserError, match=rf"--pack {parts} on v5e-16, .* 4 chips: .* can be planned: 4, 1$"):
            packings(SWEEP, NAMES, SLICE, 4, timed({}), parts)


@pytest.mark.parametrize("word", ["-1", "many", "1.5"])
def test_a_word_that_is_no_number_of_parts_is_refused(word, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "isoflop", f"--pack={word}"])
    assert "expected a number of parts" in capsys.readouterr().err


def test_auto_is_for_plans(tmp_path, capsys):
    assert main(["sweep", "isoflop", "--pack", "auto", "--workdir", str(tmp_path)]) == 2
    assert "--pack = 'auto': expected a number, or --plan with it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.xdist_group("libtpu")
def test_a_sweep_is_packed_on_a_v5e_256_by_its_compiler(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = tmp_path / "tiny_sweep.py"
    recipe.write_text(
        "import dataclasses\n"
        "from lmjax.scaling.ladder import grid\nfrom lmjax.scaling.rules import fixed\n"
        "from lmjax.settings import *\n"
        "MODEL = ModelSettings(layers=2, width=128, context=256)\n"
        "BASE = Pretrain(data=DataSettings(sequence_length=256), model=MODEL)\n"
        "def recipe():\n    return Sweep('tiny', grid(BASE, [MODEL], [1e6, 2e6], fixed(1e-3, 8)))\n"
    )
    words = ["sweep", str(recipe), "--plan", "--topology", "v5e-256", "--pack", "auto", "--json"]
    assert main([*words, "--workdir", str(tmp_path / "w")]) == 0
    best, other = json.loads(capsys.readouterr().out)
    assert {best["pack"], other["pack"]} == {1, 4}
    assert best["hosts"] == other["hosts"] == 64
    assert best["refused"] == other["refused"] == {}
    assert 0 < best["chip_hours"] < other["chip_hours"]
    longest = max(best["chip_hours"], other["chip_hours"])
    assert 0 < best["hours"] < longest and 0 < other["hours"] < longest
