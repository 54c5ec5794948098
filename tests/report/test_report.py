"""The report says what the record says, whatever state the run is in and whatever the model wrote."""

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

from lmjax.cli import main
from lmjax.data.ramp import BatchRamp
from lmjax.errors import UserError
from lmjax.model.flops import count
from lmjax.report.page import write_report
from lmjax.settings import (
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    Pretrain,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)
from lmjax.settings.recipe_files import difference
from lmjax.tokenizers.byte import ByteTokenizer

VOID = {"meta", "link", "br", "hr", "img", "input"}
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)></p></body>&lt;\"'"


class Outline(HTMLParser):
    """A page's elements, its lists of names and values, and its samples as text. Fails on an element left open."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.pairs: list[tuple[str, str]] = []
        self.samples: list[str] = []
        self._open: list[tuple[str, list[str], dict]] = []
        self._term = ""
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, [], dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        for _, texts, _ in self._open:
            texts.append(data)

    def handle_endtag(self, tag):
        opened, texts, attributes = self._open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"
        text = "".join(texts)
        if tag == "dt":
            self._term = text
        elif tag == "dd":
            self.pairs.append((self._term, text))
        elif attributes.get("class") == "sample":
            self.samples.append(text)


def _outline(folder: Path) -> Outline:
    return Outline(write_report(folder).read_text(encoding="utf-8"))


def _values(folder: Path) -> dict[str, str]:
    """The page's names and their first values."""
    return dict(reversed(_outline(folder).pairs))


def test_a_finished_run_is_shown_with_its_last_numbers(make_workdir, make_log):
    recipe = Pretrain(name="tiny", train=TrainSettings(steps=400))
    counted = dataclasses.asdict(count(ModelSettings(vocab_size=999)))
    lines = make_log(400)
    folder = make_workdir(lines, recipe=recipe, summary={"steps": 400, **counted}, environment={"jax": "0.10.2"})
    page = write_report(folder).read_text()
    shown = _values(folder)
    last = {name: value for line in lines for name, value in line.items()}
    assert "<b>Done: </b>400 steps, each 8 rows of 256 tokens." in page
    assert shown["validation loss"] == f"{last['validation_loss']:.4f} nats per token"
    assert shown["training loss"] == f"{last['loss']:.4f} nats per token"
    assert shown["bits per byte"] == "1.500 validation"
    assert shown["tokens"] == "819k trained on"
    assert shown["parameters"] == f"{counted['parameters']:,}"
    assert shown["embeddings"] == f"{999 * 128 + 256 * 128:,}"
    assert shown["lowest loss"] == f"{last['validation_loss']:.4f} at step 400"
    assert shown["time in steps, about"] == "3 min 20 s"
    assert shown["jax"] == "0.10.2"


def test_an_interrupted_run_says_how_far_it_came(make_workdir, make_log):
    folder = make_workdir(make_log(240), recipe=Pretrain(name="tiny", train=TrainSettings(steps=600)))
    outline = _outline(folder)
    assert ("progress", {"value": "240", "max": "600", "aria-label": "steps done"}) in outline.tags
    assert dict(outline.pairs)["recorded up to step"] == "240"


def test_a_summary_of_fewer_steps_than_the_recipe_asks_for_is_not_the_end(make_workdir, make_log):
    recipe = Pretrain(name="tiny", train=TrainSettings(steps=500))
    folder = make_workdir(make_log(400), recipe=recipe, summary={"steps": 400, "parameters": 1})
    assert "Not finished: </b>step 400 of 500" in write_report(folder).read_text()


def test_parameters_of_a_run_without_summary_are_counted_from_its_tokenizer(make_workdir, make_log):
    folder = make_workdir(make_log(20))
    assert _values(folder)["parameters"] == "known once there is a tokenizer"
    ByteTokenizer().save(folder / "tokenizer-0123456789ab")
    entries = ByteTokenizer().vocab_size
    assert _values(folder)["parameters"] == f"{count(ModelSettings(vocab_size=entries)).parameters:,}"


def test_a_recipe_with_a_table_size_of_its_own_is_counted_with_it(make_workdir):
    folder = make_workdir([], recipe=Pretrain(model=ModelSettings(vocab_size=5000)))
    ByteTokenizer().save(folder / "tokenizer-0123456789ab")
    assert _values(folder)["parameters"] == f"{count(ModelSettings(vocab_size=5000)).parameters:,}"


def test_tokens_follow_the_ramp_of_the_batch_size(make_workdir, make_log):
    data = DataSettings(batch_size=64, ramp_from=8, ramp_tokens=100_000)
    folder = make_workdir(make_log(100), recipe=Pretrain(data=data))
    tokens = BatchRamp(data).tokens_at(100)
    assert dict(_outline(folder).pairs)["tokens"] == f"{tokens:,}"
    assert tokens < 100 * 64 * 256


@pytest.mark.parametrize("lines", [None, []], ids=["without a log", "with an empty log"])
def test_a_run_before_its_first_line_has_a_report(make_workdir, lines):
    folder = make_workdir(lines)
    page = write_report(folder).read_text()
    assert "Nothing has been recorded yet." in page
    assert "step 0 of 1,000" in page
    assert "<svg class" not in page
    assert not list(folder.glob("*.png"))


def test_a_log_without_validation_shows_the_training_loss_alone(make_workdir):
    folder = make_workdir([{"step": step, "loss": 4.0 - step} for step in (1, 2)])
    outline = _outline(folder)
    shown = dict(outline.pairs)
    assert shown["training loss"] == "2.0000 nats per token"
    assert "validation loss" not in shown and "perplexity" not in shown
    labels = [attributes["aria-label"] for tag, attributes in outline.tags if tag == "svg"]
    assert labels == ["Loss, nats per token: training from 3 at step 1 to 2 at step 2"] * 2
    assert not any(tag == "table" for tag, _ in outline.tags)


def test_the_training_curve_is_the_quantity_that_validation_measures(make_workdir):
    """With a z-loss or label smoothing `loss` holds more than the cross-entropy that validation reports."""
    lines = [{"step": step, "loss": 9.0, "cross_entropy": 3.0} for step in (1, 2)]
    shown = _values(make_workdir([*lines, {"step": 2, "validation_loss": 3.5}]))
    assert shown["training loss"] == "3.0000 nats per token"
    assert shown["loss"] == "9.0000"


def test_values_that_are_not_finite_are_counted_and_placed(make_workdir):
    nan, inf = float("nan"), float("inf")
    losses = {10: 5.0, 20: nan, 30: inf, 40: 4.0, 50: -inf}
    lines = [{"step": s, "loss": v, "skipped": 0.0 if v in (5.0, 4.0) else 1.0} for s, v in losses.items()]
    lines.append({"step": 50, "validation_loss": nan, "validation_perplexity": nan})
    folder = make_workdir(lines)
    page = write_report(folder).read_text()
    assert "The training loss was not finite in 3 of 5 lines of the log, first at step 20." in page
    assert "The validation loss was not finite in 1 of 1 line of the log, first at step 50." in page
    assert "3 lines of the log ended on a skipped step" in page
    shown = dict(reversed(Outline(page).pairs))
    assert shown["training loss"] == "-inf nats per token"
    assert shown["validation loss"] == "nan nats per token"
    assert "training from 5 at step 10 to 4 at step 40; validation was never finite" in page


def test_a_log_of_nothing_but_nan_has_a_report(make_workdir):
    folder = make_workdir([{"step": step, "loss": float("nan")} for step in (1, 2, 3)])
    page = write_report(folder).read_text()
    assert "no finite value" in page
    assert (folder / "loss.png").exists()


def test_text_from_a_model_never_becomes_markup(make_workdir, make_log):
    """The page has the same elements, with the same attributes, whatever the sample says."""
    tame = _outline(make_workdir(make_log(200, sample="tame"), name="tame"))
    evil = _outline(make_workdir(make_log(200, sample=EVIL), name="evil"))
    assert evil.tags == tame.tags
    assert evil.samples == [text.replace("tame", EVIL) for text in tame.samples]
    assert evil.samples[0] == f"Once {EVIL} 200"


def test_a_prompt_never_becomes_markup(make_workdir):
    folder = make_workdir(
        [{"step": 1, "prompt": EVIL, "sample": "x"}], recipe=Pretrain(evaluation=EvaluationSettings(prompts=(EVIL,)))
    )
    outline = _outline(folder)
    assert outline.samples == [f"{EVIL}x"]
    assert ("prompts", f"\u201c{EVIL}\u201d") in outline.pairs
    assert not {"script", "img"} & {tag for tag, _ in outline.tags}


def test_characters_that_would_hide_or_reorder_the_page_are_made_visible(make_workdir):
    folder = make_workdir([{"step": 1, "loss": 1.0}])
    sample = json.dumps("a\0b\x1b[31mc\rd\u202ee\ud800f\n\tg\x85")
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(f'{{"step": 2, "prompt": "", "sample": {sample}}}\n')
    assert _outline(folder).samples == ["a\u2400b\u241b[31mc\u240dd\\u202ee\ufffdf\n\tg\\u0085"]


def test_the_newest_samples_come_first_and_the_rest_is_thinned(make_workdir, make_log):
    samples = _outline(make_workdir(make_log(3000))).samples
    assert samples[:2] == ["Once upon a time 3000", "Once upon a time 2900"]
    assert samples[-1] == "Once upon a time 100"
    assert len(samples) == 9


def test_the_recipe_is_shown_whole_and_what_differs_from_the_defaults_stands_out(make_workdir):
    recipe = Pretrain(
        name="own",
        tokenizer=TokenizerSettings(kind="bpe", user_symbols=("<a>", "<b>")),
        model=ModelSettings(layers=6, tied_head=False),
        train=TrainSettings(steps=2000),
    )
    recipe = dataclasses.replace(
        recipe, optimizer=dataclasses.replace(recipe.optimizer, clip_norm=None, schedule=ScheduleSettings(warmup=7))
    )
    page = write_report(make_workdir([], recipe=recipe)).read_text()
    section = page[page.index('id="recipe"') :]
    changed, every = section.split("<details>")
    names = dict(Outline(f"<div>{changed[changed.index('<div') :]}</div>").pairs)
    assert names == {
        "kind": "bpe",
        "user_symbols": "\u201c<a>\u201d, \u201c<b>\u201d",
        "layers": "6",
        "tied_head": "no",
        "steps": "2,000",
        "clip_norm": "not set",
        "schedule.warmup": "7",
    }
    stock = Pretrain(name="own")
    assert len(names) == len(difference(stock, recipe)), "a setting that differs is missing, or one too many is shown"
    shown = [name for name, _ in Outline(page).pairs if name]
    for part in (recipe.model.attention, recipe.model.attention.scores):
        nested = "scores." if part is recipe.model.attention.scores else ""
        own = {field.name for field in dataclasses.fields(part)} - {"scores"}
        assert {f"attention.{nested}{name}" for name in own} <= set(shown)
    for part in (recipe.data, recipe.compute, recipe.mesh, recipe.checkpoint, recipe.log):
        assert {field.name for field in dataclasses.fields(part)} <= set(shown)
    assert every.count("<b>") == len(names)


def test_a_mixture_lists_its_sources_and_how_often_each_was_seen(make_workdir):
    sources = (SourceSettings("text", "a.txt", weight=0.75), SourceSettings("jsonl", "b.jsonl", weight=0.25))
    lines = [{"step": 1, "loss": 1.0, "epochs/0": 0.5, "epochs/1": 2.0}]
    shown = _outline(make_workdir(lines, recipe=Pretrain(data=DataSettings(train=sources)))).pairs
    assert ("train 1", "text a.txt, weight 0.75") in shown and ("train 2", "jsonl b.jsonl, weight 0.25") in shown
    assert ("a.txt", "0.500") in shown and ("b.jsonl", "2.000") in shown


def test_the_page_needs_nothing_but_itself(make_workdir, make_log):
    page = write_report(make_workdir(make_log(200))).read_text()
    tags = Outline(page).tags
    links = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "srcset")]
    assert len(links) == 1 and links[0].startswith("data:")
    references = [attributes["xlink:href"] for _, attributes in tags if "xlink:href" in attributes]
    references += re.findall(r"url\(([^)]*)\)", page)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert references and {reference.lstrip("#") for reference in references} <= set(ids)
    assert len(ids) == len(set(ids)), "drawings share ids, so that one would use parts of another"
    assert "@import" not in page and "<script" not in page
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page


def test_the_charts_take_every_colour_from_the_page(make_workdir, make_log):
    page = write_report(make_workdir(make_log(200))).read_text()
    drawings = re.findall(r"<svg class.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}\b|rgb\(", drawing)
        assert "var(--first)" in drawing and "var(--rule)" in drawing


def test_the_charts_are_png_files_too(make_workdir, make_log):
    folder = make_workdir(make_log(200))
    write_report(folder)
    names = {"loss.png", "learning_rate.png", "gradient_norm.png", "throughput.png"}
    assert {path.name for path in folder.glob("*.png")} == names
    for name in names:
        pixels = (matplotlib.image.imread(folder / name)[..., :3] * 255).round().astype(int)
        assert pixels.shape == (640, 1760, 3)
        assert (pixels == (0x1F, 0x5F, 0xA8)).all(-1).sum() > 500, f"{name} has no curve"


def test_the_same_record_gives_the_same_bytes(make_workdir, make_log):
    folder = make_workdir(make_log(200))
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_a_long_run_gives_a_page_no_larger_than_a_run_a_fifth_as_long(make_workdir, make_log):
    # In both every curve has more points than are drawn.
    short = write_report(make_workdir(make_log(40_000), name="short")).stat().st_size
    long = write_report(make_workdir(make_log(200_000), name="long")).stat().st_size
    assert long < 1.05 * short


def test_a_folder_that_is_no_workdir_is_named(tmp_path, capsys):
    with pytest.raises(UserError, match=r"nowhere: no such folder; expected the workdir of a run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no recipe\.json; expected the workdir of a run"):
        write_report(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no recipe.json" in capsys.readouterr().err


def test_a_damaged_file_is_named(make_workdir):
    folder = make_workdir([])
    (folder / "summary.json").write_text('{"steps": ')
    with pytest.raises(UserError, match=r"summary\.json:1: expected JSON"):
        write_report(folder)
    (folder / "summary.json").write_text("[1]")
    with pytest.raises(UserError, match=r"summary\.json: found \[1\]: expected an object"):
        write_report(folder)
    (folder / "summary.json").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        write_report(folder)


def test_the_command_prints_where_the_report_is(make_workdir, make_log, capsys):
    folder = make_workdir(make_log(20))
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


def test_importing_the_report_loads_neither_matplotlib_nor_jax():
    code = "import sys, lmjax.report.page; print({'matplotlib', 'jax', 'flax'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
