"""Damaged files of runs: recipe.json, all of a workdir and a pipeline, checkpoints, answers of comparisons, shards.

They are reported, run again, loaded and resumed.
"""

import dataclasses
import json
import shutil

import pytest

import lmjax
from lmjax.checkpoints.checkpoint import find_checkpoint
from lmjax.checkpoints.digests import DIGESTS_FILE, EXTRAS_FILE
from lmjax.checkpoints.evaluated import Evaluated
from lmjax.data.sources import MemoryDocuments
from lmjax.data.token_shards import TokenShards
from lmjax.data.verified import verify_once
from lmjax.data.write_shards import prepare_shards
from lmjax.report import charts
from lmjax.report.page import write_report
from lmjax.runs.pipeline import plan_stages
from lmjax.runs.run import run
from lmjax.settings import Pipeline
from lmjax.settings.recipe_files import from_json, load_recipe, to_json
from lmjax.stages.compare import _Answered
from lmjax.tokenizers.byte import ByteTokenizer

from .harness import survives, written
from .mutations import damaged_bytes, damaged_json

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["quickstart", "gpt1", "instructgpt"])
def test_recipe_json(name):
    """2,400 inputs over the three."""
    recipe = load_recipe(name)
    stages = getattr(recipe, "stages", (recipe,))
    for number, stage in enumerate(stages):
        text = to_json(stage)
        read = lambda data: from_json(data.decode(errors="replace"))  # noqa: E731
        survives(read, lambda rng, text=text: damaged_json(text, rng), 800 // len(stages), number)


@pytest.fixture(scope="module")
def recipe():
    """Of a few steps of a tiny model."""
    text = json.loads(to_json(load_recipe("quickstart").stages[0]))
    text["train"]["steps"] = 2
    text["tokenizer"] = {"kind": "byte"}
    text["model"] |= {"layers": 1, "width": 16, "vocab_size": None}
    text["evaluation"] |= {"batches": 1, "prompts": ["a"], "sample_tokens": 2}
    text["name"] = "pretrain"
    return from_json(json.dumps(text))


@pytest.fixture(scope="module")
def workdir(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(recipe, folder, quiet=True)
    with (folder / "metrics.jsonl").open("a") as file:  # as a run writes it whose recipe changed, and a reward model's
        file.write('{"step": 2, "changed": ["log.every: 1 -> 2"]}\n{"step": 2, "calibration": [[0.5, 0.5, 3.0]]}\n')
    return folder


@pytest.fixture(autouse=True)
def draw_once(monkeypatch):
    """A chart that was drawn is not drawn again, which would take nearly all of the time."""
    draw, drawn = charts._rendered, {}

    def once(*chart, **options):
        known = repr((chart, options))
        if known not in drawn:
            drawn[known] = draw(*chart, **options)
        return drawn[known]

    monkeypatch.setattr(charts, "_rendered", once)


@pytest.fixture
def own(workdir, tmp_path):
    """A copy."""
    return shutil.copytree(workdir, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "trials"), [("recipe.json", 200), ("summary.json", 300), ("environment.json", 200), ("metrics.jsonl", 300)]
)
def test_reports(own, name, trials):
    text = (own / name).read_text()
    survives(written(own / name, lambda: write_report(own)), lambda rng: damaged_json(text, rng), trials, 1)


@pytest.mark.parametrize("name", ["recipe.json", "summary.json", "environment.json", "metrics.jsonl", "origins.json"])
def test_a_finished_run_again(own, recipe, name):
    whole = (own / name).read_text()
    kept = {path: path.read_bytes() for path in own.iterdir() if path.is_file()}

    def again(data):
        for path, content in kept.items():
            path.write_bytes(content)
        (own / name).write_bytes(data)
        run(recipe, own, quiet=True)

    always = "" if name in ("summary.json", "metrics.jsonl", "origins.json") else "taken"
    survives(again, lambda rng: damaged_json(whole, rng), 100, 3, always=always)


@pytest.mark.parametrize("what", ["report", "plan"])
@pytest.mark.parametrize("name", ["pipeline.json", "pretrain/recipe.json", "pretrain/summary.json", "sft/origins.json"])
def test_pipelines(workdir, recipe, tmp_path, name, what):
    """Reported, and planned as a run does that finds it."""
    own, ignored = tmp_path / "all", shutil.ignore_patterns("tokens", "checkpoints")
    for stage in ("pretrain", "sft"):
        shutil.copytree(workdir, own / stage, ignore=ignored)
    (own / "pipeline.json").write_text('["pretrain", "sft"]')
    both = Pipeline("all", (recipe, dataclasses.replace(recipe, name="sft")))
    text = (own / name).read_text()
    call = (lambda: write_report(own)) if what == "report" else (lambda: plan_stages(both, own))
    unread = {("pipeline.json", "plan"), ("sft/origins.json", "report"), ("pretrain/recipe.json", "plan")}
    always = "taken" if (name, what) in unread else ""
    trials = 100 if what == "report" else 150
    survives(written(own / name, call), lambda rng: damaged_json(text, rng), trials, 4, always=always)


def newest(folder):
    return find_checkpoint(folder).path


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("name", [str(EXTRAS_FILE), DIGESTS_FILE, "evaluations.json"])
def test_checkpoints(own, name, digests):
    """With their digests, and as an older version wrote them."""
    step = newest(own)
    path = step.parent / name if name == "evaluations.json" else step / name
    if not digests:
        extras = json.loads((step / EXTRAS_FILE).read_text())
        (step / EXTRAS_FILE).write_text(json.dumps({k: v for k, v in extras.items() if k != "digests"}))
        (step / DIGESTS_FILE).unlink()
    text = path.read_text() if path.exists() else '{"steps": {"2": {"validation_loss": 1.5}}, "sha256": "00"}'
    if name == DIGESTS_FILE and not digests:
        text = '{"step": 2, "files": {}}'
    survives(written(path, lambda: opened(own)), lambda rng: damaged_json(text, rng), 150, 5, always="either")


def opened(folder):
    """All that a load, a report and a resumption read of a checkpoint, but for its arrays."""
    found = find_checkpoint(folder)
    extras = found.extras()
    from_json(extras["recipe"], "recipe")
    found.unpack_tokenizer(folder / "unpacked")
    found.metrics()
    Evaluated(found.path.parent).note(found.step, {"validation_loss": 1.0}, [found.step])


def test_load(own):
    step = newest(own)
    extras = json.loads((step / EXTRAS_FILE).read_text())
    (step / EXTRAS_FILE).write_text(json.dumps({k: v for k, v in extras.items() if k != "digests"}))
    (step / DIGESTS_FILE).unlink()
    text = (step / EXTRAS_FILE).read_text()
    survives(written(step / EXTRAS_FILE, lambda: lmjax.load(own)), lambda rng: damaged_json(text, rng), 240, 6)


def test_answers_of_a_comparison(tmp_path):
    """Of three batches of two prompts and two answers each."""
    lines = [{"texts": ["a", "b", "c", ""], "finished": [True] * 4, "scores": s} for s in ([0.5, 1, 2, 3], None, None)]
    text = "\n".join(map(json.dumps, [*lines, {}]))
    path = tmp_path / "answered.jsonl"

    def read():
        answered = _Answered(path)
        while answered.take():
            pass

    survives(written(path, read), lambda rng: damaged_json(text, rng), 800, 7)


def test_token_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = [f"document {i} has some words" for i in range(20)]
    prepare_shards(MemoryDocuments(texts), ByteTokenizer(), tmp_path / "shards", fingerprint="bytes")
    for number, name in enumerate(("manifest.json", "documents.bin", "tokens-00000.bin")):
        path = tmp_path / "shards" / name
        data = path.read_bytes()

        def read():
            shards = TokenShards(tmp_path / "shards")
            verify_once(shards, 257, lambda line: None)
            shards.document(0)

        def make(rng, data=data, name=name):
            return damaged_json(data.decode(), rng) if name == "manifest.json" else damaged_bytes(data, rng)

        trials, always = (900, "") if name == "manifest.json" else (150, "refused")
        survives(written(path, read), make, trials, 8 + number, always=always)
        path.write_bytes(data)


def test_what_was_verified(tmp_path, monkeypatch):
    """What cannot be read is verified again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare_shards(MemoryDocuments(["some words"]), ByteTokenizer(), tmp_path / "shards", fingerprint="bytes")
    shards = TokenShards(tmp_path / "shards")
    verify_once(shards, 257, lambda line: None)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    text = kept.read_text()
    read = written(kept, lambda: verify_once(shards, 257, lambda line: None))
    survives(read, lambda rng: damaged_json(text, rng), 200, 11, always="taken")
