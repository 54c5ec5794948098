"""The pipeline of all kinds of stages that tests of what they learn share, and what JAX has compiled for a test."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

import lmjax
from lmjax.settings import (
    DialogueSettings,
    DialogueSourceSettings,
    KLSettings,
    Pipeline,
    PPOSettings,
    RewardSettings,
    ScheduleSettings,
)
from tests import tiny

FUNCTIONS = """
def letters(prompts, responses):
    assert prompts[0].startswith('User: ')
    return [r.count('a') for r in responses]

def broken(prompts, responses):
    return [float('nan')] * len(responses)

def short(prompts, responses):
    return [0.0]
"""


class Files(NamedTuple):
    """Conversations about single letters, and reward functions."""

    folder: Path
    demonstrations: tuple[DialogueSourceSettings, ...]
    rankings: tuple[DialogueSourceSettings, ...]
    contrary: tuple[DialogueSourceSettings, ...]  # rankings by one who likes what the others do not
    prompts: tuple[DialogueSourceSettings, ...]
    scores: Path  # the functions

    def dialogue(self, name: str, **changes: Any) -> DialogueSettings:
        """Training and validation on the same."""
        own = {"train": getattr(self, name), "validation": getattr(self, name)}
        return tiny.dialogue(**(own | changes))


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("rlhf")
    ranked = [(c, [c * 2, c, "zzz"], [0, 1, 2 if c < "h" else 1]) for c in tiny.LETTERS]
    records = {
        "sft": [{"prompt": c, "answer": c * 2} for c in tiny.LETTERS],
        "ranks": [{"prompt": c, "answers": answers, "ranks": ranks} for c, answers, ranks in ranked],
        "contrary": [{"prompt": c, "answers": [c * 2, c], "ranks": [1, 0]} for c in "abcdefgh"],
        "prompts": [{"prompt": c} for c in tiny.LETTERS],
    }
    (folder / "scores.py").write_text(FUNCTIONS)
    sources = (tiny.write_rows(folder / f"{name}.jsonl", own) for name, own in records.items())
    return Files(folder, *sources, folder / "scores.py")


@pytest.fixture(scope="session")
def stages(files) -> dict[str, Any]:
    """One stage of each kind by name, each a few steps on all devices, evaluated and saved after every second."""
    common = {"evaluation__every": 2, "checkpoint__every": 2, "checkpoint__keep_last": 9}
    base, validated = tiny.base(files.folder, **common), {"dialogue__validation": files.rankings}
    mix = {"mix": base.data.train}
    rewards = RewardSettings(source="reward", known_reward=f"{files.scores}:letters", no_eos_penalty=0.5)
    made = (
        base,
        tiny.sft(
            files.demonstrations,
            dialogue__validation=files.demonstrations,
            dropout=0.1,
            epochs=2.0,
            **mix,
            **common,
        ),
        tiny.reward_model(
            files.rankings, start="sft", held_out_labelers=files.contrary, epochs=10.0, **validated, **common
        ),
        tiny.dpo(files.rankings, start="sft", epochs=2.0, beta=0.5, **validated, **common),
        tiny.ppo(
            files.prompts,
            start="sft",
            reward=rewards,
            dialogue__validation=files.prompts * 2,
            ppo=PPOSettings(response_tokens=6, epochs=2, minibatches=1, ema_decay=0.5, ptx_coefficient=2.0),
            kl=KLSettings(target=3.0),
            mix_length=32,
            train__steps=4,
            optimizer__schedule=ScheduleSettings(warmup=2),
            **mix,
            **common,
        ),
    )
    return {stage.name: stage for stage in made}


@pytest.fixture(scope="session")
def ran(compiled_once, files, stages) -> Path:
    """The pipeline's workdir after a run of all stages."""
    result = lmjax.run(Pipeline("all", tuple(stages.values())), files.folder / "run", quiet=True)
    assert result.exit_code == 0
    return files.folder / "run"


@pytest.fixture(autouse=True)
def _reports_are_not_drawn(no_charts):
    """Besides that of `ran`, which is there before."""


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
