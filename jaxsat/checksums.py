"""Checksums of arrays, taken where they lie, and the same on any mesh, of one host or many.

Of every run's part of an array, which is what axis 0 counts, the sum modulo 2^32 of its words of 32 bits, each mixed
with its place (the finalizer of MurmurHash3, Appleby 2011, which is one to one). So one word that changes always shows,
and several with a chance of 1 - 2^-32. A sum does not ask where its parts lie, so nothing is gathered.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Checksums = dict[str, list[int]]  # of each array, by its path, of every run


def checksums(tree_K: Any) -> Checksums:
    """Of many hosts that the arrays lie on all must call it, and all are told."""
    sums = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree_K):
        x = x if isinstance(x, jax.Array) else jnp.asarray(x)
        to = x.sharding
        if isinstance(to, NamedSharding):
            # Each run's sum stays where the run is. Gathered over the devices of a CPU, many at once, they held all
            # threads of XLA's pool, one a core, and waited for each other for good (2 cores, 6 runs of saturation).
            runs = to.spec[0] if to.spec and jax.process_count() == 1 else None
            to = NamedSharding(to.mesh, PartitionSpec(runs))
        sum_K = sums[jax.tree_util.keystr(path, simple=True, separator=".")] = _sum(x, to)
        if len(to.device_set) > 1:
            sum_K.block_until_ready()
    return {name: np.asarray(sum_K).tolist() for name, sum_K in jax.device_get(sums).items()}


@functools.partial(jax.jit, static_argnames="to")
def _sum(x: jax.Array, to: jax.sharding.Sharding) -> jax.Array:
    x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    x = jnp.atleast_1d(x.astype(jnp.uint8) if x.dtype == bool else x)
    word = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * min(4, x.dtype.itemsize)}")).astype(jnp.uint32)
    place = jnp.uint32(0)
    for axis in range(1, word.ndim):
        stride = math.prod(word.shape[axis + 1 :]) % 2**32
        place = place + jax.lax.broadcasted_iota(jnp.uint32, word.shape, axis) * jnp.uint32(stride)
    h = word ^ (place * jnp.uint32(0x9E3779B1))
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    h = h ^ (h >> 16)
    return jax.lax.with_sharding_constraint(h.sum(axis=tuple(range(1, h.ndim)), dtype=jnp.uint32), to)
