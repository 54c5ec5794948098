"""`lmjax run --dry-run`: what a run would do, what it would need, and all that is missing; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from lmjax.data.open_files import list_files
from lmjax.data.ramp import BatchRamp
from lmjax.data.token_shards import TokenShards
from lmjax.errors import UserError
from lmjax.files import user_path
from lmjax.kinds import endings_of
from lmjax.parallel import processes
from lmjax.parallel.chips import GIB
from lmjax.parallel.start_jax import prepare_jax, unused_accelerator
from lmjax.plan.candidates import own_candidate
from lmjax.plan.layout import laid_out
from lmjax.plan.planner import plan
from lmjax.plan.predict import Analyst
from lmjax.plan.report import lines as plan_lines
from lmjax.plan.slices import Slice, slice_of
from lmjax.runs.agreement import facts_of
from lmjax.runs.measures import measured_paths
from lmjax.runs.preflight import missing_ahead
from lmjax.runs.workdir import asked_and_here
from lmjax.settings import Pipeline, Pretrain, SourceSettings, Stage, TrainingStage
from lmjax.settings.recipe_files import to_json
from lmjax.settings.recipe_source import source_of
from lmjax.stages.first_lines import model_line, place_lines, steps_line
from lmjax.stages.registry import kind_of
from lmjax.tasks.resolved import ResolvedStage, resolve

Say = Callable[[str], None]


def dry_run(recipe: Stage | Pipeline, workdir: Path | str | None = None, say: Say = print) -> None:
    """Says workdir, devices, model, tokens and steps of each stage, the recipe, and the memory where a slice is known.

    The slice is that of the recipe's plan.topology, for which the step is compiled, or the attached one, by arithmetic.
    Raises UserError with everything that is missing, at the end.
    """
    _, folder = asked_and_here(workdir, recipe.name)
    prepare_jax()
    processes.join(lambda: facts_of(recipe, {}, measured_paths(recipe)))
    say = say if processes.is_first() else lambda line: None
    unused, alone = unused_accelerator(), isinstance(recipe, Stage)
    folders = [folder if alone else folder / stage.name for stage in recipe.stages]
    for line in (*([unused] if unused else []), *place_lines(folder)):
        say(line)
    absent = missing_ahead(recipe.stages, [stage.name for stage in recipe.stages], folders)
    for place, stage in enumerate(recipe.stages):
        for line in _stage_lines(stage, recipe.stages[:place]):
            say(line if alone else f"{stage.name}: {line}")
    say(f"\n{_as_file(recipe)}")
    if absent:
        raise UserError("\n".join(absent))


def _stage_lines(stage: Stage, before: Sequence[Stage]) -> Iterator[str]:
    yield from stage.reasons
    where = slice_of(jax.devices()) if kind_of(stage).chooses_layout else None
    resolved = resolve(stage, before)
    model, loading = resolved.settings.model, stage.loading
    if model is not None and model.vocab_size is not None:
        yield model_line(model, loading.sequence_length)
    else:
        yield f"model: that of {stage.start!r}" if stage.start else "model: as large as its tokenizer will make it"
    tokens = None
    for field, sources in stage.texts().items():
        if not sources:
            continue
        held = list(map(_tokens_in, sources))
        yield f"{field}: {', '.join(told for _, told in held)}"
        if field == "data.train" and all(count is not None for count, _ in held):
            tokens = sum(count or 0 for count, _ in held)
    if stage.steps is not None:
        planned = BatchRamp(loading).tokens_at(stage.steps)
        epochs = "" if tokens is None else f", {planned / max(1, tokens):.2f} epochs"
        yield steps_line(stage.steps, loading.batch_size, loading.sequence_length, planned) + epochs
    elif isinstance(stage, TrainingStage):
        yield "steps: those of its epochs, when its data are read"
    yield from _memory(resolved, before, where)


def _tokens_in(source: SourceSettings) -> tuple[int | None, str]:
    """The tokens of a source, where they are known before they are made; and what it holds, in words."""
    try:
        if source.kind == "shards":
            shards = TokenShards(user_path(source.path))
            return shards.tokens, f"{shards.tokens:,} tokens in {source.path}"
        if endings := endings_of(source.kind):
            files = list_files(source.path, endings)
            size = sum(file.stat().st_size for file in files)
            many = f"{len(files)} files" if len(files) > 1 else "a file"
            return None, f"{size:,} bytes in {many} of {source.path}, to be made tokens"
    except (UserError, OSError):
        return None, f"{source.path}, which is missing"
    return None, f"{source.path or f'{source.kind} {source.split}'}, to be made tokens"


def _memory(resolved: ResolvedStage, before: Sequence[Stage], where: Slice | None) -> Iterator[str]:
    """What a step needs of a device: compiled for the slice that the recipe names, else predicted for the attached."""
    stage = resolved.settings
    if isinstance(stage, TrainingStage) and stage.plan.topology:
        try:
            yield from plan_lines(plan(stage, before=before))
        except UserError as error:
            yield f"memory: not planned: {error}"
    elif where is not None:
        recipe = laid_out(resolved.of(Pretrain), where)
        own = own_candidate(recipe, where)
        if own is None:
            yield f"memory: not predicted for this mesh on {where.name}"
            return
        needed = Analyst(recipe, where).predict(own).memory
        told = f"{needed / GIB:.2f} of {where.device_hbm / GIB:.2f} GiB HBM by arithmetic"
        yield f"on {where.name}: {own.text}; {told}; lmjax plan --topology {where.name} compiles it"


def _as_file(recipe: Stage | Pipeline) -> str:
    """The recipe as `lmjax recipe` prints it; as JSON where it has a task of its own file."""
    try:
        return source_of(recipe, "The recipe, with every field that is not at its default.")
    except UserError:
        return "\n".join(map(to_json, recipe.stages))
