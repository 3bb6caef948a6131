"""The gradient's way through the head (Godey & Artzi 2026, arXiv:2603.10145: "the LM head is a gradient bottleneck").

At a position with logits z = W h and the target y, the gradient of the loss by the logits is g = softmax(z) - e_y, of
V numbers. The layers below are given W' g, and nothing else of it: a head has no bias, so the logits that they can
move are the columns of W, a space of dimension r. Q Q' g is the part of g that lies there, with W = Q R; what is
orthogonal to it is lost to them, though not to W itself, which is given g h'. How W's singular values weigh what passes
is no part of these numbers.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from jaxsat import model
from jaxsat.config import ModelConfig, Run
from jaxsat.corpus.synthetic import Language
from jaxsat.measure.drawn import drawn_blocks
from jaxsat.measure.measure import Checkpoint, Measure, every
from jaxsat.model.sharding import axis_size, constrain

GRADIENT_TOKENS = 8192  # the first of the held-out slice
CHUNK = 256  # positions whose gradients a device holds at once

_NAMES = ("gradient_norm_passed", "gradient_norm_lost", "gradient_energy_passed")


def gradient_share(runs: Callable[[Run], bool] = every, language: Language | None = None) -> Measure:
    """Which part of the logits' gradient g passes the head, over the targets among the first GRADIENT_TOKENS of the
    slice: `gradient_norm_passed`, the mean of |Q' g| / |g|; `gradient_norm_lost`, of |g - Q Q' g| / |g|;
    `gradient_energy_passed`, sum |Q' g|^2 / sum |g|^2; and `gradient_norm_passed.n`, of how many positions.

    Beside each NAME.random, see `random_share`: a head that passes no more is a bottleneck by its rank alone. Of a
    nonlinear head W is the last matrix, on its bottleneck, and what lies before takes more away; a mixture has K
    gradients a position and none of these numbers. language: rows drawn from it instead of the slice.
    """
    name = f"gradient_share {language}" if language else "gradient_share"
    return Measure(name, partial(_gradient_share, language=language), runs=runs, traced=True)


def random_share(rank: ArrayLike, vocab_size: int) -> np.ndarray:
    """What a random subspace of this rank passes of any vector g of V numbers: the expected |P g| / |g|,
    |g - P g| / |g| and |P g|^2 / |g|^2, float64, stacked on a first axis.

    The last is r / V exactly: the mean of P over all rotations commutes with each of them, so it is c I, and its trace
    is r = c V. |P g|^2 / |g|^2 is that of r of V normal numbers, Beta(r / 2, (V - r) / 2), and the others are the means
    of the roots of it and of one less it; the second is sqrt(1 - r / V) to some 1 / V (GPT-2, r = 768: .9923).
    """
    r = np.asarray(rank, float)
    root = lambda n: np.exp(
        gammaln((n + 1) / 2) - gammaln(n / 2) + gammaln(vocab_size / 2) - gammaln((vocab_size + 1) / 2)
    )
    return np.stack([root(r), root(vocab_size - r), r / vocab_size])


def _gradient_share(c: Checkpoint, language: Language | None) -> dict[str, jax.Array]:
    if c.config.head == "mixture":
        return {}
    w_VxR = model.heads.matrices(c.config, c.params)["output"][-1].T  # of A B the columns of B' span those of the whole
    # Householder's, of which zero columns make no nan. Those beyond the rank are the last, and stand for nothing.
    q_VxR, _ = jnp.linalg.qr(constrain(w_VxR.astype(jnp.float32)))
    rank = jnp.minimum(c.rank, q_VxR.shape[1])
    q_VxR = constrain(jnp.where(jnp.arange(q_VxR.shape[1])[None] < rank, q_VxR, 0), "model")
    if language:
        blocks_NxBxT1, sampled, marked = drawn_blocks(c, language), None, False
    else:
        blocks_NxBxT1, marked = c.heldout.tokens_NxBxT1, c.heldout.marked
        sampled = -(-GRADIENT_TOKENS // c.config.context)  # rows
        blocks_NxBxT1 = blocks_NxBxT1[: -(-sampled // blocks_NxBxT1.shape[1])]

    def block(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        first, rows_BxT1 = args
        inputs_BxT, segment_BxT = model.read_marks(rows_BxT1)
        h_BxTxD, _ = model.hidden(c.config, c.params, inputs_BxT, segment_BxT=segment_BxT if marked else None)
        targets_BxT = rows_BxT1[:, 1:]
        if sampled:
            targets_BxT = jnp.where((first + jnp.arange(len(rows_BxT1)) < sampled)[:, None], targets_BxT, -1)
        return _sums(c.config, c.params, q_VxR, h_BxTxD, targets_BxT)

    first_N = jnp.arange(len(blocks_NxBxT1)) * blocks_NxBxT1.shape[1]
    passed, lost, energy_passed, energy, n = jax.lax.map(block, (first_N, blocks_NxBxT1)).sum(0)
    found = dict(zip(_NAMES, (passed / n, lost / n, energy_passed / energy))) | {f"{_NAMES[0]}.n": n}
    table = random_share(np.arange(q_VxR.shape[1] + 1), c.config.vocab_size).astype(np.float32)
    return found | {f"{name}.random": jnp.asarray(of_rank)[rank] for name, of_rank in zip(_NAMES, table)}


def _sums(
    config: ModelConfig, params: model.Params, q_VxR: jax.Array, h_BxTxD: jax.Array, targets_BxT: jax.Array
) -> jax.Array:
    """Over the targets >= 0: |Q' g| / |g|, |g - Q Q' g| / |g|, |Q' g|^2, |g|^2 and 1, chunk by chunk of positions."""
    size = max(1, CHUNK * axis_size("data") // len(h_BxTxD))
    pad = -targets_BxT.shape[1] % size

    def chunks(x: jax.Array, fill: int) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)), constant_values=fill)
        return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)

    def chunk(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        h_BxCxD, targets_BxC = args
        logits_BxCxV = model.heads.logits(config, params, h_BxCxD)
        hit_BxCxV = jnp.arange(len(q_VxR))[None, None] == targets_BxC[..., None]
        # g = (1 - p_y) (softmax of the others - e_y): p_y - 1 itself is all rounding once the model is sure.
        others_BxCxV = jnp.where(hit_BxCxV, -jnp.inf, logits_BxCxV)
        others_BxC = jax.nn.logsumexp(others_BxCxV, axis=-1)
        weight_BxC = jax.nn.sigmoid(others_BxC - jnp.where(hit_BxCxV, logits_BxCxV, 0).sum(-1)) ** 2
        g_BxCxV = jnp.exp(others_BxCxV - others_BxC[..., None]) - hit_BxCxV.astype(jnp.float32)
        back_BxCxR = jnp.einsum("bcv,vr->bcr", g_BxCxV, q_VxR, precision="highest")
        lost_BxCxV = g_BxCxV - jnp.einsum("bcr,vr->bcv", back_BxCxR, q_VxR, precision="highest")
        passed, lost, whole = (jnp.sum(x**2, axis=-1) for x in (back_BxCxR, lost_BxCxV, g_BxCxV))
        shares = jnp.sqrt(passed / whole), jnp.sqrt(lost / whole)
        each = (*shares, weight_BxC * passed, weight_BxC * whole, jnp.ones_like(whole))
        return jnp.stack([jnp.where(targets_BxC >= 0, x_BxC, 0).sum() for x_BxC in each])

    return jax.lax.map(chunk, (chunks(h_BxTxD, 0), chunks(targets_BxT, -1))).sum(0)
