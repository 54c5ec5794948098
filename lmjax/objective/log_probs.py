"""The log-probability of each given token, in float32, without ever holding all logits at once.

In: hidden states, the head's matrix and tokens. Out: an array over tokens, for the losses that compare policies. The
tokens are cut into chunks whose logits are made, used and dropped, and made again for the gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lmjax.objective.cross_entropy import LOGITS_AT_ONCE, chunk_count


def token_log_probs(
    hidden_BTD: jax.Array,
    head_VD: jax.Array,
    targets_BT: jax.Array,
    *,
    temperature: float = 1.0,
    valid_vocab: int | None = None,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """log p(target) and the entropy of p at each token, float32 [B, T] each, in nats.

    p is the softmax of the logits over `temperature`, as the sampler draws from it; rows of the head from
    `valid_vocab` on are left out. `chunk` is the most tokens whose logits exist at once on a device.
    """
    B, T, _ = hidden_BTD.shape
    V = head_VD.shape[0]
    chunks = chunk_count(B, T, chunk or LOGITS_AT_ONCE // V)
    head_VD = head_VD.astype(hidden_BTD.dtype)

    def of_chunk(hidden_BtD: jax.Array, targets_Bt: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits_BtV = jnp.einsum("btd,vd->btv", hidden_BtD, head_VD, preferred_element_type=jnp.float32)
        logits_BtV = logits_BtV / (temperature or 1.0)
        column = jax.lax.broadcasted_iota(jnp.int32, logits_BtV.shape, 2)
        real = column < (valid_vocab or V)
        logits_BtV = jnp.where(real, logits_BtV, -jnp.inf)
        log_p_BtV = jax.nn.log_softmax(logits_BtV, axis=-1)
        chosen_Bt = jnp.where(column == targets_Bt[:, :, None], log_p_BtV, 0.0).sum(axis=-1)
        entropy_Bt = -jnp.where(real, jnp.exp(log_p_BtV) * jnp.where(real, log_p_BtV, 0.0), 0.0).sum(axis=-1)
        return chosen_Bt, entropy_Bt

    if chunks == 1:
        return of_chunk(hidden_BTD, targets_BT)

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(B, T // chunks, chunks, *x.shape[2:]), 2, 0)

    again = jax.checkpoint(of_chunk)
    log_probs, entropy = jax.lax.map(lambda parts: again(*parts), (cut(hidden_BTD), cut(targets_BT)))
    return jnp.moveaxis(log_probs, 0, 2).reshape(B, T), jnp.moveaxis(entropy, 0, 2).reshape(B, T)
