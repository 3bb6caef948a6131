"""Singular values of the output head, and the numbers that summarise them.

All functions are jitted and take one head or one spectrum; stack heads or checkpoints with `jax.vmap`.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import entr


@jax.jit
def head_spectrum(w_VxD: jax.Array) -> jax.Array:
    """Singular values of a head, descending, float32, min(V, D) of them; either orientation of the matrix.

    QR, then SVD of the square factor: within 1e-6 of sigma_1 at V = 50304, d = 512 to 768 and condition number 1e4,
    where an f32 Gram matrix loses the small ones altogether. The same matrices through a float64 Gram
    matrix took 1.4 to 1.6 times as long in XLA on two cores, and TPUs have no float64.
    """
    w = w_VxD.astype(jnp.float32)
    tall = w if w.shape[0] >= w.shape[1] else w.T
    return jnp.linalg.svd(jnp.linalg.qr(tall, mode="r"), compute_uv=False)


@jax.jit
def factored_head_spectrum(a_DxR: jax.Array, b_RxV: jax.Array) -> jax.Array:
    """Singular values of the head A B, descending, without forming its D x V entries.

    A = Qa Ra and B^T = Qb Rb give A B = Qa (Ra Rb^T) Qb^T, whose middle is R x R. Zero-padded factors
    (packed runs of several ranks) give singular values beyond their rank that are zero to rounding.
    """
    ra = jnp.linalg.qr(a_DxR.astype(jnp.float32), mode="r")
    rb = jnp.linalg.qr(b_RxV.astype(jnp.float32).T, mode="r")
    return jnp.linalg.svd(jnp.matmul(ra, rb.T, precision="highest"), compute_uv=False)


def _shares(sigma_R: jax.Array, rank: jax.Array | int | None) -> tuple[jax.Array, jax.Array]:
    """sigma / sum(sigma) over the first `rank`, zeros beyond it; and the rank itself."""
    rank = jnp.asarray(len(sigma_R) if rank is None else rank)
    kept = jnp.where(jnp.arange(len(sigma_R)) < rank, sigma_R, 0)
    return kept / jnp.sum(kept), rank


@jax.jit
def singular_entropy(sigma_R: jax.Array, rank: jax.Array | int | None = None) -> jax.Array:
    """KL of sigma / sum(sigma) from uniform over `rank`, in nats: 0 when flat, log(rank) at rank one.

    Godey et al. 2024, "Why do small language models underperform?": up = more degenerate. `rank` (default
    all of sigma) may be traced; what lies beyond it is ignored. The all-zero spectrum has none: nan.
    """
    p, rank = _shares(sigma_R, rank)
    return jnp.maximum(jnp.log(rank) - jnp.sum(entr(p)), 0)


@jax.jit
def effective_rank(sigma_R: jax.Array, rank: jax.Array | int | None = None) -> jax.Array:
    """exp of the entropy of sigma / sum(sigma), 1 to `rank` (Roy and Vetterli 2007): rank x exp(-singular entropy)."""
    return jnp.exp(jnp.sum(entr(_shares(sigma_R, rank)[0])))


@jax.jit
def largest_share(sigma_R: jax.Array, rank: jax.Array | int | None = None) -> jax.Array:
    """sigma_1 / sum(sigma): from 1 / rank to 1."""
    return _shares(sigma_R, rank)[0][0]


@jax.jit
def condition_number(sigma_R: jax.Array, rank: jax.Array | int | None = None) -> jax.Array:
    """sigma_1 / sigma_rank; inf when the head has lower rank than that."""
    return sigma_R[0] / sigma_R[(len(sigma_R) if rank is None else rank) - 1]
