"""A trained model from a checkpoint: apply it, sample from it, talk to it."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from lmjax.data.batch import POSITIONS, SEGMENTS, TOKENS, Batch
from lmjax.data.tokenizer import Tokenizer, load_tokenizer
from lmjax.errors import UserError
from lmjax.fields import require_local
from lmjax.generate.chat import chat
from lmjax.generate.decode import Completion, generate, token_text
from lmjax.generate.sampling import SamplingSettings
from lmjax.model.language_model import LanguageModel
from lmjax.parallel.platform import prepare_jax
from lmjax.recipe import Stage, from_json
from lmjax.stages.start import found_checkpoint, language_model_params


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

    model: LanguageModel
    params: Any
    tokenizer: Tokenizer
    recipe: Stage
    step: int

    def apply(self, tokens_BT: Any) -> jax.Array:
        """Float32 logits [B, T, V] of rows of tokens without padding."""
        tokens = jnp.asarray(tokens_BT, jnp.int32)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
        batch = {TOKENS: tokens, POSITIONS: positions, SEGMENTS: jnp.ones_like(tokens)}
        return _logits(self.model, self.params, batch)

    def generate(self, prompts: str | Sequence[str], **settings: Any) -> list[Completion]:
        """Continues each prompt; the settings are those of `lmjax.generate.sampling.SamplingSettings`."""
        several = [prompts] if isinstance(prompts, str) else list(prompts)
        return generate(self.model, self.params, self.tokenizer, several, SamplingSettings(**settings))

    def chat(self, **settings: Any) -> None:
        """Talks on the terminal until the input ends."""
        chat(self.model, self.params, self.tokenizer, SamplingSettings(**settings))

    def token_texts(self, completion: Completion) -> list[str]:
        """The text of each token of a completion, as it should be shown."""
        return [token_text(self.tokenizer, token) for token in completion.tokens]


@functools.partial(jax.jit, static_argnames=("model",))
def _logits(model: LanguageModel, params: Any, batch: Batch) -> jax.Array:
    return model.logits(params, batch)


def load(checkpoint: Path | str) -> Trained:
    """Reads the newest checkpoint of a workdir or of a stage, or one step's. Raises UserError where there is none.

    Of a PPO run it is the policy, or the average of its weights where that is kept; of a pipeline, the last policy.
    """
    require_local("checkpoint", checkpoint)
    prepare_jax()
    found = found_checkpoint(Path(checkpoint))
    extras = found.extras()
    recipe = from_json(extras["recipe"], f"{found.path}: recipe")
    tokenizer = cast(Tokenizer, NoTokenizer(found.path))
    if extras["tokenizer"]:
        with tempfile.TemporaryDirectory() as folder:
            found.unpack_tokenizer(Path(folder))
            tokenizer = load_tokenizer(Path(folder))
    settings = dataclasses.replace(recipe.model, vocab_size=recipe.model.vocab_size or tokenizer.vocab_size)
    # The kernel that was named for training may not run here, nor is it needed: a cache is read by einsum.
    attention = dataclasses.replace(settings.attention, implementation="auto")
    settings = dataclasses.replace(settings, attention=attention)
    compute = dataclasses.replace(recipe.compute, remat="none")  # of training alone, and it may offload to the host
    model = LanguageModel(settings, compute, jax.default_backend())
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
    params = language_model_params(found, recipe, abstract)
    return Trained(model, params, tokenizer, recipe, found.step)
