"""Singular values of large sparse matrices, by Lanczos' iteration, in JAX.

All is about the Gram matrix of the smaller dimension, W'W or WW', of which only products with blocks of vectors are
asked. `leading` gives the largest values one by one, by a block iteration; `energy_curve` gives sums over all of them,
by stochastic quadrature (Ubaru, Chen & Saad 2017), where they are too many to be had one by one.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse

DENSE = 2048  # up to this size all values are had exactly, of the dense Gram matrix
BLOCK = 64  # vectors that are multiplied together: more are faster each, and converge later
PIECE = 32  # entries of a row that are added up in one loop
PROBES, STEPS = 16, 256  # of the quadrature


class Rows(NamedTuple):
    """A sparse matrix for products: rows of about equal length together, each padded to the longest of them."""

    columns: list[jax.Array]  # of each group rows x length
    values: list[jax.Array]
    places: jax.Array  # of each row its place among those of all groups


class Gram(NamedTuple):
    """W'W or WW', the smaller of the dimensions that are not empty, as two products; see `_rows`."""

    first: list[Rows]
    second: list[Rows]
    size: int


class Leading(NamedTuple):
    """Singular values, descending, and by which share each still grew when the basis last grew by a quarter."""

    sigma_K: np.ndarray
    grown_K: np.ndarray


class EnergyCurve(NamedTuple):
    """Of the rank-d approximations of a matrix the squared norm of what they leave, from all of it at d = 0 to none:
    for each of the probes the points (d_P, left_P) of a line; one line where it is exact."""

    lines: list[tuple[np.ndarray, np.ndarray]]
    energy: float  # the squared Frobenius norm
    size: int  # of the smaller dimension that is not empty

    def w_error(self, dimensions: np.ndarray) -> np.ndarray:
        """||W - W_d|| / ||W|| (Frobenius; Eckart, Young and Mirsky), the mean over the probes."""
        left = np.mean([np.interp(dimensions, d_P, left_P) for d_P, left_P in self.lines], axis=0)
        return np.sqrt(np.maximum(left, 0) / self.energy)

    def rank(self, w_error: float) -> np.ndarray:
        """Of each probe the least d whose W-error is that."""
        asked = w_error**2 * self.energy
        return np.array([np.interp(-asked, -left_P, d_P) for d_P, left_P in self.lines])


def leading(w_CxV: scipy.sparse.csr_array, k: int, tolerance: float = 0.01, seed: int = 0) -> Leading:
    """The k largest singular values (all, where there are fewer), from below.

    Block Lanczos with every vector orthogonalised against all before it, float32, until none of them grows by more than
    `tolerance` as the basis grows by a quarter; what is then still missing is less in practice (tests). Where the basis
    would hold most of all vectors, the dense Gram matrix is used, and all is exact.
    """
    gram = _gram(w_CxV)
    n = gram.size
    k = min(k, n)
    block = min(BLOCK, k)
    size, filled, before_K = -(-5 * k // (4 * block)) * block, block, np.zeros(k)
    q_NxB = jnp.linalg.qr(jax.random.normal(jax.random.key(seed), (n, block)))[0]
    basis_NxM = q_NxB
    diagonal, below = [], []
    while n > DENSE and 2 * size < n:
        basis_NxM = jnp.pad(basis_NxM, ((0, 0), (0, size - basis_NxM.shape[1])))
        while len(diagonal) * block < size:
            a_BxB, b_BxB, q_NxB, basis_NxM = _lengthened(gram.first, gram.second, q_NxB, basis_NxM, filled)
            filled = min(filled + block, size)
            diagonal.append(np.asarray(a_BxB, np.float64))
            below.append(np.asarray(b_BxB, np.float64))
        sigma_K = np.sqrt(np.maximum(_ritz(diagonal, below)[::-1][:k], 0))
        grown_K = 1 - before_K / sigma_K
        if grown_K.max() <= tolerance:
            return Leading(sigma_K, grown_K)
        before_K, size = sigma_K, -(-5 * size // (4 * block)) * block
        basis_NxM = jnp.concatenate([basis_NxM, q_NxB], axis=1)
        filled += block
    return Leading(_dense(w_CxV)[:k], np.zeros(k))


def energy_curve(w_CxV: scipy.sparse.csr_array, seed: int = 0) -> EnergyCurve:
    """What approximations of every rank leave: exact up to DENSE dimensions, else by PROBES random vectors of signs, of
    each of which STEPS of Lanczos' iteration make a quadrature of the spectrum. In the mean over probes a count or a
    sum is right; one of a part of m eigenvalues differs by about sqrt(2 / m) a probe."""
    energy = float((w_CxV.data.astype(np.float64) ** 2).sum())
    gram = _gram(w_CxV)
    n = gram.size
    if n <= DENSE:
        lambda_N = _dense(w_CxV) ** 2
        return EnergyCurve([(np.arange(n + 1.0), np.append(lambda_N[::-1].cumsum()[::-1], 0.0))], energy, n)
    lines, key = [], jax.random.key(seed)
    for i in range(0, PROBES, 4):
        signs_Nx4 = jax.random.rademacher(jax.random.fold_in(key, i), (n, 4), jnp.float32)
        alpha_Sx4, beta_Sx4 = (
            np.asarray(x, np.float64) for x in _lanczos(gram.first, gram.second, signs_Nx4 / np.sqrt(n))
        )
        for j in range(4):
            theta, vectors = scipy.linalg.eigh_tridiagonal(alpha_Sx4[:, j], beta_Sx4[:-1, j])
            weight = n * vectors[0, ::-1] ** 2
            each = weight * np.maximum(theta[::-1], 0)
            lines.append((np.append(0, weight.cumsum()), np.append(each[::-1].cumsum()[::-1], 0.0)))
    return EnergyCurve(lines, energy, n)


def _gram(w_CxV: scipy.sparse.csr_array) -> Gram:
    w = _whole(w_CxV)
    both = (w, w.T.tocsr()) if w.shape[1] <= w.shape[0] else (w.T.tocsr(), w)
    return Gram(*map(_rows, both), min(w.shape))


def _whole(w_CxV: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    w = scipy.sparse.csr_array(w_CxV)
    w = w[np.diff(w.indptr) > 0]
    return w[:, np.unique(w.indices)]


def _dense(w_CxV: scipy.sparse.csr_array) -> np.ndarray:
    """All singular values, descending, of the float64 Gram matrix."""
    w = _whole(w_CxV).astype(np.float64)
    small = (w.T @ w if w.shape[1] <= w.shape[0] else w @ w.T).toarray()
    return np.sqrt(np.maximum(np.linalg.eigvalsh(small)[::-1], 0))


def _rows(w: scipy.sparse.csr_array) -> list[Rows]:
    """A matrix as matrices to be applied one after the other: of its rows cut into pieces of at most PIECE entries,
    then of the sums of pieces of one row, and so on: a loop over the 20,000 entries of the longest row would take
    longer than all else."""
    length = np.diff(w.indptr)
    pieces = np.maximum(-(-length // PIECE), 1)
    row = np.repeat(np.arange(len(length)), pieces)
    nth = np.arange(len(row)) - np.repeat(pieces.cumsum() - pieces, pieces)
    start = w.indptr[row] + PIECE * nth
    length = np.minimum(length[row] - PIECE * nth, PIECE)
    group = np.ceil(np.log2(np.maximum(length, 1))).astype(int)
    columns, values, order = [], [], []
    for g in np.unique(group):  # of lengths up to a power of two
        own = np.flatnonzero(group == g)
        step = np.arange(length[own].max())
        there = step < length[own][:, None]
        at = np.where(there, start[own][:, None] + step, 0)
        columns.append(jnp.asarray(np.where(there, w.indices[at], 0), jnp.int32))
        values.append(jnp.asarray(np.where(there, w.data[at], 0), jnp.float32))
        order.append(own)
    places = np.argsort(np.concatenate(order))
    cut = Rows(columns, values, jnp.asarray(places, jnp.int32))
    if len(row) == len(pieces):
        return [cut]
    ends = np.append(0, pieces.cumsum())
    return [cut, *_rows(scipy.sparse.csr_array((np.ones(len(row)), np.arange(len(row)), ends)))]


def _multiplied(w: list[Rows], x_NxB: jax.Array) -> jax.Array:
    """W x, an entry of all rows of a group at a time: a gather of rows of x, no scatter."""

    def group(columns_MxL: jax.Array, values_MxL: jax.Array, x_NxB: jax.Array) -> jax.Array:
        def add(i: jax.Array, sum_MxB: jax.Array) -> jax.Array:
            return sum_MxB + values_MxL[:, i, None] * x_NxB[columns_MxL[:, i]]

        start = jnp.zeros((columns_MxL.shape[0], x_NxB.shape[1]))
        return jax.lax.fori_loop(0, columns_MxL.shape[1], add, start)

    for rows in w:
        found = [group(c, v, x_NxB) for c, v in zip(rows.columns, rows.values)]
        x_NxB = jnp.concatenate(found)[rows.places]
    return x_NxB


@jax.jit
def _times_gram(first: list[Rows], second: list[Rows], x_NxB: jax.Array) -> jax.Array:
    return _multiplied(second, _multiplied(first, x_NxB))


@partial(jax.jit, donate_argnames="basis_NxM")
def _lengthened(
    first: list[Rows], second: list[Rows], q_NxB: jax.Array, basis_NxM: jax.Array, filled: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(q' G q, R of the next block, that block, the basis with it in its first free columns, where there are any)."""
    y_NxB = _times_gram(first, second, q_NxB)
    a_BxB = q_NxB.T @ y_NxB
    for _ in range(2):  # twice is enough
        y_NxB -= basis_NxM @ (basis_NxM.T @ y_NxB)
    next_NxB, b_BxB = jnp.linalg.qr(y_NxB)
    room = filled + q_NxB.shape[1] <= basis_NxM.shape[1]
    kept = jax.lax.dynamic_update_slice(basis_NxM, next_NxB, (0, filled))
    return (a_BxB + a_BxB.T) / 2, b_BxB, next_NxB, jnp.where(room, kept, basis_NxM)


def _ritz(diagonal: list[np.ndarray], below: list[np.ndarray]) -> np.ndarray:
    """Eigenvalues, ascending, of the block tridiagonal matrix."""
    b, n = len(diagonal[0]), len(diagonal)
    t = np.zeros((n * b, n * b))
    for i, a in enumerate(diagonal):
        t[i * b : (i + 1) * b, i * b : (i + 1) * b] = a
        if i + 1 < n:
            t[(i + 1) * b : (i + 2) * b, i * b : (i + 1) * b] = below[i]
    return np.linalg.eigvalsh(t)  # reads the lower half


@jax.jit
def _lanczos(first: list[Rows], second: list[Rows], start_NxP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(alpha_SxP, beta_SxP) of Lanczos' iteration from each column, orthogonalised against all before."""
    n, p = start_NxP.shape

    def step(carry, i):
        basis_SxNxP, q_NxP, before_NxP, beta_P = carry
        basis_SxNxP = basis_SxNxP.at[i].set(q_NxP)
        y_NxP = _times_gram(first, second, q_NxP) - beta_P[None] * before_NxP
        alpha_P = jnp.sum(q_NxP * y_NxP, axis=0)
        y_NxP -= alpha_P[None] * q_NxP
        y_NxP -= jnp.einsum("snp,sp->np", basis_SxNxP, jnp.einsum("snp,np->sp", basis_SxNxP, y_NxP))
        beta_P = jnp.linalg.norm(y_NxP, axis=0)
        return (basis_SxNxP, y_NxP / jnp.maximum(beta_P, 1e-30)[None], q_NxP, beta_P), (alpha_P, beta_P)

    start = jnp.zeros((STEPS, n, p)), start_NxP, jnp.zeros_like(start_NxP), jnp.zeros(p)
    return jax.lax.scan(step, start, jnp.arange(STEPS))[1]
