"""Encoders and encoder-decoders, where a command or a stage needs another family: an error that says so."""

import json

import pytest

import lmjax
from lmjax.cli import main
from lmjax.errors import UserError
from lmjax.settings import (
    DPO,
    PPO,
    SFT,
    DialogueSourceSettings,
    Finetune,
    LabelledSettings,
    Pretrain,
    RewardModel,
    RewardSettings,
    RowSettings,
    SourceSettings,
)
from lmjax.settings.model import AttentionSettings, PositionSettings
from lmjax.tasks.sentences import Sentences
from lmjax.tokenizers.wordpiece import wordpiece
from tests import tiny
from tests.fresh import WORDS, checkpoint, encoder

pytestmark = pytest.mark.usefixtures("no_charts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    encoder(folder / "encoder")
    checkpoint(
        folder / "both",
        wordpiece(WORDS, lowercase=True),
        encoder_layers=1,
        context=64,
        positions=PositionSettings(kind="relative"),
        attention=AttentionSettings(heads=2, bias=False),
    )
    (folder / "text.txt").write_text("a b c d e f")
    (folder / "labels.jsonl").write_text("".join(json.dumps({"text": c, "label": "x"}) + "\n" for c in "abcd"))
    tiny.write_rows(folder / "prompts.jsonl", [{"prompt": c} for c in tiny.LETTERS])
    tiny.write_rows(folder / "sft.jsonl", [{"prompt": c, "answer": c * 2} for c in tiny.LETTERS])
    ranked = [{"prompt": c, "answers": [c, "z"], "ranks": [0, 1]} for c in tiny.LETTERS]
    tiny.write_rows(folder / "ranks.jsonl", ranked)
    (folder / "scores.py").write_text("def letters(prompts, responses):\n    return [1.0] * len(responses)\n")
    return folder


COMMANDS = {
    "evaluate": ["evaluate", "{start}", "--data", "{folder}/text.txt"],
    "score": ["score", "{start}", "{folder}/text.txt"],
    "chat": ["chat", "{start}"],
}
SAID = {"encoder": "model.attention.causal = False: expected true", "both": "model.encoder_layers = 1: expected none"}


@pytest.mark.parametrize("start", SAID)
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_read_text_from_left_to_right_name_what_they_need(folder, capsys, command, start):
    words = [word.format(start=folder / start, folder=folder) for word in COMMANDS[command]]
    assert main(words) == 2
    assert SAID[start] in capsys.readouterr().err


def sources(folder, name):
    return (DialogueSourceSettings(path=str(folder / f"{name}.jsonl")),)


STAGES = {
    "sft": lambda folder, start: tiny.stage(SFT, sources(folder, "sft"), start=start),
    "dpo": lambda folder, start: tiny.stage(DPO, sources(folder, "ranks"), start=start),
    "ppo": lambda folder, start: tiny.stage(
        PPO,
        sources(folder, "prompts"),
        start=start,
        reward=RewardSettings(source=f"{folder}/scores.py:letters"),
    ),
    "pretrain": lambda folder, start: tiny.changed(
        Pretrain(start=start), data__train=(SourceSettings(kind="text", path=f"{folder}/text.txt"),) * 1
    ),
}


@pytest.mark.parametrize("kind", STAGES)
def test_stages_that_write_text_do_not_start_from_an_encoder_decoder(folder, tmp_path, kind):
    with pytest.raises(UserError, match=r"one stack|an encoder-decoder"):
        lmjax.run(STAGES[kind](folder, str(folder / "both")), tmp_path / "run", quiet=True)


def test_a_reward_model_and_a_labelled_task_do_neither(folder, tmp_path):
    reward = tiny.stage(RewardModel, sources(folder, "ranks"), start=str(folder / "both"))
    labelled = Finetune(
        start=str(folder / "both"),
        task=Sentences(train=(LabelledSettings(str(folder / "labels.jsonl")),)),
        rows=RowSettings(sequence_length=8, batch_size=8),
    )
    for stage in (reward, labelled):
        with pytest.raises(UserError, match="encoder-decoder"):
            lmjax.run(stage, tmp_path / stage.name, quiet=True)
