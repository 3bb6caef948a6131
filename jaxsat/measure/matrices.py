"""Measures of a model's matrices, without any text: spectra of every kind, norms, and how much rows point the same way.

Metrics are called MATRIX.METRIC: `query.effective_rank`, a row a layer; `embedding.frobenius_norm`. The head's spectrum
alone has no prefix, see `language.head`. METRIC.n says from how many vectors a number comes.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxsat import model
from jaxsat.config import Run, unknown
from jaxsat.measure.cosine import centred, mean_cosine, sum_of_directions
from jaxsat.measure.measure import Checkpoint, Measure, every
from jaxsat.measure.spectra import head_spectrum, layer_spectra, summary

MATRICES = ("embedding", "query", "key", "value", "out", "up", "gate", "down")


def spectrum(matrix: str, runs: Callable[[Run], bool] = every) -> Measure:
    """The spectrum of one of MATRICES, by layer but for the embedding: MATRIX.singular_value, descending, the first its
    spectral norm; .singular_entropy, .effective_rank, .largest_share and .condition_number, see `spectra`;
    .singular_value.n, of how many rows, the larger of the two dimensions. A model without gates has none of them."""
    if matrix not in MATRICES:
        raise unknown("matrix", matrix, MATRICES)
    return Measure(f"{matrix}_spectrum", functools.partial(_spectrum, matrix=matrix), runs=runs, traced=True)


def all_spectra(runs: Callable[[Run], bool] = every) -> Measure:
    """`spectra`: the `spectrum` of each of MATRICES."""
    return Measure("spectra", _spectra, runs=runs, traced=True)


def norms(runs: Callable[[Run], bool] = every) -> Measure:
    """MATRIX.frobenius_norm of all MATRICES and of the head's, by layer where there are several. Over the root of the
    number of entries it is their root mean square; the spectral norm is the first value of the spectrum."""
    return Measure("norms", _norms, runs=runs, traced=True)


def row_anisotropy(runs: Callable[[Run], bool] = every) -> Measure:
    """`embedding.row_anisotropy` and `head.row_anisotropy`: the mean cosine of two tokens' rows (Godey et al. 2024 of
    states); .centred_row_anisotropy, of their differences from the mean row; .n of each, of how many rows that are not
    zero. All rows of the vocabulary count, those of tokens that no text has, and of padding, too."""
    return Measure("row_anisotropy", _row_anisotropy, runs=runs, traced=True)


def _spectrum(c: Checkpoint, matrix: str) -> dict[str, jax.Array]:
    w = _matrices(c).get(matrix)
    if w is None:
        return {}
    of = functools.partial(summary, n=max(w.shape[-2:]))
    if w.ndim == 2:
        found = of(head_spectrum(w))
    else:
        side_by_side = model.split_dimension((matrix, "kernel")) == -1
        sigma_LxR = layer_spectra(w.swapaxes(1, 2) if side_by_side else w)
        found = jax.tree.map(lambda x: x.reshape(len(w), -1), jax.vmap(of)(sigma_LxR))
    return {f"{matrix}.{metric}": value for metric, value in found.items()}


def _spectra(c: Checkpoint) -> dict[str, jax.Array]:
    return {name: value for matrix in MATRICES for name, value in _spectrum(c, matrix).items()}


def _norms(c: Checkpoint) -> dict[str, jax.Array]:
    found = {}
    for name, w in (_matrices(c) | _of_head(c)).items():
        norm = jnp.linalg.norm(w, axis=(-2, -1))
        found[f"{name}.frobenius_norm"] = norm if w.ndim == 2 else norm[:, None]
    return found


def _row_anisotropy(c: Checkpoint) -> dict[str, jax.Array]:
    found = {}
    for name, rows_VxD in (("embedding", c.params["embedding"]), ("head", _of_head(c)["head"].T)):
        for metric, h_VxD in (("row_anisotropy", rows_VxD), ("centred_row_anisotropy", centred(rows_VxD))):
            sum_D, n = sum_of_directions(h_VxD)
            found |= {f"{name}.{metric}": mean_cosine(sum_D, n), f"{name}.{metric}.n": n}
    return found


def _matrices(c: Checkpoint) -> dict[str, jax.Array]:
    """Those of MATRICES that the model has, I x O; of all layers L x I x O."""
    blocks = c.params["blocks"]
    found = {name: module["kernel"] for of in ("attention", "feed_forward") for name, module in blocks[of].items()}
    return {"embedding": c.params["embedding"]} | found


def _of_head(c: Checkpoint) -> dict[str, jax.Array]:
    """The matrices of the head, `head` (D x V) of the logits; a factored one multiplied out."""
    found = {name: functools.reduce(jnp.matmul, factors)
             for name, factors in model.heads.matrices(c.config, c.params).items()}  # fmt: skip
    return {"head": found.pop("output")} | found
