"""The report shows every stage by what it logs, and a pipeline as its stages in order."""

import json

import pytest

from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.report.page import write_report
from lmjax.settings import (
    DPO,
    PPO,
    SFT,
    Compare,
    DialogueSettings,
    DialogueSourceSettings,
    EvaluationSettings,
    ModelSettings,
    PPOSettings,
    Pretrain,
    RewardModel,
    RewardSettings,
    TrainSettings,
)
from lmjax.settings.recipe_files import to_json
from tests.report.test_report import EVIL, Outline

COUNTS = {"parameters": 12_345, "embedding_parameters": 345, "non_embedding_parameters": 12_000}
COUNTS |= {"flops_per_token": 7e4, "flops_per_token_6n": 6e4}
EVALUATION = EvaluationSettings(prompts=("The sea", "A cat"))
STAGES = {
    "base": Pretrain(name="base", model=ModelSettings(layers=3), train=TrainSettings(steps=20), evaluation=EVALUATION),
    "sft": SFT(start="base", epochs=2.0, evaluation=EVALUATION),
    "reward": RewardModel(start="sft", dialogue=DialogueSettings(batch_size=4)),
    "best": Compare(name="best", start="sft", known_reward="gold.py:score", reward_model="reward"),
    "ppo": PPO(
        start="sft",
        reward=RewardSettings(source="reward"),
        dialogue=DialogueSettings(train=(DialogueSourceSettings(path="a.jsonl", end=0.5),), batch_size=4),
        ppo=PPOSettings(group=2, response_tokens=9),
        train=TrainSettings(steps=20),
        evaluation=EVALUATION,
    ),
    "dpo": DPO(start="sft"),
}
BEST_OF = [{"n": n, "kl": k, "gold": 1.0 + k, "proxy": k} for n, k in ((1, 0.0), (4, 0.75), (16, 1.875))]
SUMMARIES = {
    "base": {"steps": 20, **COUNTS},
    "sft": {"steps": 20, **COUNTS},
    "reward": {"steps": 20, **COUNTS},
    "best": {"comparisons": 60, "left_out": 4, "gold": 1.0, "best_of": BEST_OF},
    "ppo": {"steps": 20, **COUNTS},
    "dpo": {"steps": 20, **COUNTS},
}


def lines_of(stage: str, text: str = "text") -> list[dict]:
    """A short log as the stage writes one."""
    texts = [{"step": 20, "prompt": f"{p}|", "sample": f"{stage} {text} {i}"} for i, p in enumerate(EVALUATION.prompts)]
    if stage in ("base", "sft"):
        return [{"step": s, "loss": 3.0 - s / 20, "validation_loss": 3.5 - s / 20} for s in (10, 20)] + texts
    if stage in ("reward", "dpo"):
        table = {"step": 20, "calibration": [[0.6, 0.5, 30.0], [0.9, 0.95, 70.0]]}
        last = {"step": 20, "validation_accuracy": 0.75, "validation_loss": 0.5, "calibration_error": 0.031}
        last |= {"held_out_labelers_accuracy": 0.625} if stage == "reward" else {}
        training = [{"step": s, "loss": 0.7 - s / 100, "accuracy": 0.5 + s / 100, "margin": s / 10} for s in (10, 20)]
        return [*training, table, last | {"accuracy_of_2": 0.7, "accuracy_of_4": 0.8}]
    if stage == "best":
        return []
    lines = []
    for s in (0, 10, 20):
        lines.append({"step": s, "validation_gold": 1.0 + s / 20, "validation_reward": s / 10, "validation_kl": s / 4})
        if s:
            lines.append({"step": s, "reward": s / 11, "kl": s / 5, "entropy": 2.5, "clip_fraction": 0.125})
            lines.append(
                {"step": s, "gold": 0.75 + s / 20, "value_explained": 0.4, "response_length": 7.5, "finished": 0.8}
            )
    return [*lines, *texts, {"step": 20, "prompt": "own|", "sample": "mine", "sample_reward": 0.5, "sample_gold": 1.25}]


@pytest.fixture
def make_pipeline(make_workdir, tmp_path):
    """A function that writes the folders of a pipeline's stages, the last `missing` of them not begun."""

    def make(*names, missing=(), text="text"):
        folder = make_workdir(name="pipe", lines=None)
        (folder / "recipe.json").unlink()
        (folder / "pipeline.json").write_text(json.dumps([*names, *missing]))
        for name in names:
            lines = lines_of(name, text)
            own = make_workdir(lines, recipe=STAGES[name], summary=SUMMARIES[name], name=f"pipe/{name}")
            if not lines:
                (own / "metrics.jsonl").unlink()
        return folder

    return make


def outline(folder) -> Outline:
    return Outline(write_report(folder).read_text(encoding="utf-8"))


def charts(page: Outline) -> list[str]:
    return [a["aria-label"] for tag, a in page.tags if tag == "svg" and a["class"] in ("wide", "small")]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_that_it_is_done_and_what_of(make_pipeline, stage):
    folder = make_pipeline(*STAGES) / stage
    page = write_report(folder).read_text()
    state = {
        "base": "20 steps, each 8 rows of 256 tokens.",
        "sft": "20 steps, each 8 rows of 256 tokens.",
        "reward": "20 steps, each 4 rankings.",
        "best": "60 comparisons of 4 answers, 4 prompts left out; mean gold reward 1.0000.",
        "ppo": "20 steps, each 8 responses of at most 9 tokens.",
        "dpo": "20 steps, each 8 rankings.",
    }
    assert f"<b>Done: </b>{state[stage]}" in page
    assert "3 layers, width 128" in page  # the shape of what it started from
    (folder / "summary.json").unlink()
    page = write_report(folder).read_text()
    assert "<b>Not finished: </b>" in page
    assert ("step 20 of 20" in page) == (stage in ("base", "ppo"))  # of the others the data say how many


def test_a_reward_model_is_shown_by_its_accuracy_and_calibration(make_pipeline):
    page = outline(make_pipeline("base", "sft", "reward") / "reward")
    shown = dict(reversed(page.pairs))
    assert shown["accuracy"] == "75% of held-out pairs"
    assert shown["accuracy on held-out labelers"] == "62.5%"
    assert shown["calibration error"] == "0.031 validation"
    assert shown["rankings"] == "80 trained on"
    drawn = charts(page)
    assert drawn[0].startswith("Pairs in the right order: training from 0.6 at step 10 to 0.7 at step 20; validation")
    assert any(
        label.startswith("Pairs of held-out labelers in the right order: validation from 0.625") for label in drawn
    )
    assert "Accuracy by number of answers: validation from 0.7 at 2 answers to 0.8 at 4 answers" in drawn
    wanted = "in the right order from 0.5 at 0.6 confidence to 0.95 at 0.9 confidence"
    assert any(label.startswith("Calibration of pairs") and label.endswith(wanted) for label in drawn)


def test_ppo_is_shown_by_rewards_divergence_entropy_clipping_value_length_and_ends(make_pipeline):
    page = outline(make_pipeline("base", "sft", "reward", "ppo") / "ppo")
    titles = [label.partition(":")[0] for label in charts(page)]
    assert titles == [
        "Reward",
        "Gold reward over KL",
        "Proxy reward over KL",
        "Gold reward",
        "KL to the start, nats",
        "Entropy, nats per token",
        "Clipped share of the ratios",
        "Variance that the value explains",
        "Response length, tokens",
        "Responses that end by themselves",
    ]
    shown = dict(reversed(page.pairs))
    assert shown["gold reward"] == "2.000 validation"
    assert shown["KL to the start"] == "5 nats per response"
    assert shown["responses"] == "160 trained on"
    assert shown["clipped"] == "12.5%" and (shown["source"], shown["start"]) == ("reward", "sft")
    assert shown["train"] == "a.jsonl, end 0.5"
    assert page.samples[-1] == "own|mine"


def test_what_a_sample_is_worth_stands_beside_it(make_pipeline):
    page = write_report(make_pipeline("ppo") / "ppo").read_text()
    assert 'mine</p><p class="note worth">reward 0.500, gold reward 1.250</p>' in page


def test_a_pipeline_is_one_page_of_its_stages_in_order(make_pipeline, capsys):
    folder = make_pipeline("base", "sft", "reward", missing=("ppo",))
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    page = (folder / "report.html").read_text()
    assert "base \u2192 sft \u2192 reward \u2192 ppo" in page
    assert "<b>Not finished: </b>3 of 4 stages." in page
    links = [a["href"] for tag, a in Outline(page).tags if tag == "a" and "href" in a]
    assert links == ["base/report.html", "sft/report.html", "reward/report.html"]
    assert all((folder / link).is_file() for link in links)
    stages = page[page.index('id="stages"') : page.index('id="samples"')]
    order = [stages.index(f">{text}<") for text in ("base", "sft", "reward", "ppo")]
    assert order == sorted(order)
    assert stages.count("<b>Done: </b>") == 3 and stages.count("Not begun.") == 1
    ids = [a["id"] for _, a in Outline(page).tags if "id" in a]
    assert len(ids) == len(set(ids)), "drawings of two stages share ids"


def test_samples_of_the_stages_stand_side_by_side_for_the_same_prompts(make_pipeline):
    page = outline(make_pipeline("base", "sft", "reward", "ppo"))
    assert page.samples == [
        *("The sea|base text 0", "The sea|sft text 0", "The sea|ppo text 0"),
        *("A cat|base text 1", "A cat|sft text 1", "A cat|ppo text 1"),
    ]


def test_rewards_stand_over_divergence_beside_best_of_n(make_pipeline):
    folder = make_pipeline("base", "sft", "reward", "best", "ppo")
    drawn = charts(outline(folder))
    ppo, best = "ppo from 1 at 0 nats of KL to 2 at 5 nats of KL", "best of 16 from 1 at 0 nats of KL to 2.88 at 1.88"
    assert f"Gold reward over KL: {ppo}; {best} nats of KL" in drawn
    assert any(label.startswith("Proxy reward over KL: ppo from 0 at 0 nats") for label in drawn)
    assert (folder / "ppo-gold_over_kl.png").exists()
    rows = write_report(folder).read_text().split("<tr>")
    assert any("16</th><td>2.8750</td><td>1.8750</td><td>1.875</td>" in row for row in rows)
    other = RewardSettings(source="another")  # best of n by a reward that this policy did not learn from
    (folder / "ppo" / "recipe.json").write_text(to_json(PPO(start="sft", reward=other)))
    assert not any("best of" in label for label in charts(outline(folder)))


def test_text_of_any_stage_never_becomes_markup(make_pipeline):
    page = outline(make_pipeline("base", "sft", "ppo", text=EVIL))
    assert page.samples[0] == f"The sea|base {EVIL} 0"
    assert not {"script", "img"} & {tag for tag, _ in page.tags}


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_pipeline_loads_alone_and_fits(browser, make_pipeline, width, scheme):
    report = write_report(make_pipeline("base", "sft", "reward", "best", "ppo", missing=("n" * 60,), text="W" * 400))
    browser.open(report, width=width, scheme=scheme)
    requests = [event["request"]["url"] for method, event in browser.events if method == "Network.requestWillBeSent"]
    assert requests == [report.as_uri()]
    assert browser.value("document.documentElement.scrollWidth") == width == browser.value("innerWidth")
    tops = "[...document.querySelectorAll('.beside')[0].children].map(e => e.getBoundingClientRect().top)"
    beside = len(set(browser.value(tops)))
    assert beside == (3 if width == 390 else 1), "three stages side by side, or one above the other on a phone"


def test_a_damaged_list_of_stages_is_named(tmp_path):
    (tmp_path / "pipeline.json").write_text('["a", ')
    with pytest.raises(UserError, match=r"pipeline\.json: expected a list of stages"):
        write_report(tmp_path)
