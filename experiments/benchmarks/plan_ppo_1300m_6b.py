"""InstructGPT's PPO-ptx (Ouyang et al. 2022, appendix C): a policy of 1.3B, reward and value models of 6.7B parameters.

A benchmark of the planner: `lmjax plan experiments/benchmarks/plan_ppo_1300m_6b.py` compiles a whole iteration, with
its four models on one mesh. An iteration answers 512 prompts and learns from them in 8 minibatches of 64, each beside
512 rows of pretraining text; prompts and answers have at most 1,024 tokens each, which fill the context of 2,048.
`--stage reward` plans the reward model's own step: 64 prompts with 9 answers each.
"""

from lmjax.model.presets import preset
from lmjax.recipe import PPO, Pipeline, RewardModel
from lmjax.rlhf_settings import DialogueSettings, KLSettings, PPOSettings, RewardSettings
from lmjax.settings import ComputeSettings, MeshSettings, OptimizerSettings, PlanSettings, SourceSettings, TrainSettings

CONTEXT = 2048  # tokens
EPISODES, BATCH, MINIBATCH = 256_000, 512, 64
MESH = MeshSettings(data=1, fsdp=64)


def adam(rate: float) -> OptimizerSettings:
    return OptimizerSettings(learning_rate=rate, b1=0.9, b2=0.95, weight_decay=0.0)


def recipe() -> Pipeline:
    reward = RewardModel(
        start="runs/gpt3-6700m",
        model=preset("gpt3_6700m"),
        dialogue=DialogueSettings(sequence_length=CONTEXT, batch_size=64, most_answers=9),
        compute=ComputeSettings(remat="full"),
        mesh=MESH,
        optimizer=adam(9e-6),
    )
    ppo = PPO(
        start="runs/gpt3-1300m-sft",
        model=preset("gpt3_1300m"),
        reward=RewardSettings(source="reward"),
        dialogue=DialogueSettings(sequence_length=CONTEXT // 2, batch_size=BATCH),
        ppo=PPOSettings(
            response_tokens=CONTEXT // 2,
            minibatches=BATCH // MINIBATCH,
            clip=0.2,
            decay=0.95,
            average=0.992,
            mix_coefficient=27.8,
            mix_rows=8,
        ),
        kl=KLSettings(coefficient=0.02),
        mix=(SourceSettings(kind="jsonl", path="data/pretraining/*.jsonl.gz"),),
        mix_length=CONTEXT,
        compute=ComputeSettings(remat="full"),
        mesh=MESH,
        plan=PlanSettings(topology="v5p-128"),
        optimizer=adam(9e-6),
        value_optimizer=adam(9e-6),
        train=TrainSettings(steps=EPISODES // BATCH),
    )
    return Pipeline("plan_ppo_1300m_6b", (reward, ppo))
