"""InstructGPT's three steps (Ouyang et al. 2022, appendix C) from a pretrained model: SFT, a reward model, PPO-ptx.

The paper's data were not released; the paths are yours to give, in any of the shapes that lmjax reads: demonstrations,
rankings of 4 to 9 answers, and prompts. The paper starts from GPT-3; name yours in `BASE`. It states neither lambda of
the advantages, for which 0.95 is usual, nor the released policy's learning rate: here it is the value model's.
`lmjax run instructgpt --from reward` repeats the last two steps.
"""

from lmjax.settings import (
    PPO,
    SFT,
    DialogueSettings,
    DialogueSourceSettings,
    KLSettings,
    OptimizerSettings,
    Pipeline,
    PPOSettings,
    RewardModel,
    RewardSettings,
    ScheduleSettings,
    SourceSettings,
    TrainSettings,
)

BASE = "runs/gpt3-1300m"
PRETRAINING = (SourceSettings(kind="jsonl", path="data/pretraining/*.jsonl.gz"),)
CONTEXT = 2048  # tokens; prompts have 1,000 at most and answers 1,000
EPISODES, BATCH, MINIBATCH = 256_000, 512, 64


def data(name: str, **changes: object) -> DialogueSettings:
    return DialogueSettings(
        train=(DialogueSourceSettings(path=f"data/{name}/train.jsonl"),),
        validation=(DialogueSourceSettings(path=f"data/{name}/validation.jsonl"),),
        **{"sequence_length": CONTEXT} | changes,
    )


def adam(rate: float, **schedule: object) -> OptimizerSettings:
    shape = ScheduleSettings(**{"kind": "cosine", "final": 0.1} | schedule)
    return OptimizerSettings(learning_rate=rate, schedule=shape, b1=0.9, b2=0.95, weight_decay=0.0)


def recipe() -> Pipeline:
    sft = SFT(
        start=BASE,
        dialogue=data("demonstrations", batch_size=32),
        mix=PRETRAINING,  # of the model that PPO starts from: 2 epochs with a tenth of pretraining data
        mix_share=0.1,
        epochs=2.0,  # the SFT model that labelers compare with has 16
        dropout=0.2,
        optimizer=adam(9.65e-6),
    )
    reward = RewardModel(
        start="sft",
        dialogue=data("rankings", batch_size=64, most_answers=9),
        demonstrations=(DialogueSourceSettings(path="data/demonstrations/validation.jsonl"),),
        epochs=1.0,
        optimizer=adam(9e-6),
    )
    minibatches = BATCH // MINIBATCH
    ppo = PPO(
        start="sft",
        reward=RewardSettings(source="reward"),
        dialogue=data("prompts", batch_size=BATCH, sequence_length=1000),
        ppo=PPOSettings(
            response_tokens=1000,
            temperature=1.0,
            epochs=1,
            minibatches=minibatches,
            clip=0.2,
            discount=1.0,
            gae_lambda=0.95,
            ema_decay=0.992,
            ptx_coefficient=27.8,
            ptx_rows=8,
        ),
        kl=KLSettings(coefficient=0.02),
        mix=PRETRAINING,
        mix_length=CONTEXT,
        optimizer=adam(9e-6, kind="constant", warmup=10 * minibatches),  # "over the first 10 iterations", from a tenth
        value_optimizer=adam(9e-6, kind="constant", warmup=10 * minibatches),
        train=TrainSettings(steps=EPISODES // BATCH),
    )
    return Pipeline("instructgpt", (sft, reward, ppo))
