"""Heads of every rank on given features, trained in one program, and those that an SVD gives.

All ranks train on the same batches, each at its own shape. On two cores a step of 8 heads (rank 2 to 64, D = 64,
V = 1024, 512 states) took 14 ms that way, 24 ms with every head padded to the largest rank, and 42 ms padded and
vmapped, because 8 x 512 x 1024 logits leave the cache.

The features stay on the host, in memory or mapped from a file; FED bytes of batches at a time go to the devices of
this host, each of which has its part of every batch. Of logits a device holds one chunk of one rank at once, LOGITS
numbers or one row; their gradient is taken on the way. So the memory of a step is that, twice FED, and four times the
heads (with their gradient and the two moments of Adam), whatever the number of states and however large the
vocabulary. XLA's plan for a CPU, 512 states a batch, V = 50304, ranks 2 to 16: 15 MiB of logits, which all in one would
be 98 a rank.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax.scipy.special import entr
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike

from jaxsat.config import InputError
from jaxsat.corpus.synthetic import World

Head = tuple[jax.Array, jax.Array]  # a_DxR, b_RxV: logits = (h A) B
LOGITS = 2**22  # numbers: 16 MiB, 83 rows of V = 50304
FED = 2**24  # bytes of features: 256 batches of 256 states of width 64
_ADAM = optax.scale_by_adam()


def gaussian_heads(key: jax.Array, d: int, vocab_size: int, ranks: Sequence[int]) -> list[Head]:
    """Those of a lower rank begin as parts of the full head, so that ranks differ by less than by their draws; a head
    does not depend on which others are asked for. Logits start ten times smaller than the states: where they start as
    large, what is small in the data (tokens that are rare, singular values near 0) takes several times as long to
    learn. Raises InputError on a rank outside 1 to D."""
    return _gaussian(key, d, vocab_size, tuple(_checked(ranks, d)))


def truncated_heads(w_DxV: jax.Array, ranks: Sequence[int]) -> list[Head]:
    """The best approximation of a head at each rank: its truncated SVD (Eckart, Young and Mirsky)."""
    u, s, vt = jnp.linalg.svd(w_DxV.astype(jnp.float32), full_matrices=False)
    return [(u[:, :r] * s[None, :r], vt[:r]) for r in _checked(ranks, len(s))]


def lipschitz_bound(sigma_R: jax.Array, rank: int, radius: float) -> float:
    """2 radius sigma_{rank+1}, nats: no data can move the loss by more when W is truncated to `rank` and every hidden
    state has norm at most `radius`, because log-softmax is 2-Lipschitz in the sup norm of the logits."""
    return 2 * radius * float(sigma_R[rank]) if rank < len(sigma_R) else 0.0


def train(
    heads: Sequence[Head], h_NxD: ArrayLike, targets: ArrayLike, order_SxB: ArrayLike, rates_K: ArrayLike
) -> list[Head]:
    """The K heads, which are used up, after Adam over the batches of rows `order_SxB`. The learning rate of each, one
    of `rates_K`, falls to 0 by a cosine.

    targets: what is learnt, token ids (N), or a head (D x V), whose distributions are then the truth.
    """
    h_NxD, order_SxB = np.asarray(h_NxD), np.asarray(order_SxB)
    steps, batch_size = order_SxB.shape
    size = max(1, min(steps, FED // (4 * batch_size * h_NxD.shape[1])))
    decay_S = 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    padding = ((0, -steps % size), (0, 0))  # one program for all blocks, which takes so many steps as there are
    rate_SxK = np.pad(decay_S[:, None] * np.asarray(rates_K)[None], padding).astype(np.float32)
    order_SxB = np.pad(order_SxB, padding)
    mesh, (ids_N, teacher_DxV) = _mesh(batch_size), _kinds(targets)
    everywhere, parts = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (None, "batch")))
    carry = jax.device_put((list(heads), _ADAM.init(list(heads))), everywhere)
    for s in range(0, steps, size):
        rows_SxB = order_SxB[s : s + size]
        fed = jax.device_put((h_NxD[rows_SxB], None if ids_N is None else ids_N[rows_SxB]), parts)
        jax.block_until_ready(carry)  # of the block before, during which this one was fetched: never more than two
        carry = _steps(carry, *fed, teacher_DxV, rate_SxK[s : s + size], np.int32(min(size, steps - s)), mesh=mesh)
    return carry[0]


def divergences(heads: Sequence[Head], h_NxD: ArrayLike, targets: ArrayLike) -> np.ndarray:
    """KL of each head's prediction from the truth, K x N, nats; of token ids this is the cross entropy. `targets` as
    of `train`."""
    h_NxD, (ids_N, teacher_DxV) = np.asarray(h_NxD), _kinds(targets)
    (n, d), vocab_size = h_NxD.shape, heads[0][1].shape[1]
    mesh = _mesh(jax.local_device_count())
    chunk = max(1, min(1024, LOGITS // vocab_size, -(-n // mesh.size)))
    size = chunk * mesh.size * max(1, min(n, FED // (4 * d)) // (chunk * mesh.size))
    everywhere, parts = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("batch",)))
    heads, teacher_DxV = jax.device_put((list(heads), teacher_DxV), everywhere)
    nats_KxN = np.empty((len(heads), n), np.float32)
    for i in range(0, n, size):
        m = min(size, n - i)
        h_MxD = np.pad(h_NxD[i : i + m], ((0, size - m), (0, 0)))
        ids_M = None if ids_N is None else np.pad(ids_N[i : i + m], (0, size - m))
        fed = jax.device_put((h_MxD, ids_M), parts)
        nats_KxN[:, i : i + m] = np.asarray(_divergences(heads, *fed, teacher_DxV, mesh=mesh, chunk=chunk))[:, :m]
    return nats_KxN


def control(
    world: World, ranks: Sequence[int], *, steps: int = 1600, batch_size: int = 256, seed: int = 0
) -> pd.DataFrame:
    """The experiment with a known answer: heads on the ideal features of a synthetic language.

    A table of metric, index (a rank) and value: `head_tail` = sqrt(sum of sigma_i^2 beyond the rank), and the loss
    above the language's own entropy (nats, exact over its contexts) of the ideal head truncated to that rank,
    `head_gap_truncated`, and of a head trained at it, `head_gap_trained`. The ideal head is a stationary point of the
    loss, so the gap grows like the square of the tail. `head_gap_bound`: what no gap of a truncated head can exceed;
    see `lipschitz_bound`.
    """
    w_DxV, phi_CxD, p_C = jnp.asarray(world.w_VxR).T, world.phi_CxR, world.p_C
    init, data = jax.random.split(jax.random.key(seed))
    order_SxB = jax.random.choice(data, p_C.size, (steps, batch_size), p=jnp.asarray(p_C))
    trained = train(gaussian_heads(init, *w_DxV.shape, ranks), phi_CxD, w_DxV, order_SxB, [1e-2] * len(ranks))
    sigma = np.linalg.svd(np.asarray(w_DxV, np.float64), compute_uv=False)
    radius = float(np.linalg.norm(world.phi_CxR, axis=1).max())
    values = {
        "head_tail": [np.sqrt(np.sum(sigma[r:] ** 2)) for r in ranks],
        "head_gap_bound": [lipschitz_bound(sigma, r, radius) for r in ranks],
        "head_gap_truncated": divergences(truncated_heads(w_DxV, ranks), phi_CxD, w_DxV) @ p_C,
        "head_gap_trained": divergences(trained, phi_CxD, w_DxV) @ p_C,
    }
    parts = [pd.DataFrame({"metric": k, "index": list(ranks), "value": np.asarray(v)}) for k, v in values.items()]
    return pd.concat(parts, ignore_index=True)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _gaussian(key: jax.Array, d: int, vocab_size: int, ranks: tuple[int, ...]) -> list[Head]:
    """One draw for all: a draw a head took 14 s to compile, of 8 heads."""
    a, b = jax.random.split(key)
    a_DxD, b_DxV = jax.random.normal(a, (d, d)) * d**-0.5, 0.1 * jax.random.normal(b, (d, vocab_size))
    return [(a_DxD[:, :r], b_DxV[:r] * r**-0.5) for r in ranks]


def _checked(ranks: Sequence[int], largest: int) -> Sequence[int]:
    for r in ranks:
        if not 1 <= r <= largest:
            raise InputError(f"head rank {r}: must lie between 1 and {largest}")
    return ranks


def _kinds(targets: ArrayLike) -> tuple[np.ndarray | None, jax.Array | None]:
    """(ids_N, teacher_DxV), of which one is None."""
    ids = np.ndim(targets) == 1
    return (np.asarray(targets, np.int32), None) if ids else (None, jnp.asarray(targets))


def _mesh(n: int) -> Mesh:
    """So many devices of this host as n rows can be dealt out to. The axis has a name that the model does not know."""
    devices = jax.local_devices()
    return Mesh(np.array(devices[: math.gcd(n, len(devices))]), ("batch",))


def _truth(h_CxD: jax.Array, ids_C: jax.Array | None, teacher_DxV: jax.Array | None, vocab_size: int) -> jax.Array:
    return jax.nn.one_hot(ids_C, vocab_size) if teacher_DxV is None else jax.nn.softmax(h_CxD @ teacher_DxV)


def gradient(head: Head, h_BxD: jax.Array, ids_B: jax.Array | None, teacher_DxV: jax.Array | None = None) -> Head:
    """Of the sum of the cross entropies over the batch. With a chunk at a time there is no scan where one is all: it
    would keep XLA from sharing the truth between ranks."""
    a, b = head
    vocab_size = b.shape[1]

    def of(h_CxD: jax.Array, ids_C: jax.Array | None) -> Head:
        z_CxR = h_CxD @ a
        g_CxV = jax.nn.softmax(z_CxR @ b) - _truth(h_CxD, ids_C, teacher_DxV, vocab_size)
        return h_CxD.T @ (g_CxV @ b.T), z_CxR.T @ g_CxV

    rows = len(h_BxD)
    n = next(n for n in range(1, rows + 1) if rows % n == 0 and (rows // n * vocab_size <= LOGITS or n == rows))
    if n == 1:
        return of(h_BxD, ids_B)
    chunks = jax.tree.map(lambda x: x.reshape(n, rows // n, *x.shape[1:]), (h_BxD, ids_B))
    add = lambda sums, chunk: (jax.tree.map(jnp.add, sums, of(*chunk)), None)
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, head), chunks)[0]


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _steps(
    carry: tuple[list[Head], Any],
    h_SxBxD: jax.Array,
    ids_SxB: jax.Array | None,
    teacher_DxV: jax.Array | None,
    rate_SxK: jax.Array,
    n: jax.Array,
    *,
    mesh: Mesh,
) -> tuple[list[Head], Any]:
    """(heads, state of Adam) after the first n of S steps."""
    batch_size = h_SxBxD.shape[1]

    def on_each(carry, h_SxBxD, ids_SxB, teacher_DxV, rate_SxK, n):
        def step(s, carry):
            heads, state = carry
            h_BxD, ids_B = jax.tree.map(lambda x: x[s], (h_SxBxD, ids_SxB))
            sums = jax.lax.psum([gradient(head, h_BxD, ids_B, teacher_DxV) for head in heads], "batch")
            with jax.numpy_dtype_promotion("standard"):  # optax raises a Python float to the power of an int32
                updates, state = _ADAM.update(jax.tree.map(lambda x: x / batch_size, sums), state)
            rates = [(rate, rate) for rate in rate_SxK[s]]
            return jax.tree.map(lambda w, u, rate: w - rate * u, heads, updates, rates), state

        return jax.lax.fori_loop(0, n, step, carry)

    every, parts = PartitionSpec(), PartitionSpec(None, "batch")
    specs = (every, parts, parts, every, every, every)
    on_all = jax.shard_map(on_each, mesh=mesh, in_specs=specs, out_specs=every, check_vma=False)
    return on_all(carry, h_SxBxD, ids_SxB, teacher_DxV, rate_SxK, n)


@functools.partial(jax.jit, static_argnames=("mesh", "chunk"))
def _divergences(
    heads: list[Head],
    h_MxD: jax.Array,
    ids_M: jax.Array | None,
    teacher_DxV: jax.Array | None,
    *,
    mesh: Mesh,
    chunk: int,
) -> jax.Array:
    """nats_KxM."""

    def of_chunk(head: Head, h_CxD: jax.Array, ids_C: jax.Array | None, teacher_DxV: jax.Array | None) -> jax.Array:
        a, b = head
        with jax.default_matmul_precision("highest"):
            logp_CxV = jax.nn.log_softmax(h_CxD @ a @ b)
            if teacher_DxV is None:
                return -jnp.take_along_axis(logp_CxV, ids_C[:, None], axis=1)[:, 0]
            truth_CxV = _truth(h_CxD, None, teacher_DxV, b.shape[1])
        return -jnp.sum(entr(truth_CxV) + truth_CxV * logp_CxV, axis=1)

    def on_each(heads, h_MxD, ids_M, teacher_DxV):
        chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), (h_MxD, ids_M))
        each = [jax.lax.map(lambda x, head=head: of_chunk(head, *x, teacher_DxV), chunks) for head in heads]
        return jnp.stack([nats.reshape(-1) for nats in each])

    every, parts = PartitionSpec(), PartitionSpec("batch")
    specs = dict(in_specs=(every, parts, parts, every), out_specs=PartitionSpec(None, "batch"))
    return jax.shard_map(on_each, mesh=mesh, check_vma=False, **specs)(heads, h_MxD, ids_M, teacher_DxV)
