"""What a stage starts from is checked before anything is computed."""

import jax.numpy as jnp
import pytest

from lmjax.checkpoints.checkpoint import Checkpointer
from lmjax.checkpoints.initial import open_initial, open_reward_model
from lmjax.errors import UserError
from lmjax.optim.train_state import TrainState
from lmjax.settings import SFT, CheckpointSettings, ModelSettings, RewardModel, TokenizerSettings
from lmjax.settings.recipe_files import to_json
from lmjax.tokenizers.byte import ByteTokenizer
from lmjax.tokenizers.byte_level_bpe import train_bpe

BYTES = ByteTokenizer()
SHAPE = ModelSettings(layers=1, width=16)


@pytest.fixture
def saved(tmp_path):
    """A function (stage, tokenizer) that writes a workdir with a checkpoint of that stage, and nothing to train."""

    def save(stage, tokenizer):
        folder = tmp_path / stage.name
        tokenizer.save(folder / "tokenizer")
        settings, recipe = CheckpointSettings(), to_json(stage)
        place = folder / "checkpoints" / stage.name
        with Checkpointer(
            place, settings, recipe_json=recipe, tokenizer_folder=folder / "tokenizer", report=print
        ) as checkpointer:
            state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(3)}, {"m": jnp.zeros(3)})
            checkpointer.save(state, 1, {})
        return folder

    return save


def test_a_reward_model_with_another_tokenizer_than_the_policys_is_refused(saved, tmp_path):
    other = train_bpe(TokenizerSettings(kind="bpe", vocab_size=260), ["the cat sat on the mat"] * 50)
    policy = open_initial(str(saved(SFT(start="base", model=SHAPE), BYTES)), tmp_path / "ppo")
    same = saved(RewardModel(name="same", start="base", model=SHAPE), BYTES)
    another = saved(RewardModel(name="another", start="base", model=SHAPE), other)
    assert open_reward_model(str(same), tmp_path / "ppo", policy, "reward.source").recipe.name == "same"
    with pytest.raises(UserError, match=r"reward\.source = '.*another': expected a reward model with the policy's tok"):
        open_reward_model(str(another), tmp_path / "ppo", policy, "reward.source")


def test_what_a_stage_starts_from_must_be_named_and_have_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"start = '': expected a stage's name or a checkpoint"):
        open_initial("", tmp_path)
    with pytest.raises(UserError, match="no checkpoint"):
        open_initial("nowhere", tmp_path)
