"""Rows in which not every token is a target, as `jaxsat.corpus.pairs` lays them out: several pairs in a row, a token of
a source written ~token, and -1 where nothing is; and rows in which texts that begin alike share their beginning."""

import jax
import jax.numpy as jnp


def read_marks(rows_BxT1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(inputs_BxT, segment_BxT) of marked rows: the tokens to be read, and the number of the pair that each is of; a
    row of text is one segment. The targets are rows[:, 1:], of which the loss leaves out the negative ones."""
    marked_BxT1 = rows_BxT1 < 0
    begins_BxT = marked_BxT1[:, 1:] & ~marked_BxT1[:, :-1]
    segment_BxT1 = jnp.cumsum(jnp.pad(begins_BxT, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)
    return jnp.where(marked_BxT1, ~rows_BxT1, rows_BxT1)[:, :-1], segment_BxT1[:, :-1]


def places(segment_BxT: jax.Array) -> jax.Array:
    """Of each position, the how manieth of its segment it is, from 0 on."""
    column_T = jnp.arange(segment_BxT.shape[1], dtype=jnp.int32)
    begins_BxT = jnp.pad(segment_BxT[:, 1:] != segment_BxT[:, :-1], ((0, 0), (1, 0)))
    return column_T[None] - jax.lax.cummax(jnp.where(begins_BxT, column_T[None], 0), axis=1)


def ends(depth_BxT: jax.Array) -> jax.Array:
    """Of each node of trees that lie depth first in a row, roots at depth 0, the column after the last one below it:
    that of the next node no deeper."""
    column_T = jnp.arange(depth_BxT.shape[1], dtype=jnp.int32)
    later_BxTxT = (column_T[None] > column_T[:, None])[None] & (depth_BxT[:, None] <= depth_BxT[:, :, None])
    return jnp.where(later_BxTxT, column_T[None, None], len(column_T)).min(axis=-1)
