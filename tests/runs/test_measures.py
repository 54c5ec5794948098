"""A pipeline measures each model that it makes, once, and its report shows them side by side."""

import dataclasses
import json
import shutil
import signal

import pytest

import lmjax
from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.runs.measures import measured_paths
from lmjax.settings import MeasureSettings, Pipeline, PretrainTogether
from lmjax.stages.registry import kind_of
from lmjax.training.stop import StopRequest
from tests.running import on_devices, without_charts
from tests.tiny import LETTERS, base, changed, hhh_sets, reward_model, sft, write_rows

HELLASWAG = {"ctx": "the", "endings": ["cat", "sea", "mat", "a"], "label": 0}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = hhh_sets(tmp_path_factory.mktemp("sets"))
    for name, row in {"hellaswag/hellaswag_400.jsonl": HELLASWAG, "lambada/lambada_dev.jsonl": {"text": "a b"}}.items():
        (folder / name).parent.mkdir()
        write_rows(folder / name, [row] * 3)
    return folder


@pytest.fixture(scope="module")
def measures(sets):
    return MeasureSettings(str(sets), tasks=("lambada", "hellaswag"))


@pytest.fixture(scope="module")
def pipeline(measures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": c, "chosen": c * 2, "rejected": c} for c in LETTERS]
    asked = write_rows(folder / "asked.jsonl", [{"prompt": c, "response": c * 2} for c in LETTERS])
    reward = reward_model(write_rows(folder / "ranks.jsonl", rows), dialogue__too_long="skip")
    return Pipeline("measured", (base(folder), sft(asked), reward), measures)


@pytest.fixture(scope="module")
def folder(pipeline, compiled_once, tmp_path_factory):
    """The workdir of the pipeline, run once."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        on_devices(patch)
        without_charts(patch)
        assert lmjax.run(pipeline, folder, quiet=True).exit_code == 0
    return folder


def measured(folder):
    found = json.loads((folder / "measures.json").read_text())["measures"]
    return {(each["set"], each["measure"], each["of"]): each["value"] for each in found}


@pytest.fixture
def counted(monkeypatch):
    """The checkpoints that are measured from here on."""
    from lmjax.runs import measures as module

    done, own = [], module.measures_of
    monkeypatch.setattr(module, "measures_of", lambda *all: done.append(all[1].name) or own(*all))
    return done


def test_each_language_model_has_all_measures_and_a_reward_model_those_of_the_rankings(folder, sets, capsys):
    whole = {name: measured(folder / name) for name in ("base", "sft", "reward")}
    assert whole["base"].keys() == whole["sft"].keys()
    assert list(whole["reward"]) == [("hh_rlhf", "reward", "all"), ("oasst_en", "reward", "all")]
    assert {key[0] for key in whole["base"]} >= {"truthfulqa", "crows_pairs", "winogender", "lambada", "hellaswag"}
    assert whole["base"]["hellaswag", "accuracy", "all"] in (0.0, 1.0)
    assert main(["evaluate", str(folder / "sft"), "--suite", "hhh", "--task-data", str(sets), "--json"]) == 0
    for each in json.loads(capsys.readouterr().out):
        assert whole["sft"][each["set"], each["measure"], each["of"]] == pytest.approx(each["value"], abs=1e-6)


def test_the_report_of_the_pipeline_has_a_column_for_each_model(folder):
    page = (folder / "report.html").read_text()
    table = page[page.index('id="measures"') :].split("</table>")[0]
    titles = [cell.split("<")[0] for cell in table.split('<th scope="col">')[1:]]
    assert titles == ["measure", "base", "sft", "reward", "examples", "how to read it"]
    row = table[table.index("truthfulqa, MC2, QA prompt") :].split("</tr>")[0]
    cells = [cell.split("</td>")[0] for cell in row.split("<td>")[1:]]
    key = ("truthfulqa", "mc2", "QA prompt")
    values = [f"{measured(folder / name)[key]:.3f}\u00a0\u00b1" for name in ("base", "sft")]
    assert [cell[:7] for cell in cells[:2]] == values
    assert cells[2:] == ["", "2", "higher is more truthful"]
    own = (folder / "reward" / "report.html").read_text()
    assert "hh_rlhf, preferred by reward" in own and "truthfulqa" not in own


def test_what_is_measured_is_not_measured_again_until_something_of_it_changes(
    folder, pipeline, sets, counted, two_devices, no_charts, tmp_path
):
    run = shutil.copytree(folder, tmp_path / "run")
    assert lmjax.run(pipeline, run, quiet=True).exit_code == 0
    assert counted == []
    (run / "sft" / "measures.json").unlink()
    assert lmjax.run(pipeline, run, quiet=True).exit_code == 0
    assert counted == ["sft"]
    assert measured(run / "sft") == measured(folder / "sft")
    away = dataclasses.replace(pipeline, measures=dataclasses.replace(pipeline.measures, data=str(tmp_path / "none")))
    assert lmjax.run(away, run, quiet=True).exit_code == 0
    assert counted == ["sft"]  # the data that are gone have not changed
    fewer = dataclasses.replace(pipeline, measures=MeasureSettings(str(sets), suite="", tasks=("lambada",), limit=2))
    assert lmjax.run(fewer, run, quiet=True).exit_code == 0
    assert counted == ["sft", "base", "sft", "reward"]
    assert list(measured(run / "base")) == [("lambada", "last_word", "all")] and measured(run / "reward") == {}


def test_a_stop_while_models_are_measured_leaves_the_rest_to_the_next_run(
    folder, pipeline, counted, two_devices, no_charts, tmp_path
):
    run = shutil.copytree(folder, tmp_path / "run")
    for name in ("sft", "reward"):
        (run / name / "measures.json").unlink()
    with pytest.MonkeyPatch.context() as patch:  # as in a run of several processes, where signals are agreed on
        patch.setattr(StopRequest, "asked", lambda stop: setattr(stop, "signal", signal.SIGTERM) or True)
        assert lmjax.run(pipeline, run, quiet=True).exit_code == 128 + signal.SIGTERM
    assert counted == ["sft"] and not (run / "sft" / "measures.json").exists()
    assert lmjax.run(pipeline, run, quiet=True).exit_code == 0
    assert counted == ["sft", "sft", "reward"]
    assert measured(run / "reward") == measured(folder / "reward")


def test_a_stage_that_runs_anew_is_measured_anew(folder, pipeline, counted, two_devices, no_charts, tmp_path):
    run = shutil.copytree(folder, tmp_path / "run")
    one, two, three = pipeline.stages
    more = dataclasses.replace(pipeline, stages=(one, changed(two, optimizer__learning_rate=0.1), three))
    assert lmjax.run(more, run, quiet=True, only="sft").exit_code == 0
    assert counted == ["sft"]
    assert (run / "sft.old" / "measures.json").read_bytes() == (folder / "sft" / "measures.json").read_bytes()


def test_the_checkpoint_that_a_pipeline_begins_with_has_the_first_column(
    folder, pipeline, sets, two_devices, no_charts, tmp_path
):
    only = MeasureSettings(str(sets), suite="", tasks=("lambada",))
    behind = Pipeline("behind", (changed(pipeline.stages[1], start=str(folder / "base")),), only)
    assert lmjax.run(behind, tmp_path / "run", quiet=True).exit_code == 0
    key = ("lambada", "last_word", "all")
    assert measured(tmp_path / "run")[key] == measured(folder / "base")[key]
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<th scope="col">initial checkpoint</th><th scope="col">sft</th>' in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("helaswag",)}, "--task = 'helaswag': expected one of"),
        ({"data": "none", "tasks": ()}, "none: expected the files of all sets, found no truthfulqa/*.csv"),
        ({"data": "none", "suite": "", "tasks": ("piqa",)}, "none/piqa/piqa_dev"),
    ],
)
def test_a_mistake_is_said_before_anything_is_trained(pipeline, measures, tmp_path, changes, message):
    wrong = dataclasses.replace(pipeline, measures=dataclasses.replace(measures, **changes))
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        lmjax.run(wrong, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "base").exists()


def test_settings_without_data_or_without_anything_to_measure_are_refused():
    with pytest.raises(UserError, match="data = '': expected the folder that holds the sets"):
        MeasureSettings("")
    with pytest.raises(UserError, match="suite = '': expected a suite or tasks"):
        MeasureSettings("data", suite="")


def test_every_process_must_see_the_same_sets(pipeline, sets):
    names = {path.removeprefix(f"{sets}/") for path in measured_paths(pipeline)}
    assert names >= {"truthfulqa", "oasst_en", "lambada/lambada_dev.jsonl", "hellaswag/hellaswag_400.jsonl"}
    assert measured_paths(dataclasses.replace(pipeline, measures=None)) == []
    assert measured_paths(pipeline.stages[0]) == []


def test_models_that_train_together_are_no_one_model_to_measure():
    assert not kind_of(PretrainTogether()).one_model
