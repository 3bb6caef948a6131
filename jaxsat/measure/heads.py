"""Heads of every rank on frozen features: how much of the loss is the head's rank, and nothing else.

Godey et al. 2024: the backbone is frozen, and heads W = A B of each rank are trained on its last hidden states. All
ranks train on the same batches in one program, each at its own shape. On two cores a step of 8 heads (rank 2 to 64,
D = 64, V = 1024, 512 states) took 14 ms that way, 24 ms with every head padded to the largest rank, and 42 ms padded
and vmapped, because 8 x 512 x 1024 logits leave the cache.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax.scipy.special import entr

from jaxsat.config import InputError
from jaxsat.corpus.synthetic import World

Head = tuple[jax.Array, jax.Array]  # a_DxR, b_RxV: logits = (h A) B


def train_frozen_heads(
    h_NxD: jax.Array,
    targets_N: jax.Array,
    vocab_size: int,
    ranks: Sequence[int],
    *,
    epochs: int = 1,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> list[Head]:
    """A head of each rank, trained on the hidden states of N positions (of rows drawn over the whole corpus) and their
    next tokens.

    A head does not depend on which others are asked for. Each epoch is a fresh permutation; its end, where it does not
    fill a batch, is left out. 0.5 M states of D = 64, V = 1024, 8 ranks: 12 to 19 s on two busy cores; the head of
    full rank ends .02 nats below the backbone's own.
    Raises InputError on a rank outside 1 to D, or when N is below one batch.
    """
    n, d = h_NxD.shape
    if n < batch_size:
        raise InputError(f"{n} hidden states are fewer than one batch of {batch_size}: use more tokens")
    init, data = jax.random.split(jax.random.key(seed))
    steps = n // batch_size
    order = [jax.random.permutation(k, n)[: steps * batch_size] for k in jax.random.split(data, epochs)]
    order_SxB = jnp.concatenate(order).reshape(epochs * steps, batch_size)
    return _train(_gaussian_heads(init, d, vocab_size, ranks), h_NxD, targets_N, order_SxB, learning_rate)


def frozen_head_losses(heads: Sequence[Head], h_NxD: jax.Array, targets_N: jax.Array) -> jax.Array:
    """The loss of each head in nats per token: K numbers."""
    return jnp.mean(_divergences(heads, h_NxD, targets_N), axis=1)


def truncated_heads(w_DxV: jax.Array, ranks: Sequence[int]) -> list[Head]:
    """The best approximation of a head at each rank: its truncated SVD (Eckart, Young and Mirsky)."""
    u, s, vt = jnp.linalg.svd(w_DxV.astype(jnp.float32), full_matrices=False)
    return [(u[:, :r] * s[None, :r], vt[:r]) for r in _checked(ranks, len(s))]


def lipschitz_bound(sigma_R: jax.Array, rank: int, radius: float) -> float:
    """2 radius sigma_{rank+1}, nats: no data can move the loss by more when W is truncated to `rank` and every hidden
    state has norm at most `radius`, because log-softmax is 2-Lipschitz in the sup norm of the logits."""
    return 2 * radius * float(sigma_R[rank]) if rank < len(sigma_R) else 0.0


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
    w_DxV, phi_CxD, p_C = jnp.asarray(world.w_VxR).T, jnp.asarray(world.phi_CxR), jnp.asarray(world.p_C)
    init, data = jax.random.split(jax.random.key(seed))
    order_SxB = jax.random.choice(data, p_C.size, (steps, batch_size), p=p_C)
    trained = _train(_gaussian_heads(init, *w_DxV.shape, ranks), phi_CxD, w_DxV, order_SxB, 1e-2)
    sigma = np.linalg.svd(np.asarray(w_DxV, np.float64), compute_uv=False)
    radius = float(np.linalg.norm(world.phi_CxR, axis=1).max())
    values = {
        "head_tail": [np.sqrt(np.sum(sigma[r:] ** 2)) for r in ranks],
        "head_gap_bound": [lipschitz_bound(sigma, r, radius) for r in ranks],
        "head_gap_truncated": _divergences(truncated_heads(w_DxV, ranks), phi_CxD, w_DxV) @ p_C,
        "head_gap_trained": _divergences(trained, phi_CxD, w_DxV) @ p_C,
    }
    parts = [pd.DataFrame({"metric": k, "index": list(ranks), "value": np.asarray(v)}) for k, v in values.items()]
    return pd.concat(parts, ignore_index=True)


def _checked(ranks: Sequence[int], largest: int) -> Sequence[int]:
    for r in ranks:
        if not 1 <= r <= largest:
            raise InputError(f"head rank {r}: must lie between 1 and {largest}")
    return ranks


def _gaussian_heads(key: jax.Array, d: int, vocab_size: int, ranks: Sequence[int]) -> list[Head]:
    """Logits start ten times smaller than the states: where they start as large, what is small in the data (tokens
    that are rare, singular values near 0) takes several times as long to learn."""

    def head(r: int) -> Head:
        a, b = jax.random.split(jax.random.fold_in(key, r))
        return jax.random.normal(a, (d, r)) * d**-0.5, 0.1 * jax.random.normal(b, (r, vocab_size)) * r**-0.5

    return [head(r) for r in _checked(ranks, d)]


def _batch(h_NxD: jax.Array, targets: jax.Array, i_B: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """Rows of h, and the distributions to learn there: one-hot of token ids (N), or those of a true head (D x V)."""
    h_BxD = h_NxD[i_B]
    return h_BxD, jax.nn.one_hot(targets[i_B], vocab_size) if targets.ndim == 1 else jax.nn.softmax(h_BxD @ targets)


@functools.partial(jax.jit, donate_argnums=0)
def _train(heads: list[Head], h_NxD: jax.Array, targets: jax.Array, order_SxB: jax.Array, lr: float) -> list[Head]:
    """Adam with cosine decay to 0 over the batches of rows `order_SxB`; `targets` as in `_batch`."""
    steps, batch_size = order_SxB.shape
    adam = optax.adam(optax.cosine_decay_schedule(lr, steps))

    def gradient(head: Head, h_BxD: jax.Array, truth_BxV: jax.Array) -> Head:
        a, b = head
        z_BxR = h_BxD @ a
        g_BxV = (jax.nn.softmax(z_BxR @ b) - truth_BxV) / batch_size
        return h_BxD.T @ (g_BxV @ b.T), z_BxR.T @ g_BxV

    def step(carry, i_B):
        heads, state = carry
        batch = _batch(h_NxD, targets, i_B, heads[0][1].shape[1])
        with jax.numpy_dtype_promotion("standard"):  # optax raises a Python float to the power of an int32
            updates, state = adam.update([gradient(head, *batch) for head in heads], state)
        return (optax.apply_updates(heads, updates), state), None

    return jax.lax.scan(step, (heads, adam.init(heads)), order_SxB)[0][0]


@jax.jit
def _divergences(heads: Sequence[Head], h_NxD: jax.Array, targets: jax.Array) -> jax.Array:
    """KL of each head's prediction from the truth, K x N, nats; for token ids this is the cross entropy."""
    n, d = h_NxD.shape
    size = min(n, 1024)  # N x V logits at once would be gigabytes
    i_SxB = jnp.pad(jnp.arange(n), (0, -n % size)).reshape(-1, size)

    def divergences(i_B: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            h_BxD, truth_BxV = _batch(h_NxD, targets, i_B, heads[0][1].shape[1])
            logp = [jax.nn.log_softmax(h_BxD @ a @ b) for a, b in heads]
        return jnp.stack([-jnp.sum(entr(truth_BxV) + truth_BxV * lp, axis=1) for lp in logp])

    return jnp.moveaxis(jax.lax.map(divergences, i_SxB), 1, 0).reshape(len(heads), -1)[:, :n]
