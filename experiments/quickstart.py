"""The first run: pretraining, then RLHF's three steps, from text that every Python installation has, on a CPU.

`pretrain` makes a tokenizer and a small GPT. `sft` teaches it to go on from the first words of a sentence, as
demonstrations from the same corpus do. A simulated labeler then ranks its answers (`compare`) by a known reward, which
likes whole, short sentences that do not repeat themselves (lmjax/rl/known_rewards.py), with some noise. `reward` learns
its taste, and `ppo` writes what the reward model likes, with pretraining text mixed in; `best-of` is what choosing
among 16 answers would give instead. `lmjax run quickstart --only pretrain` stops after the first stage; without it the
run resumes where it stands.
"""

from lmjax.settings import (
    PPO,
    SFT,
    AttentionSettings,
    CheckpointSettings,
    Compare,
    DataSettings,
    DialogueSettings,
    DialogueSourceSettings,
    EvaluationSettings,
    KLSettings,
    LogSettings,
    ModelSettings,
    OptimizerSettings,
    Pipeline,
    PPOSettings,
    Pretrain,
    RewardModel,
    RewardSettings,
    ScheduleSettings,
    SourceSettings,
    TokenizerSettings,
    TrainSettings,
)

PROMPTS = ("The array", "Return a")
GOLD = "lmjax.rl.known_rewards:short_sentence"
PROMPT, ANSWER = 24, 24  # tokens at most


def openings(begin: float = 0.0, end: float = 1.0, split: str = "train") -> tuple[DialogueSourceSettings, ...]:
    return (DialogueSourceSettings(kind="embedded", split=split, begin=begin, end=end),)


def adam(rate: float, **schedule: object) -> OptimizerSettings:
    return OptimizerSettings(learning_rate=rate, schedule=ScheduleSettings(**schedule), weight_decay=0.0)


def recipe() -> Pipeline:
    shown = {"prompts": PROMPTS, "sample_tokens": ANSWER}
    pretrain = Pretrain(
        tokenizer=TokenizerSettings(kind="bpe", vocab_size=4096),
        data=DataSettings(sequence_length=128, batch_size=16),
        model=ModelSettings(layers=4, width=256, context=256, attention=AttentionSettings(heads=4)),
        optimizer=OptimizerSettings(learning_rate=2e-3, schedule=ScheduleSettings(warmup=50)),
        train=TrainSettings(steps=600),
        evaluation=EvaluationSettings(every=150, prompts=PROMPTS, sample_tokens=48),
        checkpoint=CheckpointSettings(every=150),
    )
    sft = SFT(
        start="pretrain",
        dialogue=DialogueSettings(
            train=openings(0.0, 0.5), validation=openings(split="validation"), sequence_length=128, batch_size=16
        ),
        optimizer=adam(5e-4),
        evaluation=EvaluationSettings(every=20, **shown),
    )
    compare = Compare(
        start="sft",
        dialogue=DialogueSettings(train=openings(0.5, 0.56), sequence_length=PROMPT, batch_size=64),
        known_reward=GOLD,
        noise=0.2,
        answers=8,
        response_tokens=ANSWER,
    )
    reward = RewardModel(
        start="sft",
        dialogue=DialogueSettings(
            train=(DialogueSourceSettings("compare/comparisons.jsonl", end=0.9),),
            validation=(DialogueSourceSettings("compare/comparisons.jsonl", begin=0.9),),
            sequence_length=PROMPT + ANSWER,
            batch_size=8,
        ),
        optimizer=adam(3e-4),
        evaluation=EvaluationSettings(every=15),
        log=LogSettings(every=5),
    )
    best_of = Compare(
        name="best-of",
        start="sft",
        dialogue=DialogueSettings(train=openings(0.0, 0.2, split="validation"), sequence_length=PROMPT, batch_size=32),
        known_reward=GOLD,
        reward_model="reward",
        answers=16,
        response_tokens=ANSWER,
    )
    ppo = PPO(
        start="sft",
        reward=RewardSettings(source="reward", known_reward=GOLD, no_eos_penalty=1.0),
        dialogue=DialogueSettings(
            train=openings(0.56, 1.0),
            validation=openings(0.0, 0.2, split="validation"),
            sequence_length=PROMPT,
            batch_size=64,
        ),
        ppo=PPOSettings(response_tokens=ANSWER, minibatches=2, ptx_coefficient=0.5),
        kl=KLSettings(coefficient=0.05),
        mix=(SourceSettings(),),
        mix_length=64,
        optimizer=adam(2e-4, kind="constant", warmup=8),
        value_optimizer=adam(2e-4, kind="constant", warmup=8),
        train=TrainSettings(steps=40),
        evaluation=EvaluationSettings(every=8, **shown),
        checkpoint=CheckpointSettings(every=20),
        log=LogSettings(every=1),
    )
    return Pipeline("quickstart", (pretrain, sft, compare, reward, best_of, ppo))
