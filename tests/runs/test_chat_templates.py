"""A stage that writes conversations by a name or by the model's own template: trained, resumed, talked to, exported."""

import json
import signal

import jax
import numpy as np
import pytest
import tokenizers

import lmjax
from lmjax.checkpoints.checkpoint import find_checkpoint
from lmjax.cli import main
from lmjax.data.conversations import Turn
from lmjax.data.named_templates import NAMED
from lmjax.errors import UserError
from lmjax.generate.chat import StageTurns
from lmjax.interop.chat_template import read_chat_template
from lmjax.interop.huggingface import write_model
from lmjax.model.language_model import LanguageModel
from lmjax.runs.convert import export_folder, import_folder
from lmjax.settings import AttentionSettings, ModelSettings, TemplateSettings
from lmjax.tokenizers.byte_level_bpe import byte_level_pipeline
from lmjax.tokenizers.pipeline import BYTES
from tests.running import interrupted
from tests.tiny import ppo, sft, write_recipe, write_rows

SETTINGS = ModelSettings(layers=1, width=16, context=192, vocab_size=280, attention=AttentionSettings(heads=2))
MARKERS = ["<|im_start|>", "<|im_end|>", "<end_of_turn>"]
OWN = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


@pytest.fixture
def start(tmp_path, two_devices):
    """The checkpoint of an imported model that came with a chat template."""
    folder = tmp_path / "hf"
    shapes = jax.eval_shape(LanguageModel(SETTINGS).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    write_model(folder, SETTINGS, jax.tree.map(lambda x: rng.normal(0.0, 0.1, x.shape).astype(np.float32), shapes))
    vocabulary = {token: index for index, token in enumerate([*sorted(BYTES), *MARKERS])}
    pipeline = byte_level_pipeline(vocabulary, [], folder)
    pipeline.add_special_tokens([tokenizers.AddedToken(marker, special=True) for marker in MARKERS])
    (folder / "tokenizer.json").write_text(pipeline.to_str())
    config = {"eos_token": "<|im_end|>", "chat_template": OWN, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    import_folder(folder, tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", [{"prompt": c, "response": c * 2} for c in "abcdefgh"])


@pytest.mark.parametrize("name", ["own", "chatml"])
def test_a_stage_resumes_talks_and_is_exported_by_its_template(name, start, rows, tmp_path):
    template = TemplateSettings(name=name)
    own = {"epochs": None, "train__steps": 6, "checkpoint__every": 2, "dialogue__sequence_length": 96}
    stage = sft(rows, start=str(start), dialogue__template=template, **own)
    with interrupted(3, signal.SIGTERM):
        lmjax.run(stage, tmp_path / "run", quiet=True)
    assert lmjax.run(stage, tmp_path / "run", quiet=True).summary["steps"] == 6
    trained = lmjax.load(tmp_path / "run")
    assert isinstance(trained.turns, StageTurns) and trained.recipe.template.name == name
    begin = "<|im_start|>user{0}a<|im_end|>{1}<|im_start|>assistant{0}"
    prompt = begin.format(*((": ", "") if name == "own" else ("\n", "\n")))
    assert trained.turns.prompt((Turn("user", "a"),), trained.tokenizer) == trained.tokenizer.encode(prompt)
    said = export_folder(tmp_path / "run", tmp_path / "out")
    assert "chat template: that of the stage 'sft'" in said
    messages = [{"role": "user", "content": "a"}]
    assert read_chat_template(tmp_path / "out").render(messages) == prompt
    again = json.loads(find_checkpoint(tmp_path / "run").extras()["recipe"])["dialogue"]["template"]
    assert again["jinja"] == (OWN if name == "own" else NAMED["chatml"].source_for(True))


def test_sampling_needs_answers_that_end_with_the_end_of_text(start, rows, tmp_path):
    (tmp_path / "rewards.py").write_text("def one(prompts, responses):\n    return [1.0] * len(responses)\n")
    reward = {"reward__source": f"{tmp_path / 'rewards.py'}:one", "epochs": None, "train__steps": 1}
    stage = ppo(rows, start=str(start), dialogue__template=TemplateSettings(name="gemma"), **reward)
    with pytest.raises(UserError, match=r"dialogue.template = 'gemma': expected one whose answers end with the tokeni"):
        lmjax.run(stage, tmp_path / "run", quiet=True)


def test_a_template_that_refuses_the_data_ends_with_a_message_and_exit_code_2(start, tmp_path, monkeypatch, capsys):
    system = [{"messages": [{"role": r, "content": "x"} for r in ("system", "user", "assistant")]}] * 8
    stage = sft(
        write_rows(tmp_path / "rows.jsonl", system), start=str(start), dialogue__template=TemplateSettings(name="gemma")
    )
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "mine.py", stage)
    assert main(["run", "mine.py", "--workdir", "run"]) == 2
    said = capsys.readouterr().err
    assert "dialogue.template gemma: its chat template failed: TemplateError: expected user and assistant" in said
    assert "Traceback" not in said
