"""Languages whose answer is known, so that a loss can be compared with the best there is.

Of a known rank: p(. | c) = softmax(W phi_c) with a W of chosen rank and spectrum.

Contexts are the last two tokens c = (a, b), phi_c = (e1[a] + e2[b]) / sqrt 2. A head of rank r on these features
cannot come below the entropy by less than the tail of W allows: with phi of mean 0 and covariance I, truncating W
moves the logits by sqrt(sum_{i > r} sigma_i^2 / V) (root mean square), and the loss by about half the square of that.

By heart: one symbol, again and again. Nothing is to be learnt of it but every symbol of the vocabulary.

`KnownRank` and `Spam` are these two as a `Language`, drawn inside of a compiled step; their vocabulary is the model's.
"""

import functools
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import entr, softmax

from jaxsat.config import InputError


@dataclass(frozen=True, eq=False)
class World:
    """C contexts of a language of V symbols and rank R. float32; every context is as likely as another."""

    w_VxR: np.ndarray  # singular values i^-power, scaled
    e1_VxR: np.ndarray  # of the token before the last
    e2_VxR: np.ndarray  # of the last token
    phi_CxR: np.ndarray  # mean 0 and covariance I over the C contexts
    p_C: np.ndarray  # probabilities of the contexts: 1 / C
    entropy: float  # nats; sum_c p_c H(softmax(W phi_c)): the least loss any model has on these contexts


def world(vocab_size: int, rank: int, power: float, logit_sd: float, seed: int, contexts: int = 8192) -> World:
    """W = U diag(sigma) with sigma_i ~ i^-power, scaled so that the logits have standard deviation `logit_sd`.

    `contexts`: how many of the V^2 pairs, drawn without replacement; all when there are fewer. Raises InputError when
    the rank is not below both.
    """
    contexts = min(contexts, vocab_size**2)
    if not 1 <= rank < min(vocab_size, contexts):
        raise InputError(f"rank {rank} of a language of {vocab_size} symbols, {contexts} contexts: must be below both")
    rng = np.random.default_rng(seed)
    # Columns of mean 0: softmax ignores what is common to all logits, so it must not count in the spectrum.
    u_VxR = rng.standard_normal((vocab_size, rank))
    u_VxR, _ = np.linalg.qr(u_VxR - u_VxR.mean(axis=0))
    sigma_R = np.arange(1.0, rank + 1) ** -power
    sigma_R *= logit_sd * np.sqrt(vocab_size / np.sum(sigma_R**2))
    e1_VxR, e2_VxR = rng.standard_normal((2, vocab_size, rank))
    a_C, b_C = np.divmod(rng.choice(vocab_size**2, contexts, replace=False), vocab_size)
    phi_CxR = (e1_VxR[a_C] + e2_VxR[b_C]) / np.sqrt(2)
    # Whitened by moving and turning e1 and e2, so that phi stays the sum of the two.
    mean_R = phi_CxR.mean(axis=0)
    whiten_RxR = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(phi_CxR.T, bias=True)))).T
    e1_VxR, e2_VxR = ((e - mean_R / np.sqrt(2)) @ whiten_RxR for e in (e1_VxR, e2_VxR))
    w_VxR, phi_CxR = u_VxR * sigma_R, (e1_VxR[a_C] + e2_VxR[b_C]) / np.sqrt(2)
    return World(
        *(x.astype(np.float32) for x in (w_VxR, e1_VxR, e2_VxR, phi_CxR)),
        p_C=np.full(contexts, 1 / contexts, np.float32),
        entropy=float(np.mean(_entropy(w_VxR, phi_CxR))),
    )


def sample(world: World, rows: int, length: int, seed: int) -> np.ndarray:
    """Independent sequences of the language, int32 (rows, length), 16 tokens after a uniform pair."""
    rng, V = np.random.default_rng(seed), len(world.w_VxR)
    # exp(w phi) is a factor of a times a factor of b: no exponential and no matrix product in the loop.
    a_VxV, b_VxV = (np.exp(e @ world.w_VxR.T / np.sqrt(2)) for e in (world.e1_VxR, world.e2_VxR))
    tokens_TxB = np.empty((length + 16, rows), np.int32)
    tokens_TxB[:2] = rng.integers(0, V, (2, rows))
    for t in range(2, length + 16):
        cdf_BxV = np.cumsum(a_VxV[tokens_TxB[t - 2]] * b_VxV[tokens_TxB[t - 1]], axis=1)
        u_Bx1 = rng.random((rows, 1), np.float32) * cdf_BxV[:, -1:]
        tokens_TxB[t] = np.minimum((cdf_BxV < u_Bx1).sum(axis=1), V - 1)
    return np.ascontiguousarray(tokens_TxB[16:].T)


def conditional_entropy(world: World, tokens_BxT: np.ndarray) -> float:
    """Mean entropy of the true next-token distribution over these sequences, nats, from their third token on.

    No model has a smaller expected loss there; it differs from `World.entropy`, whose contexts are equally likely.
    """
    a_N, b_N = tokens_BxT[:, :-2].ravel(), tokens_BxT[:, 1:-1].ravel()
    chunks = np.array_split(np.arange(len(a_N)), -(-len(a_N) // 8192))  # N x V logits at once would be gigabytes
    phi = (world.e1_VxR[a_N[i]] + world.e2_VxR[b_N[i]] for i in chunks)
    return float(np.mean(np.concatenate([_entropy(world.w_VxR, p / np.sqrt(2)) for p in phi])))


class Language(Protocol):
    """What `train.drawn_from` trains on and `measure.excess_loss` knows the truth of: pure JAX functions, and known by
    its fields, which are plain numbers."""

    def rows(self, vocab_size: int, key: jax.Array, n: int, length: int) -> jax.Array:
        """rows_NxT1, int32: n sequences of `length` + 1 tokens. One that is no target stands as ~token, as in pairs."""

    def log_p(self, vocab_size: int, rows_BxT1: jax.Array) -> jax.Array:
        """log_p_BxTxV, float32, -inf where it never is: of the token after each but the last, given those before."""


@dataclass(frozen=True)
class Spam:
    """Token 0, then one of the V - 1 symbols, all as likely, again and again. Entropy log(V - 1) / T nats a token.

    After SpamLang (Godey & Artzi 2026, arXiv:2603.10145), which is said to be unlearnable above some 100 000 symbols
    whatever the model. Their definition was not at hand: this is the simplest one with a known entropy, and ours.
    """

    def rows(self, vocab_size: int, key: jax.Array, n: int, length: int) -> jax.Array:
        symbol_Nx1 = jax.random.randint(key, (n, 1), 1, vocab_size)
        return jnp.pad(jnp.repeat(symbol_Nx1, length, axis=1), ((0, 0), (1, 0)))

    def log_p(self, vocab_size: int, rows_BxT1: jax.Array) -> jax.Array:
        before_BxTx1, token_V = rows_BxT1[:, :-1, None], jnp.arange(vocab_size)[None, None]
        first = jnp.where(token_V > 0, -jnp.log(vocab_size - 1.0), -jnp.inf)
        return jnp.where(before_BxTx1 == 0, first, jnp.where(token_V == before_BxTx1, 0.0, -jnp.inf))


def share_seen(rows: int, vocab_size: int) -> float:
    """The expected share of the symbols of `Spam` that so many rows have: 1 - (1 - 1 / (V - 1))^rows."""
    return -np.expm1(rows * np.log1p(-1 / (vocab_size - 1)))


@dataclass(frozen=True)
class KnownRank:
    """The language of `world`: two tokens, all pairs as likely, which are no targets, and what follows them. The mean
    of its contexts is that along such sequences, as in `conditional_entropy`, not that of `World.entropy`."""

    rank: int
    power: float = 0.5  # of the spectrum of W, i^-power
    logit_sd: float = 1.5
    seed: int = 0

    def rows(self, vocab_size: int, key: jax.Array, n: int, length: int) -> jax.Array:
        if length < 2:
            raise InputError(f"model.context = {length}: a row of {self} begins with two tokens that are no targets")
        first, *rest_T = jax.random.split(key, length)
        pair_2xN = jax.random.randint(first, (2, n), 0, vocab_size)

        def step(pair, key):
            a_N, b_N = pair
            c_N = jax.random.categorical(key, self._logits(vocab_size, a_N, b_N))
            return (b_N, c_N), c_N

        _, rest_TxN = jax.lax.scan(step, tuple(pair_2xN), jnp.stack(rest_T))
        return jnp.concatenate([~pair_2xN, rest_TxN]).T

    def log_p(self, vocab_size: int, rows_BxT1: jax.Array) -> jax.Array:
        token_BxT1 = jnp.where(rows_BxT1 < 0, ~rows_BxT1, rows_BxT1)
        before_BxT = jnp.pad(token_BxT1[:, :-2], ((0, 0), (1, 0)))  # of the second token, no target, anything
        return jax.nn.log_softmax(self._logits(vocab_size, before_BxT, token_BxT1[:, :-1]))

    def _logits(self, vocab_size: int, a: jax.Array, b: jax.Array) -> jax.Array:
        w = _world(vocab_size, self)
        phi = (jnp.asarray(w.e1_VxR)[a] + jnp.asarray(w.e2_VxR)[b]) / np.float32(np.sqrt(2))
        return jnp.matmul(phi, w.w_VxR.T, precision="highest")


@functools.cache
def _world(vocab_size: int, language: KnownRank) -> World:
    return world(vocab_size, language.rank, language.power, language.logit_sd, language.seed)


def _entropy(w_VxR: np.ndarray, phi_NxR: np.ndarray) -> np.ndarray:
    return entr(softmax(phi_NxR @ w_VxR.T, axis=1)).sum(axis=1)
