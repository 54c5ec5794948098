"""InstructGPT's PPO-ptx (Ouyang et al. 2022, appendix C): a policy of 1.3B, reward and value models of 6.7B parameters.

A benchmark of the planner: `lmjax plan experiments/benchmarks/plan_ppo_1300m_6b.py` compiles a whole iteration, with
its four models on one mesh. An iteration answers 512 prompts and learns from them in 8 minibatches of 64, each beside
512 rows of pretraining text; prompts and answers have at most 1,024 tokens each, which fill the context of 2,048.
`--stage reward` plans the reward model's own step: 64 prompts with 9 answers each.
"""

import dataclasses
from pathlib import Path

from lmjax.model.presets import preset
from lmjax.settings import (
    ComputeSettings,
    DialogueSettings,
    MeshSettings,
    OptimizerSettings,
    Pipeline,
    PlanSettings,
    RewardSettings,
)
from lmjax.settings.recipe_files import load_recipe

CONTEXT = 2048  # tokens
PLACED = {"compute": ComputeSettings(remat="none"), "mesh": MeshSettings(data=1, fsdp=64)}
ADAM = OptimizerSettings(learning_rate=9e-6, b1=0.9, b2=0.95, weight_decay=0.0)


def recipe() -> Pipeline:
    _, reward, ppo = load_recipe(str(Path(__file__).parents[1] / "instructgpt.py")).stages
    reward = dataclasses.replace(
        reward,
        start="runs/gpt3-6700m",
        model=preset("gpt3_6700m"),
        dialogue=DialogueSettings(sequence_length=CONTEXT, batch_size=64, most_answers=9),
        demonstrations=(),
        optimizer=ADAM,
        **PLACED,
    )
    ppo = dataclasses.replace(
        ppo,
        start="runs/gpt3-1300m-sft",
        model=preset("gpt3_1300m"),
        reward=RewardSettings(source="reward"),
        dialogue=DialogueSettings(sequence_length=CONTEXT // 2, batch_size=ppo.dialogue.batch_size),
        ppo=dataclasses.replace(ppo.ppo, response_tokens=CONTEXT // 2),
        plan=PlanSettings(topology="v5p-128"),
        optimizer=ADAM,
        value_optimizer=ADAM,
        **PLACED,
    )
    return Pipeline("plan_ppo_1300m_6b", (reward, ppo))
