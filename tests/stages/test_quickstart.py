"""The quickstart's own recipe, from end to end, with every stage cut short."""

import dataclasses
import json

import pytest

import lmjax
from lmjax.settings import AttentionSettings, Pipeline, TokenizerSettings
from lmjax.settings.recipe_files import load_recipe
from lmjax.training.record import read_metrics
from tests.tiny import changed

STAGES = ["pretrain", "sft", "compare", "reward", "best-of", "ppo"]


def short(stage):
    """The stage with as few prompts and steps as it can have."""
    if stage.name == "pretrain":
        tokenizer = TokenizerSettings(kind="bpe", vocab_size=512, training_bytes=100_000)
        model = {"model__layers": 1, "model__width": 32, "model__attention": AttentionSettings(heads=2)}
        return changed(stage, tokenizer=tokenizer, train__steps=2, evaluation__batches=1, **model)
    short = {f"dialogue__{f}": tuple(map(_few, getattr(stage.dialogue, f))) for f in ("train", "validation")}
    return changed(stage, **short, **({"train__steps": 2, "epochs": None} if hasattr(stage, "train") else {}))


def _few(source):
    """A sixteenth of an embedded source; the comparisons are few already."""
    if source.kind == "file":
        return source
    return dataclasses.replace(source, end=source.begin + (source.end - source.begin) / 16)


@pytest.mark.slow
def test_the_quickstart_goes_from_text_to_a_policy_and_reports_it(tmp_path):
    recipe = load_recipe("quickstart")
    assert [stage.name for stage in recipe.stages] == STAGES
    made = Pipeline("quickstart", tuple(map(short, recipe.stages)))
    first = lmjax.run(made, tmp_path, only="pretrain", quiet=True)
    assert first.exit_code == 0 and list(first.summary) == ["pretrain"]
    assert "<b>Not finished: </b>1 of 6 stages." in (tmp_path / "report.html").read_text()
    assert type(lmjax.load(tmp_path).recipe).__name__ == "Pretrain"
    rest = lmjax.run(made, tmp_path, quiet=True)
    assert rest.exit_code == 0 and list(rest.summary) == STAGES[1:]
    assert "<b>Done: </b>6 of 6 stages." in (tmp_path / "report.html").read_text()
    golds = [line["validation_gold"] for line in read_metrics(tmp_path / "ppo") if "validation_gold" in line]
    assert len(golds) == 2 and all(-1 <= gold <= 2 for gold in golds)
    assert [row["n"] for row in json.loads((tmp_path / "best-of" / "summary.json").read_text())["best_of"]][-1] == 16
    assert type(lmjax.load(tmp_path).recipe).__name__ == "PPO"
