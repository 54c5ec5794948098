"""A trained model from a checkpoint: apply it, sample from it, talk to it."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lmjax.bucket import located
from lmjax.checkpoints.checkpoint import Checkpoint
from lmjax.checkpoints.initial import found_checkpoint, language_model_params
from lmjax.data.batch import INPUT_POSITIONS, INPUT_SEGMENTS, INPUTS, POSITIONS, SEGMENTS, TOKENS, Batch
from lmjax.errors import UserError, clear_disk_errors, require, shortened
from lmjax.fields import require_local
from lmjax.generate.beam import BeamSettings, beam_search
from lmjax.generate.chat import ChatFormat, StageTurns, TurnFormat, chat
from lmjax.generate.decode import Completion, generate, token_text
from lmjax.generate.sampling import SamplingSettings
from lmjax.interop.chat_template import saved_chat_template
from lmjax.model.families import model_of
from lmjax.model.transformer import Transformer
from lmjax.parallel.mesh import make_mesh, mesh_text
from lmjax.parallel.placement import abstract_params
from lmjax.parallel.start_jax import prepare_jax
from lmjax.settings import MeshSettings, Stage
from lmjax.settings.recipe_files import from_json
from lmjax.tokenizers.tokenizer import Tokenizer, load_tokenizer


class NoTokenizer:
    """Stands where a checkpoint has no tokenizer, as after an import from a folder without one: any use says so."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError(
            f"{self._checkpoint}: it has no tokenizer, so that it reads and writes token ids and no text; "
            "to have one, put its files into the folder that the model came from and import it again"
        )


@dataclass(frozen=True, repr=False)
class Trained:
    """A model, its parameters, its tokenizer and the recipe that made them."""

    model: Any  # LanguageModel, Encoder or EncoderDecoder
    params: Any
    tokenizer: Tokenizer
    recipe: Stage
    step: int
    turns: TurnFormat = ChatFormat()

    def apply(self, tokens_BT: Any, inputs_BS: Any = None) -> jax.Array:
        """Float32 logits [B, T, V] of rows of tokens without padding; -inf for rows of the table that no token has.

        `inputs_BS` are those of an encoder-decoder, whose tokens are what its decoder reads. Raises UserError unless
        these are rows of one length, at least 1, of ids that the table has, and no longer than
        the context where its positions are learned.
        """
        encodes, given = self.model.settings.encoder_layers is not None, inputs_BS is not None
        expected = "inputs, rows of token ids, beside those of the decoder" if encodes else "none for this model"
        require(encodes == given, "apply: inputs", inputs_BS, expected, "only an encoder-decoder has them")
        rows = {(TOKENS, POSITIONS, SEGMENTS): tokens_BT}
        rows |= {(INPUTS, INPUT_POSITIONS, INPUT_SEGMENTS): inputs_BS} if given else {}
        batch: Batch = {}
        for (name, positions, segments), ids in rows.items():
            checked = jnp.asarray(_checked_rows(ids, self.model), jnp.int32)
            places = jnp.broadcast_to(jnp.arange(checked.shape[1], dtype=jnp.int32)[None], checked.shape)
            batch |= {name: checked, positions: places, segments: jnp.ones_like(checked)}
        entries = None if isinstance(self.tokenizer, NoTokenizer) else self.tokenizer.vocab_size
        return _logits(self.model, self.params, batch, entries)

    def __repr__(self) -> str:
        settings, leaves = self.model.settings, jax.tree.leaves(self.params)
        layers = f"{settings.encoder_layers} + {settings.layers}" if settings.encoder_layers else settings.layers
        shape = f"layers {layers}, width {settings.width:,}, context {settings.context:,}"
        absent = isinstance(self.tokenizer, NoTokenizer)
        tokenizer = "none" if absent else f"{self.tokenizer.kind}, {self.tokenizer.vocab_size:,} entries"
        where = leaves[0].sharding
        axes = f" ({mesh_text(dict(where.mesh.shape))})" if isinstance(where, NamedSharding) else ""
        devices = f"{where.num_devices} x {next(iter(where.device_set)).device_kind}{axes}"
        return (
            f"Trained {type(self.model).__name__}: {sum(leaf.size for leaf in leaves):,} parameters, {shape}\n"
            f"  step {self.step:,} of {self.recipe.name!r}; tokenizer: {tokenizer}\n"
            f"  on {devices}, computed in {self.model.dtype}"
        )

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        ends: Sequence[int] = (),
        seed: int = 0,
        top: int = 0,
        beyond_context: Literal["stop", "slide"] = "stop",
    ) -> list[Completion]:
        """Continues a prompt, or each of several; an encoder-decoder reads them as its inputs.

        Args:
          prompts: a text or a list of texts.
          max_tokens: the most tokens of a continuation.
          temperature: what logits are divided by; 0 takes the likeliest token.
          top_k: draw from the k likeliest tokens alone.
          top_p: draw from the likeliest tokens alone that together have this probability.
          repetition_penalty: lowers the logits of tokens that a text has already (Keskar et al. 2019); 1 does not.
          stop: a text, or several: a continuation ends before the first of them.
          ends: ids of tokens that end a continuation, beside the tokenizer's end of text.
          seed: continuations of equal seeds are equal.
          top: how many of the likeliest tokens, with their probabilities, to report for each token.
          beyond_context: where the model's context is full, "stop", or "slide": read its last half again and continue.

        Returns:
          A `Completion` for each prompt, with its text, tokens and log-probabilities.

        Raises:
          UserError: a prompt is no text or fills the context, a setting is out of its range, or a parameter of the
            model is not finite.
        """
        own: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        own |= {"repetition_penalty": repetition_penalty, "seed": seed, "top": top, "beyond_context": beyond_context}
        sampling = _sampling(stop, ends, own)
        several = _checked_texts(prompts)
        self.require_finite()
        return generate(self.model, self.params, self.tokenizer, several, sampling)

    def beam_search(
        self,
        prompts: str | Sequence[str],
        *,
        beams: int = 4,
        max_tokens: int = 128,
        length_penalty: float = 1.0,
        n_best: int = 1,
        early_stopping: Literal["always", "likely", "never"] = "likely",
        ends: Sequence[int] = (),
    ) -> list[list[Completion]]:
        """The likeliest continuations of a prompt, or of each of several, the likeliest first.

        Args:
          prompts: a text or a list of texts.
          beams: how many continuations of a prompt are kept at once.
          max_tokens: the most tokens of a continuation.
          length_penalty: sums of log-probabilities are divided by the length to this power; 0 ranks by the sums.
          n_best: how many continuations of each prompt to return, at most `beams`.
          early_stopping: when a prompt with `beams` finished continuations is done: "always"; where no better one is
            "likely"; or where none can come ("never" early).
          ends: ids of tokens that end a continuation, beside the tokenizer's end of text.

        Raises:
          UserError: as `generate` does.
        """
        numbers = {"beams": beams, "max_tokens": max_tokens, "length_penalty": length_penalty, "n_best": n_best}
        settings = BeamSettings(
            **_plain(numbers), early_stopping=early_stopping, ends=tuple(int(token) for token in ends)
        )
        several = _checked_texts(prompts)
        self.require_finite()
        return beam_search(self.model, self.params, self.tokenizer, several, settings)

    def chat(
        self,
        *,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        beyond_context: Literal["stop", "slide"] = "stop",
    ) -> None:
        """Talks on the terminal until the input ends, turns written by the checkpoint's own template.

        The arguments are those of `generate`. Raises UserError for a model that continues no text.
        """
        own: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        own |= {"repetition_penalty": repetition_penalty, "seed": seed, "beyond_context": beyond_context}
        sampling = _sampling(stop, (), own)
        self.model.require_decoder("a conversation")
        self.require_finite()
        chat(self.model, self.params, self.tokenizer, sampling, self.turns)

    def token_texts(self, tokens: Iterable[int]) -> list[str]:
        """The text of each token, as it should be shown."""
        return [token_text(self.tokenizer, int(token)) for token in tokens]

    def require_finite(self) -> None:
        """Raises UserError where a parameter is not finite."""
        for path, wrong in jax.tree_util.tree_leaves_with_path(jax.device_get(self._not_finite)):
            if wrong:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise UserError(
                    f"step {self.step}: {wrong:,} entries of the parameter {name} are NaN or infinite: expected finite "
                    "ones; the training that wrote it diverged: take an older checkpoint"
                )

    @functools.cached_property
    def _not_finite(self) -> Any:
        return jax.jit(functools.partial(jax.tree.map, lambda x: (~jnp.isfinite(x)).sum()))(self.params)


@functools.partial(jax.jit, static_argnames=("model", "entries"))
def _logits(model: Transformer, params: Any, batch: Batch, entries: int | None) -> jax.Array:
    return model.logits(params, batch, entries=entries)


def _checked_rows(rows: Any, model: Transformer) -> Any:
    """The rows as an array [B, T] of whole numbers, which the model reads without making NaN of them."""
    expected = "rows of token ids, all of one length, at least 1, as [[1, 2, 3]]"
    array = rows
    if not isinstance(rows, jax.Array):
        try:
            array = np.asarray(rows)
        except (ValueError, TypeError, OverflowError) as error:  # rows of several lengths, for one
            raise UserError(f"apply: found {shortened(rows)} ({error}): expected {expected}") from error
    if array.ndim != 2 or not array.size:
        found = f"an array of shape {array.shape}" if array.size else "none"
        raise UserError(f"apply: found {found}: expected {expected}; write one row in brackets of its own")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        fix = "a text becomes ids by tokenizer.encode(text)"
        raise UserError(f"apply: found {shortened(rows)}, of {array.dtype}: expected {expected}; {fix}")
    context = model.settings.context
    fits = array.shape[1] <= context or model.settings.positions.kind != "learned"
    require(fits, "apply: tokens of a row", array.shape[1], f"at most the model's context of {context}", "cut the rows")
    if not isinstance(array, jax.core.Tracer):  # whose values are not known yet
        ids, size = np.asarray(array), model.settings.vocab_size or 0
        for row, column in np.argwhere((ids < 0) | (ids >= size))[:1]:
            raise UserError(
                f"apply: token id {ids[row, column]} (row {row}, column {column}): expected 0 to {size - 1}, the rows "
                "of the model's table; encode with the model's own tokenizer"
            )
    return array


def _checked_texts(prompts: Any) -> list[str]:
    several = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(several, list | tuple) or not all(isinstance(prompt, str) for prompt in several):
        fix = "ids become a text by tokenizer.decode(ids)"
        raise UserError(f"generate: found {shortened(prompts)}: expected a text or a list of texts; {fix}")
    return list(several)


def _sampling(stop: str | Sequence[str], ends: Sequence[int], others: dict[str, Any]) -> SamplingSettings:
    """The settings of sampling; numbers may be NumPy's, and one stop string may stand alone."""
    several = (stop,) if isinstance(stop, str) else tuple(stop)
    return SamplingSettings(**_plain(others), stop=several, ends=tuple(int(token) for token in ends))


def _plain(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in numbers.items()}


def load(checkpoint: Path | str, mesh: Mesh | MeshSettings | None = None) -> Trained:
    """Reads a trained model from a checkpoint.

    Args:
      checkpoint: a workdir, of which it is the newest checkpoint; a stage's folder, or one step's. Of a PPO run it is
        the policy, or the average of its weights where that is kept; of a pipeline, the last policy.
      mesh: the devices over which parameters are cut, such as `lmjax.mesh(fsdp=8)`; None: the first device has all.

    Raises:
      UserError: there is no checkpoint, it is damaged, or the mesh does not fit the devices.
    """
    require_local("checkpoint", checkpoint, bucket=True)
    prepare_jax()
    mesh = make_mesh(mesh) if isinstance(mesh, MeshSettings) else mesh
    path = located(checkpoint)
    with clear_disk_errors(path):
        return _loaded(found_checkpoint(path), mesh)


def _loaded(found: Checkpoint, mesh: Mesh | None) -> Trained:
    extras = found.extras()
    recipe = from_json(extras["recipe"], f"{found.path}: recipe")
    tokenizer, turns = cast(Tokenizer, NoTokenizer(found.path)), _turns(recipe, extras["tokenizer"], found.path)
    if extras["tokenizer"]:
        with tempfile.TemporaryDirectory() as folder:
            found.unpack_tokenizer(Path(folder))
            tokenizer = load_tokenizer(Path(folder))
    settings = dataclasses.replace(recipe.model, vocab_size=recipe.model.vocab_size or tokenizer.vocab_size)
    # The kernel that was named for training may not run here, nor is it needed: a cache is read by einsum.
    attention = dataclasses.replace(settings.attention, implementation="auto")
    settings = dataclasses.replace(settings, attention=attention)
    compute = dataclasses.replace(recipe.compute, remat="none")  # of training alone, and it may offload to the host
    model = model_of(settings, compute, jax.default_backend())
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if mesh is None else mesh
    params = language_model_params(found, recipe, abstract_params(model, where))
    return Trained(model, params, tokenizer, recipe, found.step, turns)


def _turns(recipe: Stage, files: dict[str, str], where: Path) -> TurnFormat:
    """How turns are written: by the template of the stage, by the one that an imported model came with, or plainly."""
    if recipe.template is not None:
        return StageTurns(recipe.template)
    return saved_chat_template(files, where) or ChatFormat()
