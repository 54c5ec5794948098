"""Fixtures of tests that train: texts and a recipe over them, a function that trains it, and a trained reward model."""

import random
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lmjax
from lmjax.optim.train_state import TrainState
from lmjax.settings import Pipeline, Pretrain, SourceSettings
from lmjax.stages.pretrain import pretrain
from lmjax.tasks.resolved import resolve
from lmjax.tasks.task import Session
from lmjax.training.progress import ProgressDisplay
from lmjax.training.stop import StopRequest
from tests import tiny as recipes
from tests.running import on_devices, without_charts


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory) -> None:
    """Every run compiles the same few programs: they are kept in a folder of this test session."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> dict[str, tuple[SourceSettings, ...]]:
    """Texts by the names train and validation: lines of words, every one another document."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    words = ("the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "sea")
    lines = {"train": 200, "validation": 12}
    return {name: recipes.sentences(folder / f"{name}.txt", n, rng, words, 8) for name, n in lines.items()}


@pytest.fixture(scope="session")
def texts(sources) -> Path:
    """The folder of these texts, train.txt and validation.txt."""
    return Path(sources["train"][0].path).parent


@pytest.fixture(scope="session")
def tiny(compiled_once, sources) -> Callable[..., Pretrain]:
    """A function from values of fields to a recipe of 10 steps over 8 rows of 16 bytes of these texts.

    Most tests leave model, optimizer and steps as they are, so that all compile the same programs.
    """
    own = {"model__vocab_size": 384, "model__dropout": 0.1, "checkpoint__every": 4}
    return lambda **changes: recipes.pretrain(*sources.values(), **recipes.over(own, changes))


@pytest.fixture(scope="session")
def train(compiled_once) -> Callable[..., TrainState]:
    """A function (recipe, workdir) -> the state that pretraining ends with, on some of the devices."""

    def run(recipe: Pretrain, workdir: Path, stop: StopRequest | None = None, devices: int = 2) -> TrainState:
        workdir.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            on_devices(patch, devices)
            session = Session(stop or StopRequest(), ProgressDisplay(silent=True))
            return pretrain(resolve(recipe, folder=workdir), session).state

    return run


@pytest.fixture(scope="session")
def whole(tiny, train, tmp_path_factory) -> tuple[Pretrain, Path, TrainState]:
    """An uninterrupted run of that recipe, evaluated after every fourth step: (recipe, workdir, state)."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = tiny(evaluation__every=4)
    return recipe, folder, train(recipe, folder)


@pytest.fixture
def two_devices(compiled_once, monkeypatch) -> None:
    """What a test runs has a mesh of two devices."""
    on_devices(monkeypatch)


@pytest.fixture
def no_charts(monkeypatch) -> None:
    """What a test runs has reports without drawings."""
    without_charts(monkeypatch)


@pytest.fixture(scope="session")
def rewarded(compiled_once, tmp_path_factory) -> Path:
    """A pipeline's workdir with `base`, a language model, and `reward`, trained on it for a few steps."""
    folder = tmp_path_factory.mktemp("rewarded")
    ranked = [{"prompt": c, "chosen": c * 2, "rejected": c} for c in recipes.LETTERS]
    rankings = recipes.write_rows(folder / "ranks.jsonl", ranked)
    reward = recipes.reward_model(rankings, dialogue__too_long="skip", epochs=2.0)
    pipeline = Pipeline("rewarded", (recipes.base(folder), reward))
    with pytest.MonkeyPatch.context() as patch:
        on_devices(patch)
        without_charts(patch)
        assert lmjax.run(pipeline, folder / "run", quiet=True).exit_code == 0
    return folder / "run"
