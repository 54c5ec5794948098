"""Pretraining: next-token prediction on raw text."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
from jax.sharding import Mesh

from lmjax.data.batch import FIELD_DTYPES, POSITIONS, SEGMENTS, TOKENS, Field
from lmjax.errors import require
from lmjax.model.flops import forward_flops
from lmjax.model.language_model import LanguageModel
from lmjax.parallel import processes
from lmjax.parallel.placement import abstract_batch, abstract_params, batch_sharding, jit_eval, on_mesh, shardings_of
from lmjax.rl.rollout import Vocabulary, sample
from lmjax.settings import Pretrain
from lmjax.stages.changes import EARLIER, TRAINING, Kind, Table
from lmjax.stages.kind import Planned, StageKind
from lmjax.stages.prepare_data import prepare
from lmjax.stages.shown import Shown
from lmjax.stages.train_stage import Outcome, train_task
from lmjax.tasks.next_token import NextToken
from lmjax.tasks.pretraining import Pretraining
from lmjax.tasks.program import Cost, Program, language_cost, platform_of
from lmjax.tasks.resolved import ResolvedStage
from lmjax.tasks.task import Session

CHANGES: Table = {
    Kind.FREE: ("data.validation.", "data.prefetch", f"data.{EARLIER}.", "model.attention.implementation"),
    Kind.CONSEQUENTIAL: (
        *("data.train.", "data.sequence_length", "data.batch_size", "data.packing", "data.isolate_documents"),
        *("data.shuffle", "data.seed", "data.ramp_from", "data.ramp_tokens", "data.ramp_sizes"),
        *("model.dropout", "model.attention.dropout", "model.attention.pattern", "model.attention.band"),
        *("model.norm.eps", "model.positions.rotary_base", "model.feed_forward.activation"),
        *("model.positions.rotary_scaling.", "model.positions.banded_rotary_base", "model.attention.scores."),
    ),
    Kind.BREAKING: (
        *("start", "tokenizer.", "model.layers", "model.encoder_layers", "model.head.", "model.width"),
        *("model.context", "model.vocab_size", "model.tied_head"),
        *("model.init_std", "model.scaled_residual_init", "model.mup."),
        *("model.attention.heads", "model.attention.kv_heads"),
        *("model.attention.head_dim", "model.attention.bias", "model.attention.scaled", "model.attention.causal"),
        *("model.attention.out_bias", "model.attention.qk_norm", "model.embeddings.", "model.norm.unit_offset"),
        *("model.feed_forward.width", "model.feed_forward.gated", "model.feed_forward.bias"),
        *("model.norm.kind", "model.norm.position", "model.norm.final", "model.norm.bias", "model.norm.embeddings"),
        "model.positions.segment_types",
        *("model.positions.kind", "model.positions.relative_buckets", "model.positions.relative_max_distance"),
    ),
}


def pretrain(resolved: ResolvedStage, session: Session, task: Pretraining = NextToken()) -> Outcome:
    """Makes, or finds, the tokenizer and the token shards, and trains the task on them.

    With an initial checkpoint, tokenizer and model are that one's, and the optimizer begins anew.
    """
    stage = cast(Pretrain, resolved.recipe)
    if stage.start:
        resolved = resolved.opened()
        session.display.say(f"initialised from {stage.start}: its tokenizer and its model, not the recipe's")
        resolved.check_lengths()
    resolved.mesh()  # refuses one that cuts unevenly before anything is made
    with processes.first_before_others("prepared"):
        prepared = prepare(stage, resolved.folder, session.display, session.cache, start=resolved.start)
    if resolved.start is None:
        resolved = resolved.with_tokenizer(prepared.tokenizer, prepared.tokenizer_folder)
    task = dataclasses.replace(task, train=tuple(prepared.train), validation=tuple(prepared.validation))
    return train_task(task, resolved, session)


def _step(resolved: ResolvedStage, mesh: Mesh) -> Program:
    return NextToken().build(resolved, mesh, resolved.of(Pretrain).train.steps)


def _step_cost(resolved: ResolvedStage) -> Cost:
    return NextToken().cost(resolved)


def _validation(resolved: ResolvedStage, mesh: Mesh) -> Program:
    task, step = NextToken(), _step(resolved, mesh)
    params = step.abstract.params
    jitted = jit_eval(task.read(step.model, resolved), mesh, params, batch=shardings_of(step.batch))
    return dataclasses.replace(step, abstract=params, jitted=jitted, numbers=())


def _validation_cost(resolved: ResolvedStage) -> Cost:
    data = resolved.of(Pretrain).data
    return language_cost(resolved.model, data.batch_size, data.sequence_length, 1)


def _continuation(resolved: ResolvedStage, mesh: Mesh) -> Program:
    """A batch of prompts continued to the rows' end: `evaluation.sample_tokens` of `data.sequence_length` are new."""
    stage, new, prompt = resolved.of(Pretrain), *_continued(resolved)
    vocabulary = Vocabulary(resolved.vocabulary, resolved.vocabulary - 1)
    model = LanguageModel(resolved.model, stage.compute, platform_of(mesh))

    def continued(params: Any, prompts: Any) -> Any:
        key, temperature = jax.random.key(stage.train.seed), stage.evaluation.temperature
        return sample(model, params, prompts, key, vocabulary, tokens=new, temperature=temperature)

    spec = {name: Field((stage.data.batch_size, prompt), FIELD_DTYPES[name]) for name in (TOKENS, POSITIONS, SEGMENTS)}
    params, batch = abstract_params(model, mesh), abstract_batch(spec, mesh)
    rows = batch_sharding(mesh, ("batch",))
    jitted = jax.jit(on_mesh(continued, mesh), in_shardings=(shardings_of(params), rows), out_shardings=rows)
    return Program(model, None, params, (), spec, batch, jitted)


def _continuation_cost(resolved: ResolvedStage) -> Cost:
    new, prompt = _continued(resolved)
    rows, length = resolved.of(Pretrain).data.batch_size, prompt + new
    of = forward_flops(resolved.model, length)
    products, cached = rows * (length * of.body + new * of.head), rows * length * of.scores
    return Cost((resolved.model,), rows, length, rows * new, products, scores=0.0, cached=cached)


def _continued(resolved: ResolvedStage) -> tuple[int, int]:
    """The tokens of a row that are sampled, and those of its prompt."""
    stage = resolved.of(Pretrain)
    new, length = stage.evaluation.sample_tokens, stage.data.sequence_length
    fix = "the rest is the prompt"
    require(new < length, "evaluation.sample_tokens", new, f"less than data.sequence_length {length}", fix)
    return new, length - new


KIND = StageKind(
    settings=Pretrain,
    shown=Shown(),
    changes=(TRAINING, CHANGES),
    train=pretrain,
    programs={
        "train": Planned(_step, _step_cost),
        "eval": Planned(_validation, _validation_cost),
        "generate": Planned(_continuation, _continuation_cost),
    },
    loads_executable=True,
    chooses_layout=True,
    prepares_text=True,
)
