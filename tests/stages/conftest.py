"""A recipe of a few steps over a few kilobytes of text, and what its runs are compared by."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lmjax
from lmjax.optim.train_state import TrainState
from lmjax.parallel.mesh import make_mesh
from lmjax.settings import (
    AttentionSettings,
    CheckpointSettings,
    DataSettings,
    DialogueSettings,
    DialogueSourceSettings,
    EvaluationSettings,
    LogSettings,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    Pipeline,
    Pretrain,
    RewardModel,
    SourceSettings,
    TrainSettings,
)
from lmjax.stages.pretrain import pretrain
from lmjax.tasks.resolved import resolve
from lmjax.tasks.task import Session
from lmjax.training.progress import ProgressDisplay
from lmjax.training.record import read_metrics
from lmjax.training.stop import StopRequest


@pytest.fixture(scope="session", autouse=True)
def _programs_are_compiled_once(tmp_path_factory):
    """Every run compiles the same few programs: they are kept in a folder of this test session."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """A folder with train.txt and validation.txt: lines of words, every one another document."""
    folder = tmp_path_factory.mktemp("texts")
    rng = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "to", "sea"]
    for name, lines in (("train", 200), ("validation", 12)):
        (folder / f"{name}.txt").write_text("".join(" ".join(rng.choices(words, k=8)) + "\n" for _ in range(lines)))
    return folder


@pytest.fixture(scope="session")
def tiny(texts) -> Callable[..., Pretrain]:
    """A function from parts of a recipe to a recipe of 10 steps over 8 rows of 16 bytes.

    Most tests leave model, optimizer and steps as they are, so that all compile the same programs.
    """
    sources = {
        name: (SourceSettings(kind="text", path=str(texts / f"{name}.txt"), documents="line"),)
        for name in ("train", "validation")
    }
    attention = AttentionSettings(heads=2)
    parts = {
        "name": "tiny",
        "model": ModelSettings(layers=1, width=16, context=16, vocab_size=384, attention=attention, dropout=0.1),
        "optimizer": OptimizerSettings(learning_rate=1e-2),
        "train": TrainSettings(steps=10),
        "evaluation": EvaluationSettings(every=100),
        "checkpoint": CheckpointSettings(every=4),
        "log": LogSettings(every=1, tensorboard=False),
    }

    def make(data: dict | None = None, **changes) -> Pretrain:
        return Pretrain(
            **{"data": DataSettings(**{"sequence_length": 16, "batch_size": 8, **sources, **(data or {})})}
            | parts
            | changes
        )

    return make


@pytest.fixture(scope="session")
def train() -> Callable[..., TrainState]:
    """A function (recipe, workdir) -> the state that pretraining ends with, on some of the devices."""

    def run(recipe: Pretrain, workdir: Path, stop: StopRequest | None = None, devices: int = 2) -> TrainState:
        workdir.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "lmjax.tasks.resolved.make_mesh", lambda settings: make_mesh(settings, jax.devices()[:devices])
            )
            session = Session(stop or StopRequest(), ProgressDisplay(silent=True))
            return pretrain(resolve(recipe, folder=workdir), session).state

    return run


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, list], tuple[DialogueSourceSettings, ...]]:
    """A function that writes records to a file and gives the source that reads them."""

    def write(path: Path, rows: list) -> tuple[DialogueSourceSettings, ...]:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return (DialogueSourceSettings(path=str(path)),)

    return write


@pytest.fixture(scope="session")
def common() -> dict:
    """What every stage that goes on from `rewarded` sets."""
    return {"mesh": MeshSettings(data=8), "log": LogSettings(every=1, tensorboard=False)}


@pytest.fixture(scope="session")
def rewarded(tmp_path_factory, write_rows, common) -> Path:
    """A pipeline's workdir with `base`, a language model, and `reward`, trained on it for a few steps."""
    folder = tmp_path_factory.mktemp("rewarded")
    letters = "abcdefghijklmnop"
    (folder / "text.txt").write_text("\n".join(f"User: {c}\nAssistant: {c}{c}" for c in letters * 20))
    rankings = write_rows(folder / "ranks.jsonl", [{"prompt": c, "chosen": c * 2, "rejected": c} for c in letters])
    text = (SourceSettings(kind="text", path=str(folder / "text.txt")),)
    optimizer = OptimizerSettings(learning_rate=1e-2, weight_decay=0.0)
    base = Pretrain(
        name="base",
        data=DataSettings(train=text, validation=text, sequence_length=32, batch_size=8),
        model=ModelSettings(layers=1, width=16, context=48, attention=AttentionSettings(heads=2)),
        train=TrainSettings(steps=2),
        **common,
    )
    dialogue = DialogueSettings(train=rankings, sequence_length=32, batch_size=8, too_long="skip")
    reward = RewardModel(start="base", dialogue=dialogue, epochs=2.0, optimizer=optimizer, **common)
    assert lmjax.run(Pipeline("rewarded", (base, reward)), folder / "run", quiet=True).exit_code == 0
    return folder / "run"


@pytest.fixture
def record() -> Callable[[Path, str], dict[int, float]]:
    """A function (workdir, name) -> the values of that name in the record, by step."""
    return lambda folder, name: {line["step"]: line[name] for line in read_metrics(folder) if name in line}


@pytest.fixture
def assert_same_bits() -> Callable[..., None]:
    """A function that compares two trees of arrays bit for bit."""

    def compare(a, b) -> None:
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
            x, y = np.asarray(x), np.asarray(y)
            assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)

    return compare


@pytest.fixture
def lowered():
    """The names of the functions that JAX has lowered for its compiler, each as often as that happened."""
    names = []

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)
