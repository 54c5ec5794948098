"""The prompts that a policy is evaluated on, of every source."""

import numpy as np
import pytest

from lmjax.data.batch import TOKENS
from lmjax.data.conversation_rows import RECORD, PromptRows
from lmjax.data.conversations import Prompt, Turn, encode
from lmjax.evaluate.policy import PromptSet
from lmjax.settings import PPO, PPOSettings, RewardSettings, TemplateSettings
from lmjax.tokenizers.byte import ByteTokenizer


@pytest.fixture(scope="module")
def prompts():
    """Two sources, of the letters a to c and of d to g."""
    records = [[Prompt((Turn("user", letter),)) for letter in letters] for letters in ("abc", "defg")]
    rows = [PromptRows(encode([r.turns for r in own], TemplateSettings(), ByteTokenizer()), 24) for own in records]
    return PromptSet(rows, records)


def test_prompts_are_numbered_through_all_sources_and_keep_their_text(prompts):
    recipe = PPO(reward=RewardSettings(source="reward"), ppo=PPOSettings(group=2))
    batch = prompts.batch(np.array([5, 0, 3, 2]))
    assert len(prompts) == 7
    assert batch[RECORD].tolist() == [[5], [0], [3], [2]]
    asked = [f"User: {letter}\nAssistant:" for letter in "fadc"]
    assert [ByteTokenizer().decode(row[row > 0].tolist()) for row in batch[TOKENS]] == asked
    assert prompts.texts(recipe, batch) == [text for text in asked for _ in range(2)]


def test_a_sources_rows_carry_the_numbers_of_the_whole(prompts):
    second = prompts.of_source(1)
    assert len(second) == 4
    np.testing.assert_array_equal(second.batch(np.array([3, 0]))[TOKENS], prompts.batch(np.array([6, 3]))[TOKENS])
    assert second.batch(np.array([3, 0]))[RECORD].tolist() == [[6], [3]]
