"""Cross-entropy of a linear head, chunked so that B x T x V logits never exist, with its gradient taken on the way.

For each chunk of positions the logits are formed once: their softmax gives the loss and, less the target, the
gradient of the logits. Forward and backward together cost three products with the head instead of four, and memory
is one chunk. On 2 CPU cores at V=1024 this is 1.2-1.6 x faster than the plain loss, more at small widths.
"""

import jax
import jax.numpy as jnp

# Tokens whose logits are held at once: 256 x V=1024 x 4 bytes = 1 MiB, which stays in a CPU's cache.
CHUNK_TOKENS = 256


@jax.custom_vjp
def cross_entropy(z_BxTxR: jax.Array, w_RxV: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    """Mean over the targets >= 0 of -log softmax(z w)[target], in nats; negative targets are ignored. f32 scalar."""
    return _loss_and_gradients(z_BxTxR, w_RxV, targets_BxT, with_gradients=False)[0]


def _forward(z_BxTxR, w_RxV, targets_BxT):
    loss, dz_BxTxR, dw_RxV = _loss_and_gradients(z_BxTxR, w_RxV, targets_BxT, with_gradients=True)
    return loss, (dz_BxTxR, dw_RxV)


def _backward(gradients, g):
    dz_BxTxR, dw_RxV = gradients
    return (dz_BxTxR * g.astype(dz_BxTxR.dtype), dw_RxV * g.astype(dw_RxV.dtype), None)


cross_entropy.defvjp(_forward, _backward)


def _loss_and_gradients(z_BxTxR, w_RxV, targets_BxT, with_gradients: bool):
    n_rows, n_positions, _ = z_BxTxR.shape
    # Chunks run along T, so that a batch sharded over devices stays where it is.
    chunk = min(n_positions, max(1, CHUNK_TOKENS // n_rows))
    pad = -n_positions % chunk
    scale = 1 / jnp.maximum(1, (targets_BxT >= 0).sum()).astype(jnp.float32)
    z = jnp.pad(z_BxTxR, ((0, 0), (0, pad), (0, 0)))
    targets = jnp.pad(targets_BxT, ((0, 0), (0, pad)), constant_values=-1)
    split = lambda x: jnp.moveaxis(x.reshape(n_rows, -1, chunk, *x.shape[2:]), 1, 0)

    def step(carry, chunks):
        loss, dw_RxV = carry
        z_BxCxR, targets_BxC = chunks
        logits_BxCxV = jnp.einsum("bcr,rv->bcv", z_BxCxR, w_RxV, preferred_element_type=jnp.float32)
        weight_BxC = jnp.where(targets_BxC >= 0, scale, 0.0)
        # One exponential an element, shared by the loss and the softmax: logsumexp first and then exp(logits - that)
        # takes it twice, and was 2.0 x slower at R=8, V=1024, 1.3 x at R=64, V=1024 and at R=128, V=50304 (1 core).
        top_BxC = logits_BxCxV.max(axis=-1)
        e_BxCxV = jnp.exp(logits_BxCxV - top_BxC[..., None])
        norm_BxC = e_BxCxV.sum(axis=-1)
        picked_BxC = jnp.take_along_axis(logits_BxCxV, jnp.maximum(targets_BxC, 0)[..., None], axis=-1)[..., 0]
        loss += ((jnp.log(norm_BxC) + top_BxC - picked_BxC) * weight_BxC).sum()
        if not with_gradients:
            return (loss, dw_RxV), None
        hit_BxCxV = jnp.arange(w_RxV.shape[1])[None, None, :] == targets_BxC[..., None]
        dlogits = e_BxCxV * (weight_BxC / norm_BxC)[..., None] - jnp.where(hit_BxCxV, weight_BxC[..., None], 0.0)
        dlogits = dlogits.astype(z_BxCxR.dtype)
        dz_BxCxR = jnp.einsum("bcv,rv->bcr", dlogits, w_RxV)
        dw_RxV += jnp.einsum("bcr,bcv->rv", z_BxCxR, dlogits, preferred_element_type=jnp.float32)
        return (loss, dw_RxV), dz_BxCxR

    dw_RxV = jnp.zeros(w_RxV.shape if with_gradients else (), jnp.float32)
    (loss, dw_RxV), dz = jax.lax.scan(step, (jnp.float32(0), dw_RxV), (split(z), split(targets)))
    if not with_gradients:
        return loss, None, None
    dz_BxTxR = jnp.moveaxis(dz, 0, 1).reshape(n_rows, -1, z.shape[-1])[:, :n_positions]
    return loss, dz_BxTxR, dw_RxV.astype(w_RxV.dtype)
