"""What a plan compiles: the step of a stage, its validation or its sampling, and the arithmetic that it has to do.

In: a stage's recipe, and which of its programs is meant. Out: a `Work`, which lowers that program for a mesh from
shapes alone, as the stage makes it when it runs, and knows its tokens and FLOPs. No data, tokenizer or checkpoint is
needed: what a stage starts from need not exist yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from lmjax.data.batch import FIELD_DTYPES, POSITIONS, SEGMENTS, TOKENS
from lmjax.data.conversation_rows import RANKS, RECORD
from lmjax.errors import UserError, require
from lmjax.model.flops import count
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.mesh import check_mesh
from lmjax.parallel.rows import row_sharding
from lmjax.parallel.shardings import abstract_state, jit_eval, jit_step, on_mesh
from lmjax.rl.learner import MIX
from lmjax.rl.rollout import Vocabulary, sample
from lmjax.settings import DataSettings, ModelSettings
from lmjax.settings.recipe_files import Pretrain
from lmjax.settings.stages import DPO, PPO, SFT, RewardModel
from lmjax.stages.finetune import with_dropout
from lmjax.stages.initial import abstract_on
from lmjax.stages.pretrain import abstract_batch, make_parts, planned_entries, planned_model
from lmjax.stages.steps import (
    MeshStep,
    dpo_step,
    platform_of,
    ppo_learner,
    ppo_state,
    ppo_step,
    reward_step,
    sft_step,
)
from lmjax.training.step import make_eval_step

Kind = Literal["train", "eval", "generate"]
PlannedStage = Pretrain | SFT | RewardModel | DPO | PPO
TRAIN = 3  # a training step makes a forward pass's products three times: forward, and two gradients


@dataclass(frozen=True)
class Step:
    """Which program of a stage is planned; `judge` is the model of a PPO stage's rewards."""

    kind: Kind = "train"
    judge: ModelSettings | None = None


@dataclass(frozen=True)
class Work:
    """A program, and what it has to do, over all devices."""

    lower: Callable[[Mesh], jax.stages.Lowered]
    models: tuple[ModelSettings, ...]  # on the mesh; the first is the one that `parameters` counts
    cut: DataSettings  # the rows that the mesh cuts
    microbatches: int
    rows: int
    length: int  # tokens of a row
    tokens: float  # that it reads; of sampling, that it makes
    products: float  # FLOPs of the models' matrices
    scores: float  # FLOPs of attention's scores where fused kernels make them
    cached: float = 0.0  # FLOPs of the scores of sampling, against a cache
    section: str = "data"  # of the recipe, where the rows' settings stand

    @property
    def flops(self) -> float:
        return self.products + self.scores + self.cached

    @property
    def parameters(self) -> int:
        return count(self.models[0]).parameters

    def check(self, mesh: dict[str, int]) -> None:
        """Raises UserError where the mesh does not divide the rows or a model."""
        for model in self.models:
            check_mesh(mesh, model, self.cut, self.microbatches, self.section)


@dataclass(frozen=True)
class Forward:
    """FLOPs per token of a forward pass: of the layers' matrices, of the head, and of the scores."""

    body: float
    head: float
    scores: float


def forward_flops(model: ModelSettings, length: int) -> Forward:
    """Of rows of `length` tokens, from the counts of a training step."""
    scores_of_one = 12 * model.attention.heads * model.head_dim * model.layers
    matrices = count(model, 1).flops_per_token - scores_of_one
    head = 2 * (model.vocab_size or 0) * model.width
    return Forward(matrices / TRAIN - head, head, (count(model, length).flops_per_token - matrices) / TRAIN)


def work_of(recipe: PlannedStage, step: Step = Step()) -> Work:
    """The work of a stage's program. Raises UserError where the stage has no such program or its model is unknown."""
    if isinstance(recipe, Pretrain):
        return {"train": _training, "eval": _validation, "generate": _sampling}[step.kind](recipe)
    own = step.kind == "train"
    require(own, "--step", step.kind, f"'train' for {type(recipe).__name__}, whose step it is", "leave it out")
    if isinstance(recipe, PPO):
        return _iteration(recipe, step.judge)
    return _going_on(recipe)


def _training(recipe: Pretrain) -> Work:
    def lower(mesh: Mesh) -> jax.stages.Lowered:
        parts = make_parts(recipe, planned_model(recipe), platform_of(mesh), planned_entries(recipe))
        state = abstract_state(parts.model, parts.optimizer, mesh)
        jitted: Any = jit_step(parts.step, state, mesh, recipe.compute)
        return jitted.lower(state, abstract_batch(recipe.data, mesh))

    return _pretraining_work(recipe, lower, TRAIN)


def _validation(recipe: Pretrain) -> Work:
    def lower(mesh: Mesh) -> jax.stages.Lowered:
        parts = make_parts(recipe, planned_model(recipe), platform_of(mesh), planned_entries(recipe))
        state = abstract_state(parts.model, parts.optimizer, mesh)
        jitted: Any = jit_eval(make_eval_step(parts.loss_fn), state, mesh)
        return jitted.lower(state.params, abstract_batch(recipe.data, mesh))

    whole = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, microbatches=1))
    return _pretraining_work(whole, lower, 1)


def _pretraining_work(recipe: Pretrain, lower: Callable[[Mesh], jax.stages.Lowered], passes: int) -> Work:
    model, rows, length = planned_model(recipe), recipe.data.batch_size, recipe.data.sequence_length
    of, tokens = forward_flops(model, length), rows * length
    return Work(
        *(lower, (model,), recipe.data, recipe.train.microbatches, rows, length, tokens),
        products=passes * tokens * (of.body + of.head),
        scores=passes * tokens * of.scores,
    )


def _sampling(recipe: Pretrain) -> Work:
    """A batch of prompts continued to the rows' end: `evaluation.sample_tokens` of `data.sequence_length` are new."""
    new, rows, length = recipe.evaluation.sample_tokens, recipe.data.batch_size, recipe.data.sequence_length
    fits = new < length
    require(fits, "evaluation.sample_tokens", new, f"less than data.sequence_length {length}", "the rest is the prompt")
    settings = planned_model(recipe)
    vocabulary = _vocabulary(settings, planned_entries(recipe))

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        model = LanguageModel(settings, recipe.compute, platform_of(mesh))

        def continued(params: Any, prompts: Any) -> Any:
            key, temperature = jax.random.key(recipe.train.seed), recipe.evaluation.temperature
            return sample(model, params, prompts, key, vocabulary, tokens=new, temperature=temperature)

        params = abstract_on(model, mesh)
        rows_cut = row_sharding(mesh)
        shardings = (jax.tree.map(lambda x: x.sharding, params), rows_cut)
        jitted = jax.jit(on_mesh(continued, mesh), in_shardings=shardings, out_shardings=rows_cut)
        return jitted.lower(params, _prompts(rows, length - new, mesh))

    of = forward_flops(settings, length)
    return Work(
        *(lower, (settings,), recipe.data, 1, rows, length, rows * new),
        products=rows * (length * of.body + new * of.head),
        scores=0.0,
        cached=rows * length * of.scores,
    )


def _going_on(recipe: SFT | RewardModel | DPO) -> Work:
    """The step of a stage whose batches are demonstrations, or rankings of dialogue.most_answers answers."""
    settings, dialogue = _known(recipe), recipe.dialogue
    ranked = not isinstance(recipe, SFT)
    answers = dialogue.most_answers if ranked else 1
    rows, length = dialogue.batch_size * answers, dialogue.sequence_length

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        step = _mesh_step(recipe, settings, mesh)
        shape: tuple[int, ...] = (dialogue.batch_size, length)
        shape = (dialogue.batch_size, answers, length) if ranked else shape
        batch = {name: _array(shape, dtype, mesh) for name, dtype in FIELD_DTYPES.items()}
        if ranked:
            batch[RANKS] = _array(shape[:2], "int32", mesh)
        return step.compiled.lower(step.abstract, *step.frozen, batch)

    of, tokens = forward_flops(settings, length), rows * length
    head = 0.0 if isinstance(recipe, RewardModel) else of.head
    passes = TRAIN + isinstance(recipe, DPO)  # the reference reads forward alone
    return Work(
        *(lower, (settings,), dialogue.loading, recipe.train.microbatches, rows, length, tokens),
        products=passes * tokens * (of.body + head),
        scores=passes * tokens * of.scores,
        section="dialogue",
    )


def _mesh_step(recipe: SFT | RewardModel | DPO, settings: ModelSettings, mesh: Mesh) -> MeshStep:
    entries, steps = _vocabulary(settings).size, recipe.train.steps
    if isinstance(recipe, RewardModel):
        return reward_step(recipe, settings, mesh, steps=steps)
    make: Any = sft_step if isinstance(recipe, SFT) else dpo_step
    return make(recipe, settings, mesh, steps=steps, entries=entries)


def _iteration(recipe: PPO, judge: ModelSettings | None) -> Work:
    """PPO's whole iteration: sampling, scoring, advantages and all updates in one program."""
    if judge is None:
        raise UserError(
            f"{recipe.name}.reward.source = {recipe.reward.source!r}: expected a reward model whose settings are "
            "known; name a stage of the pipeline, and give it its `model`"
        )
    settings, prompt, new = _known(recipe), recipe.dialogue.sequence_length, recipe.ppo.response_tokens
    episodes = recipe.dialogue.batch_size * recipe.ppo.group
    mix_rows = episodes * recipe.ppo.epochs * recipe.ppo.mix_rows if recipe.mix else 0

    def lower(mesh: Mesh) -> jax.stages.Lowered:
        vocabulary = _vocabulary(settings)
        learner, axes = ppo_learner(recipe, settings, judge, vocabulary, platform_of(mesh), recipe.train.steps)
        step = ppo_step(learner, ppo_state(learner, axes, mesh), mesh)
        batch = _prompts(recipe.dialogue.batch_size, prompt, mesh)
        batch[RECORD] = _array((recipe.dialogue.batch_size, 1), "int32", mesh)
        for name, dtype in FIELD_DTYPES.items() if mix_rows else ():
            batch[MIX + name] = _array((mix_rows, recipe.mix_length), dtype, mesh)
        return step.compiled.lower(step.abstract, *step.frozen, batch)

    row = prompt + new
    policy, scalar = forward_flops(settings, row), forward_flops(judge, row)
    mixed = forward_flops(settings, recipe.mix_length)
    updates = TRAIN * recipe.ppo.epochs
    values = (1 + updates) * (recipe.ppo.baseline == "value")
    reads = 2 + updates  # of the old policy, of the reference, and in the updates
    mix_tokens = TRAIN * mix_rows * recipe.mix_length
    return Work(
        *(lower, (settings, judge), recipe.dialogue.loading, recipe.train.microbatches, episodes, row, episodes * row),
        products=episodes * ((1 + reads) * (row * policy.body + new * policy.head) + (1 + values) * row * scalar.body)
        + mix_tokens * (mixed.body + mixed.head),
        scores=episodes * row * (reads * policy.scores + (1 + values) * scalar.scores) + mix_tokens * mixed.scores,
        cached=episodes * row * policy.scores,
        section="dialogue",
    )


def _known(recipe: SFT | RewardModel | DPO | PPO) -> ModelSettings:
    """The model that a stage trains. Raises UserError where the recipe does not tell."""
    if recipe.model is None or recipe.model.vocab_size is None:
        raise UserError(
            f"{recipe.name}.model: expected the settings of what {recipe.start!r} holds, vocabulary included, as it "
            'does not exist yet; set model, for instance to preset("gpt3_1300m")'
        )
    return with_dropout(recipe.model, recipe.dropout if isinstance(recipe, SFT) else 0.0)


def _vocabulary(settings: ModelSettings, entries: int | None = None) -> Vocabulary:
    size = entries or settings.vocab_size
    assert size is not None
    return Vocabulary(size, size - 1)


def _prompts(rows: int, length: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: _array((rows, length), FIELD_DTYPES[name], mesh) for name in (TOKENS, POSITIONS, SEGMENTS)}


def _array(shape: tuple[int, ...], dtype: str, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=row_sharding(mesh))
