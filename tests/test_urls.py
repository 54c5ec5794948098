"""A URL where a path is expected is refused before anything is read, written or trained; no folder `gs:` appears.

Workdirs and checkpoints may be on a bucket, `gs://`: see tests/bucket.
"""

from pathlib import Path

import pytest

import lmjax
from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.fields import require_local
from lmjax.plan.planner import plan
from lmjax.report.page import write_report
from lmjax.runs.convert import export_folder, import_folder
from lmjax.settings import (
    DPO,
    PPO,
    SFT,
    Compare,
    DialogueSourceSettings,
    ModelSettings,
    PlanSettings,
    Pretrain,
    RewardSettings,
    SourceSettings,
    TokenizerSettings,
)
from lmjax.stages.prepare_data import prepare_data, train_tokenizer
from lmjax.training.progress import ProgressDisplay

COMMANDS = [
    "run quickstart --workdir s3://bucket/folder",
    "run quickstart --executable URL",
    "run URL",
    "run quickstart --data.train.0.kind text --data.train.0.path URL",
    "run quickstart --tokenizer.kind bpe --tokenizer.path URL",
    "data prepare quickstart --out URL",
    "tokenizer train quickstart --out URL",
    "generate s3://bucket/folder --prompt a",
    "chat s3://bucket/folder",
    "score s3://bucket/folder answers.jsonl",
    "score runs/x URL",
    "report URL",
    "import-hf URL out",
    "import-hf folder URL",
    "export-hf s3://bucket/folder out",
    "export-hf runs/x URL",
    "plan gpt2 --topology v5e-16 --hlo URL",
    "plan gpt2 --topology v5e-16 --save URL",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_urls_first(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    url = "https://host/recipe.py" if "run URL" in command else "gs://bucket/folder"
    url = "s3://bucket/folder" if "s3:" in command else url
    try:
        code = main(command.replace("URL", url).split())
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said
    plain = " ".join(said.replace("│", " ").split())
    assert f"'{url}': expected a path of this machine, lmjax opens no URLs" in plain
    assert ("gcsfuse --implicit-dirs BUCKET DIR" in plain) == url.startswith("gs:")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["gs://b/x", "gcs://b", "s3://b/x", "https://h/x", "file:///x", "memory://x", "hf://a/b"]
)
@pytest.mark.parametrize("as_path", [False, True])
def test_every_scheme_is_known_also_when_path_took_a_slash_away(url, as_path):
    given = Path(url) if as_path else url
    with pytest.raises(UserError, match=r"^out = '[a-z0-9]+://[a-z]+.*': expected a path of this machine"):
        require_local("out", given)


@pytest.mark.parametrize(
    "path",
    [
        None,
        "",
        "runs/x",
        "/a/b",
        "a:b",
        "file.py:reward",
        "package.module:f",
        "C:/x",
        "./gs:/x",
        "a b://c",
        "gpt2:124m",
    ],
)
def test_paths_functions_and_sizes_are_let_through(path):
    require_local("out", path)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda url: SourceSettings(kind="tfds", path=url), "SourceSettings.path"),
        (lambda url: TokenizerSettings(path=url), "TokenizerSettings.path"),
        (lambda url: DialogueSourceSettings(path=url), "DialogueSourceSettings.path"),
        (lambda url: RewardSettings(source=url), "RewardSettings.source"),
        (lambda url: SFT(start=url), "start"),
        (lambda url: SFT(start="a", reward_model=url), "reward_model"),
        (lambda url: DPO(start=url), "start"),
        (lambda url: PPO(start="a", reference=url), "reference"),
        (lambda url: Compare(start="a", known_reward="g.py:f", reward_model=url), "reward_model"),
    ],
)
def test_every_field_of_a_recipe_that_is_a_path_is_named(make, field):
    with pytest.raises(UserError, match=rf"^{field} = 's3://bucket/x': expected a path of this machine"):
        make("s3://bucket/x")


def test_a_bucket_is_let_through_only_where_it_is_read_or_written():
    SFT(start="gs://bucket/x", reward_model="gs://bucket/y")
    PPO(start="a", reference="gs://bucket/x", reward=RewardSettings(source="gs://bucket/y"))
    require_local("workdir", Path("gs://bucket/x"), bucket=True)
    for make in (
        lambda: SourceSettings(kind="text", path="gs://b/x"),
        lambda: Compare(start="a", known_reward="gs://b/x"),
    ):
        with pytest.raises(UserError, match=r"= 'gs://b/x': expected a path of this machine"):
            make()
    with pytest.raises(UserError, match=r"^workdir = 's3://bucket/x': expected a path of this machine"):
        require_local("workdir", "s3://bucket/x", bucket=True)


def test_every_function_refuses_urls_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url, recipe, display = "gs://bucket/x", Pretrain(), ProgressDisplay(silent=True)
    other = "s3://bucket/x"
    planned = Pretrain(model=ModelSettings(vocab_size=512), plan=PlanSettings(topology="v5e-4"))
    for call in (
        lambda: lmjax.run(recipe, other),
        lambda: lmjax.load(other),
        lambda: train_tokenizer(recipe, Path(url), display),
        lambda: prepare_data(recipe, Path(url), display),
        lambda: write_report(url),
        lambda: import_folder(tmp_path, url),
        lambda: import_folder(url, tmp_path / "out"),
        lambda: export_folder(tmp_path, url),
        lambda: export_folder(other, tmp_path / "out"),
        lambda: plan(planned, hlo=Path(url)),
    ):
        with pytest.raises(UserError, match=r"'(gs|s3)://bucket/x': expected a path of this machine"):
            call()
    assert list(tmp_path.iterdir()) == []
