"""How much the representations of a layer point the same way."""

import jax
import jax.numpy as jnp

from jaxsat.config import InputError


@jax.jit
def anisotropy(h_NxD: jax.Array) -> jax.Array:
    """Mean cosine over all pairs of different rows, exactly and in linear time (Godey et al. 2024).

    (|sum of unit vectors|^2 - n) / (n (n - 1)), in float32: from -1 / (n - 1) to 1. A zero vector has no direction and
    leaves the mean: n counts the others; with fewer than two of them the answer is nan. Only sums over N,
    so rows may be sharded. Raises InputError when traced with fewer than two rows.
    """
    if h_NxD.ndim != 2 or h_NxD.shape[0] < 2:
        raise InputError(f"anisotropy of an array of shape {h_NxD.shape}: needs N x D with at least 2 rows")
    return mean_cosine(*sum_of_directions(h_NxD))


@jax.jit
def centred_anisotropy(h_NxD: jax.Array) -> jax.Array:
    """Mean cosine over all pairs of different rows as their mean sees them: a common offset, which may be all that
    makes them anisotropic, is gone (Mu et al. 2018, arXiv:1702.01417). About 0 for rows whose directions from the mean
    are independent, nan where all rows are equal. Otherwise as `anisotropy`."""
    if h_NxD.ndim != 2 or h_NxD.shape[0] < 2:
        raise InputError(f"anisotropy of an array of shape {h_NxD.shape}: needs N x D with at least 2 rows")
    return mean_cosine(*sum_of_directions(centred(h_NxD)))


def centred(h_NxD: jax.Array) -> jax.Array:
    """The rows minus their mean, float32. The mean is taken away twice: once leaves its own rounding in all rows, an
    offset of which 1e5 rows that lie 1e4 deviations from the origin have a mean cosine of 1e-5."""
    h = h_NxD.astype(jnp.float32)
    h -= jnp.mean(h, axis=0, keepdims=True)
    return h - jnp.mean(h, axis=0, keepdims=True)


def sum_of_directions(h_NxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum_D of the unit vectors of the rows, how many they are): of rows in several parts, they add up."""
    h = h_NxD.astype(jnp.float32)
    scale = jnp.max(jnp.abs(h), axis=1, keepdims=True)  # first, so that squares neither overflow nor vanish
    h = h / jnp.where(scale > 0, scale, 1)
    norm = jnp.linalg.norm(h, axis=1, keepdims=True)
    return jnp.sum(h / jnp.where(norm > 0, norm, 1), axis=0), jnp.sum(norm > 0, dtype=jnp.float32)


def mean_cosine(sum_D: jax.Array, n: jax.Array) -> jax.Array:
    """The mean cosine of all pairs of n unit vectors, of which only the sum is needed."""
    # As n |mean|^2 - 1 over n - 1: |sum|^2 - n of 1e5 rows has lost its small digits in float32.
    return (n * jnp.sum((sum_D / n) ** 2) - 1) / jnp.where(n > 1, n - 1, jnp.nan)
