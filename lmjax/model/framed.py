"""A decoder that reads three tokens more than its table has: Start, Delimiter and Extract (Radford et al. 2018).

The new rows are parameters of their own behind the table, so that the trunk stays the model that was pretrained: its
checkpoint, its shape and its logits are unchanged.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.data.batch import Batch
from lmjax.data.frames import DECODER_TOKENS
from lmjax.model.heads import TRUNK, TaskModel
from lmjax.model.outputs import Outputs
from lmjax.model.transformer import Params

FRAME = "frame"
_ROWS = 128  # that the table grows by, the others 0: what divides the vocabulary among devices divides it still


@dataclass(frozen=True)
class FramedModel(TaskModel):
    """A `TaskModel` whose parameters have `frame` too, [3, D]: the embeddings of the tokens V, V + 1 and V + 2."""

    def on_trunk(self, trunk: Params, rng: jax.Array) -> Params:
        head, frame = jax.random.split(rng)
        settings = self.trunk.settings
        std = settings.init_std or settings.width**-0.5
        rows = std * jax.random.normal(frame, (DECODER_TOKENS, settings.width), jnp.float32)
        return super().on_trunk(trunk, head) | {FRAME: rows}

    def logical_axes(self) -> Any:
        return super().logical_axes() | {FRAME: (None, "embed")}

    def hidden(self, params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        settings, trunk = self.trunk.settings, params[TRUNK]
        wider = dataclasses.replace(settings, vocab_size=(settings.vocab_size or 0) + _ROWS)
        rows = jnp.pad(params[FRAME], ((0, _ROWS - DECODER_TOKENS), (0, 0)))
        table = jnp.concatenate([trunk["tokens"], rows.astype(trunk["tokens"].dtype)])
        return dataclasses.replace(self.trunk, settings=wider).hidden(trunk | {"tokens": table}, batch, rng)
