"""The measures of models side by side, as the report of a pipeline or of a run shows them."""

import json
import math

import pytest

from lmjax.errors import UserError
from lmjax.evaluate.means import Mean
from lmjax.evaluate.measures import Measure
from lmjax.report.measures import measures_values
from lmjax.report.page import write_report
from lmjax.settings import SFT, Pretrain
from tests.report.test_report import EVIL

MC1 = Measure("truthfulqa", "mc1", "QA prompt", Mean(0.25, 0.0624), 48)
AGE = Measure("crows_pairs", "stereotype", "age", Mean(0.5, math.nan), 1)
ALL = Measure("crows_pairs", "stereotype", "all", Mean(0.625, 0.05), 1075)
TASK = Measure("hellaswag", "accuracy", "8 shots", Mean(0.3, 0.01), 400)


def write(folder, *measures):
    measured = {"made_from": {}, "measures": [each.plain() for each in measures]}
    (folder / "measures.json").write_text(json.dumps(measured))


def test_a_row_has_the_value_of_each_model_and_what_one_lacks_is_empty():
    values = measures_values({"initial checkpoint": [], "base": [MC1, ALL, AGE], "sft": [TASK, MC1]})
    error = "\u00a0\u00b1\u00a0"
    assert values["whole"] == (
        ("measure", "base", "sft", "examples", "how to read it"),
        [
            ("truthfulqa, MC1, QA prompt", f"0.250{error}0.062", f"0.250{error}0.062", "48", "higher is more truthful"),
            ("crows_pairs, stereotype preferred", f"0.625{error}0.050", "", "1,075", "0.5 is no preference"),
            ("hellaswag, accuracy, 8 shots", "", f"0.300{error}0.010", "400", "higher is better"),
        ],
    )
    assert values["parts"] == (
        ("measure", "base", "examples", "how to read it"),
        [("crows_pairs, stereotype preferred, age", "0.500", "1", "0.5 is no preference")],
    )


def test_nothing_is_shown_where_nothing_was_measured(make_workdir):
    assert measures_values({"base": []}) == {}
    assert 'id="measures"' not in write_report(make_workdir([{"step": 1, "loss": 2.0}])).read_text()


def test_a_pipelines_page_has_its_start_and_its_stages_in_order_and_a_stages_page_its_own(make_workdir, tmp_path):
    pipe = make_workdir(name="pipe", lines=None)
    (pipe / "recipe.json").unlink()
    (pipe / "pipeline.json").write_text('["sft", "more"]')
    write(pipe, MC1)
    for name in ("sft", "more"):
        own = make_workdir([{"step": 1, "loss": 2.0}], recipe=SFT(name=name, start="x"), name=f"pipe/{name}")
        write(own, ALL, AGE)
    page = write_report(pipe).read_text()
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("measure", "initial checkpoint", "sft", "more"))
    assert heads in page
    assert "<summary>Of parts of a set</summary>" in page
    own = (pipe / "sft" / "report.html").read_text()
    assert '<th scope="col">measure</th><th scope="col">value</th>' in own and "truthfulqa" not in own


def test_names_of_a_file_are_text(make_workdir):
    folder = make_workdir([{"step": 1, "loss": 2.0}])
    write(folder, Measure(EVIL, EVIL, EVIL, Mean(0.5, 0.1), 3))
    page = write_report(folder).read_text()
    assert EVIL not in page and page.count("0.500\u00a0\u00b1\u00a00.100") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"value": "x"}, r"measures\[0\]\.value = 'x'"), ({"examples": None}, r"measures\[0\]\.examples = None")],
)
def test_a_measure_of_another_form_is_named(make_workdir, change, message):
    folder = make_workdir([{"step": 1, "loss": 2.0}], recipe=Pretrain(name="tiny"))
    (folder / "measures.json").write_text(json.dumps({"made_from": {}, "measures": [MC1.plain() | change]}))
    with pytest.raises(UserError, match=rf"measures\.json: {message}"):
        write_report(folder)
