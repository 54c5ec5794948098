"""A trained model from a checkpoint: apply it, sample from it, talk to it."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

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
from lmjax.parallel.placement import abstract_params
from lmjax.parallel.start_jax import prepare_jax
from lmjax.settings import Stage
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


@dataclass(frozen=True)
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

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> list[Completion]:
        """Continues each prompt; the settings are those of `lmjax.generate.sampling.SamplingSettings`.

        Raises UserError for prompts that are no texts, for a parameter that is not finite, and as `generate` does.
        """
        several = _checked_texts(prompts)
        self.require_finite()
        return generate(self.model, self.params, self.tokenizer, several, _sampling(settings))

    def beam_search(self, prompts: str | Sequence[str], **settings: Any) -> list[list[Completion]]:
        """The likeliest continuations of each prompt; the settings are those of `lmjax.generate.beam.BeamSettings`.

        Raises UserError as `generate` does.
        """
        several = _checked_texts(prompts)
        self.require_finite()
        return beam_search(self.model, self.params, self.tokenizer, several, BeamSettings(**_plain(settings)))

    def chat(self, **settings: Any) -> None:
        """Talks on the terminal until the input ends, turns written by the checkpoint's own template.

        Raises UserError for a model that continues no text.
        """
        self.model.require_decoder("a conversation")
        self.require_finite()
        chat(self.model, self.params, self.tokenizer, _sampling(settings), self.turns)

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


def _sampling(settings: dict[str, Any]) -> SamplingSettings:
    """The settings of sampling; numbers may be NumPy's, and one stop string may stand alone."""
    plain = _plain(settings)
    stop = plain.get("stop", ())
    plain["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return SamplingSettings(**plain)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}


def load(checkpoint: Path | str, mesh: Mesh | None = None) -> Trained:
    """Reads the newest checkpoint of a workdir or of a stage, or one step's. Raises UserError where there is none.

    Parameters are cut over `mesh`, or are on the first device.

    Of a PPO run it is the policy, or the average of its weights where that is kept; of a pipeline, the last policy.
    """
    require_local("checkpoint", checkpoint, bucket=True)
    prepare_jax()
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
