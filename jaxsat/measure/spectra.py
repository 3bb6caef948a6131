"""Singular values of a model's matrices, and the numbers that summarise them.

All functions are jitted and take one head, the matrices of one kind of all layers, or one spectrum; stack heads or
checkpoints with `jax.vmap`. A head whose vocabulary lies over axes `model` and `data` of the mesh is factored where it
lies; of layers each device takes some.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jax.sharding import PartitionSpec

from jaxsat.model.sharding import axis_size


@jax.jit
def head_spectrum(w_VxD: jax.Array) -> jax.Array:
    """Singular values of a head, descending, float32, min(V, D) of them; either orientation of the matrix.

    QR, then SVD of the square factor: within 1e-6 of sigma_1 at V = 50304, d = 512 to 768 and condition number 1e4,
    where an f32 Gram matrix loses the small ones altogether. The same matrices through a float64 Gram
    matrix took 1.4 to 1.6 times as long in XLA on two cores, and TPUs have no float64.
    """
    w = w_VxD.astype(jnp.float32)
    return jnp.linalg.svd(_r_factor(w if w.shape[0] >= w.shape[1] else w.T), compute_uv=False)


@jax.jit
def factored_head_spectrum(a_DxR: jax.Array, b_RxV: jax.Array) -> jax.Array:
    """Singular values of the head A B, descending, without forming its D x V entries.

    A = Qa Ra and B^T = Qb Rb give A B = Qa (Ra Rb^T) Qb^T, whose middle is R x R. Zero-padded factors
    (packed runs of several ranks) give singular values beyond their rank that are zero to rounding.
    """
    ra = _r_factor(a_DxR.astype(jnp.float32))
    rb = _r_factor(b_RxV.astype(jnp.float32).T)
    return jnp.linalg.svd(jnp.matmul(ra, rb.T, precision="highest"), compute_uv=False)


@jax.jit
def layer_spectra(w_LxIxO: jax.Array) -> jax.Array:
    """sigma_LxR: the singular values of each of L matrices, descending, float32. I lies over axis `model`, O over
    `data` as training keeps them; each device is sent whole matrices, ceil(L / devices) of them."""
    n_model, n_data = axis_size("model"), axis_size("data")
    # One at a time: `parallel.takes_turns` says why not batched.
    each = functools.partial(jax.lax.map, lambda w_IxO: jnp.linalg.svd(_upright(w_IxO), compute_uv=False))
    if n_model == n_data == 1:
        return each(w_LxIxO)

    @functools.partial(
        jax.shard_map,
        in_specs=PartitionSpec(None, "model", "data"),
        out_specs=PartitionSpec(("data", "model")),
        axis_names={"data", "model"},
        check_vma=False,
    )
    def own(w_LxIxO):
        w_LxIxO = jax.lax.all_to_all(w_LxIxO, "data", 0, 2, tiled=True)
        return each(jax.lax.all_to_all(w_LxIxO, "model", 0, 1, tiled=True))

    n_layers, n_in, n_out = w_LxIxO.shape
    filled = jnp.pad(w_LxIxO, ((0, -n_layers % (n_model * n_data)), (0, -n_in % n_model), (0, -n_out % n_data)))
    return own(filled)[:n_layers, : min(n_in, n_out)]


def _upright(w_NxD: jax.Array) -> jax.Array:
    """A matrix of as many rows as columns or fewer, with the same singular values."""
    w = w_NxD.astype(jnp.float32)
    return _smaller(w if w.shape[0] >= w.shape[1] else w.T)


def _r_factor(x_NxD: jax.Array) -> jax.Array:
    """R of a QR factorisation, for singular values. Of rows that lie over the devices each factors its own, then four
    at a time their stacked factors (TSQR): nobody holds more than 4 D x D of others.

    Cholesky-QR, which is matrix products only, is no substitute: where packed runs have heads of lower rank than they
    are stored with, its Gram matrix is singular. In float32 at V = 50304, d = 128 (errors as a part of sigma_1; 2 CPU
    cores), by condition number 1e2, 1e4, 1e6 and of a head of rank 64: this 8e-7, 2e-7, 3e-7, 3e-7; Cholesky-QR2 9e-7,
    nan, nan, nan; shifted Cholesky-QR3 9e-7, 2e-7, 2e-7, nan. And on a CPU the latter took 1.4 x as long as one QR.
    """
    n_model, n_data = axis_size("model"), axis_size("data")
    if n_model == n_data == 1:
        return _smaller(x_NxD)

    # In as training keeps a head: rows over `model`, the other dimension over `data` (FSDP). Left to itself the
    # compiler gathers it whole on a 4 x 4 mesh to go from there to rows over both.
    @functools.partial(
        jax.shard_map,
        in_specs=PartitionSpec("model", "data"),
        out_specs=PartitionSpec(),
        axis_names={"data", "model"},
        check_vma=False,
    )
    def own(x_NxD):
        r = _smaller(jax.lax.all_to_all(_padded(x_NxD, n_data, 1), "data", 0, 1, tiled=True))
        for axis, n in (("model", n_model), ("data", n_data)):
            stride = 1
            while stride < n:
                left = n // stride
                together = math.gcd(left, 4) if left % 2 == 0 else left
                groups_GxP = np.arange(n).reshape(-1, together, stride).swapaxes(1, 2).reshape(-1, together)
                r = _smaller(jax.lax.all_gather(r, axis, axis_index_groups=groups_GxP.tolist(), tiled=True))
                stride *= together
        return r

    return own(_padded(x_NxD, n_model, n_data))[:, : x_NxD.shape[1]]


def _smaller(x_NxD: jax.Array) -> jax.Array:
    return jnp.linalg.qr(x_NxD, mode="r") if x_NxD.shape[0] > x_NxD.shape[1] else x_NxD


def _padded(x_NxD: jax.Array, n: int, d: int) -> jax.Array:
    """Zeros up to multiples of `n` rows and `d` columns: they add no singular value but zeros."""
    return jnp.pad(x_NxD, ((0, -x_NxD.shape[0] % n), (0, -x_NxD.shape[1] % d)))


def _shares(sigma_R: jax.Array, rank: jax.Array | int | None) -> tuple[jax.Array, jax.Array]:
    """sigma / sum(sigma) over the first `rank`, zeros beyond it; and the rank itself."""
    rank = jnp.asarray(len(sigma_R) if rank is None else rank)
    kept = jnp.where(jnp.arange(len(sigma_R)) < rank, sigma_R, 0)
    return kept / jnp.sum(kept), rank


def summary(sigma_R: jax.Array, n: int, rank: jax.Array | int | None = None) -> dict[str, jax.Array]:
    """The spectrum of a matrix of `n` rows and at most this rank, nan beyond it, and what sums it up."""
    rank = jnp.minimum(len(sigma_R) if rank is None else rank, len(sigma_R))
    return {
        "singular_value": jnp.where(jnp.arange(len(sigma_R)) < rank, sigma_R, jnp.nan),
        "singular_value.n": jnp.float32(n),
        "singular_entropy": singular_entropy(sigma_R, rank),
        "effective_rank": effective_rank(sigma_R, rank),
        "largest_share": largest_share(sigma_R, rank),
        "condition_number": condition_number(sigma_R, rank),
    }


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
