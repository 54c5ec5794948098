"""Files of a workdir that a crash left empty, or that somebody else wrote, are named; none leads out of its folder."""

import json

import pytest

from lmjax.checkpoints.initial import found_checkpoint
from lmjax.errors import UserError
from lmjax.report.page import write_report
from lmjax.report.records import read_run, read_summary
from lmjax.settings import DPO, SFT, Compare, Pretrain, TrainSettings
from lmjax.settings.recipe_files import to_json


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text(to_json(Pretrain(train=TrainSettings(steps=2))))
    (folder / "metrics.jsonl").write_text('{"step": 2, "loss": 3.0}\n')
    (folder / "summary.json").write_text('{"steps": 2, "loss": NaN, "sample": "x"}')
    (folder / "environment.json").write_text('{"jax": "0.1"}')
    (folder / "measures.json").write_text('{"made_from": {}, "measures": []}')
    return folder


@pytest.mark.parametrize("content", ["", "\0" * 64, "{", "[" * 100_000, "7", '{"n": 1' + "0" * 5_000 + "}", "\ud800"])
@pytest.mark.parametrize("name", ["recipe.json", "summary.json", "environment.json", "metrics.jsonl", "measures.json"])
def test_a_file_that_is_empty_torn_or_no_object_is_named(workdir, name, content):
    read_run(workdir)
    (workdir / name).write_text(content + "\n" * (name == "metrics.jsonl"), errors="surrogatepass")
    if name == "metrics.jsonl" and not content:
        (workdir / name).write_text("\n")
    with pytest.raises(UserError) as error:
        read_run(workdir)
    assert str(error.value).startswith(str(workdir / name)), "the file is named first"


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({}, r"no field 'steps'; expected a whole number; delete the file"),
        ({"steps": "2"}, r"steps = '2': expected a whole number"),
        ({"steps": 2, "loss": "low"}, r"loss = 'low': expected a finite number"),
        ({"steps": 2, "loss": None}, "loss = None: expected a finite number"),
        ({"steps": 2, "flops_per_token_6n": 10**400}, "flops_per_token_6n = 1000.*: expected a finite number"),
        ({"steps": 2**63}, "steps = 9223372036854775808: expected a whole number, of at most 64 bits"),
        ({"steps": 2, "sample": 7}, "sample = 7: expected a string"),
        ({"steps": 2, "best_of": [{"n": "x"}]}, r"best_of\[0\]\.n = 'x': expected a finite number"),
    ],
)
def test_a_summary_of_another_form_is_named_by_its_field(workdir, summary, message):
    (workdir / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=message):
        read_summary(workdir, Pretrain())


def test_the_summary_of_comparisons_has_its_own_fields(workdir):
    (workdir / "summary.json").write_text('{"comparisons": 3, "left_out": 0}')
    with pytest.raises(UserError, match="no field 'gold'"):
        read_summary(workdir, Compare(start="a", known_reward="g.py:f"))


def test_a_number_of_the_log_that_no_float_can_hold_is_named(workdir):
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 1' + "0" * 400 + "}\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: .*loss = 1000.*: expected a finite number"):
        read_run(workdir)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "low"}, "loss = 'low': expected a finite number"),
        ({"loss": None}, "loss = None: expected a finite number"),
        ({"sample": 7}, "sample = 7: expected a string"),
        ({"changed": "x"}, "changed = 'x': expected a list"),
        ({"changed": 0.5}, r"changed = 0\.5: expected a list"),
        ({"changed": [1]}, r"changed\[0\] = 1: expected a string"),
        ({"calibration": [[1, 2]]}, "calibration: expected rows of 3 numbers"),
        ({"calibration": [1]}, r"calibration\[0\] = 1: expected a list"),
    ],
)
def test_a_value_of_the_log_of_another_type_is_named(workdir, values, message):
    (workdir / "metrics.jsonl").write_text(json.dumps({"step": 1} | values) + "\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl:1: .*{message}"):
        read_run(workdir)


@pytest.mark.parametrize("losses", [(1e308, 1.0), (1.0, 5e-324), (1e308, -1e308)])
def test_a_loss_that_no_axis_can_hold_is_left_out_of_its_chart(workdir, losses):
    lines = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(workdir)
    assert (workdir / "loss.png").stat().st_size > 1_000


def test_an_empty_calibration_is_no_chart(workdir):
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "calibration": []}\n')
    write_report(workdir)
    assert not (workdir / "calibration.png").exists()


@pytest.mark.parametrize("line", ['{"step": Infinity}', '{"step": "3"}', '{"step": true}', "[]", '{"loss": 1}'])
def test_a_line_of_the_log_without_a_whole_step_is_named(workdir, line):
    (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: expected a JSON object with a step; delete the line"):
        read_run(workdir)


@pytest.mark.parametrize(
    "name", ["../victim", "/etc", "..", ".", "", "a/../../victim", "javascript:alert(1)", "a\\b", "a\nb", 7, None]
)
def test_a_pipelines_list_of_stages_names_its_own_folders_alone(tmp_path, workdir, name):
    victim = tmp_path / "victim"
    workdir.rename(victim)
    (victim / "report.html").write_text("mine")
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "pipeline.json").write_text(json.dumps(["a", name]))
    for read in (write_report, found_checkpoint):
        with pytest.raises(UserError, match=r"pipeline\.json.*expected (one plain name|a string)"):
            read(pipeline)
    assert (victim / "report.html").read_text() == "mine"


def test_a_stages_link_is_a_path_below_the_page_whatever_its_name(tmp_path, workdir):
    name = 'a"b#c?d%20 é'
    (tmp_path / "p").mkdir()
    workdir.rename(tmp_path / "p" / name)
    (tmp_path / "p" / "pipeline.json").write_text(json.dumps([name]))
    page = write_report(tmp_path / "p").read_text()
    assert 'href="a%22b%23c%3Fd%2520%20%C3%A9/report.html"' in page
    assert (tmp_path / "p" / name / "report.html").is_file()


def test_stages_that_start_from_each_other_have_no_model(tmp_path):
    for name, start in (("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        stage = (SFT if name == "one" else DPO)(name=name, start=start)
        (tmp_path / name / "recipe.json").write_text(to_json(stage))
    assert read_run(tmp_path / "one").model is None
