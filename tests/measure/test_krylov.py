"""Against dense decompositions in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from jaxsat.measure import krylov


def shares(contexts: int, words: int, seed: int = 0) -> scipy.sparse.csr_array:
    """Rows that add up to 1, of few words each, which are Zipf's; one word follows most of them, some are empty."""
    rng = np.random.default_rng(seed)
    zipf = 1 / np.arange(1, words + 1)
    n = rng.geometric(0.4, contexts)
    n[rng.random(contexts) < 0.02] = 0
    rows = np.repeat(np.arange(contexts), n)
    columns = rng.choice(words, len(rows), p=zipf / zipf.sum())
    counts = scipy.sparse.coo_array((rng.geometric(0.5, len(rows)).astype(float), (rows, columns)), (contexts, words))
    counts = scipy.sparse.csr_array(counts)
    counts.sum_duplicates()
    total = np.maximum(counts.sum(axis=1), 1)
    return scipy.sparse.csr_array(counts.multiply(1 / total[:, None])).astype(np.float32)


@pytest.fixture(params=[(900, 500), (400, 700)], ids=str)
def matrix(request):
    w = shares(*request.param)
    return w, np.linalg.svd(w.toarray().astype(np.float64), compute_uv=False)


def test_leading_values(matrix, monkeypatch):
    w, sigma = matrix
    monkeypatch.setattr(krylov, "DENSE", 64)
    monkeypatch.setattr(krylov, "BLOCK", 8)
    monkeypatch.setattr(krylov, "PIECE", 4)
    found = krylov.leading(w, 40)
    assert 0 < found.grown_K.max() <= 0.01, "it was not the dense matrix"
    np.testing.assert_allclose(found.sigma_K, sigma[:40], rtol=0.003)
    assert (found.sigma_K <= sigma[:40] * (1 + 1e-5)).all(), "from below"
    tight = krylov.leading(w, 10, tolerance=1e-6)
    np.testing.assert_allclose(tight.sigma_K, sigma[:10], rtol=2e-6)
    every = krylov.leading(w, 10_000)
    rank = len(every.sigma_K)
    np.testing.assert_allclose(every.sigma_K, sigma[:rank], atol=1e-6)
    assert rank <= len(sigma) and np.allclose(sigma[rank:], 0, atol=1e-12)


def test_energy_of_every_rank(matrix, monkeypatch):
    w, sigma = matrix
    exact = krylov.energy_curve(w)
    assert len(exact.lines) == 1 and exact.energy == pytest.approx((sigma**2).sum())
    for d in (0, 1, 10, 100, exact.size):
        assert exact.w_error(d) == pytest.approx(np.sqrt((sigma[d:] ** 2).sum() / (sigma**2).sum()), abs=1e-6)
    monkeypatch.setattr(krylov, "DENSE", 64)
    drawn = krylov.energy_curve(w)
    assert len(drawn.lines) == krylov.PROBES and drawn.size == exact.size
    for error in (0.1, 0.05, 0.01):
        rank_P = drawn.rank(error)
        assert rank_P.mean() == pytest.approx(exact.rank(error)[0], rel=0.04)
    np.testing.assert_allclose(drawn.w_error(np.array([1, 10, 100])), exact.w_error(np.array([1, 10, 100])), rtol=0.05)


def test_rows_of_any_length_are_multiplied(monkeypatch):
    monkeypatch.setattr(krylov, "PIECE", 4)
    w, x = shares(300, 40), np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    np.testing.assert_allclose(krylov._multiplied(krylov._rows(w), jnp.asarray(x)), w @ x, rtol=1e-4, atol=1e-5)
    wide = w.T.tocsr()
    assert len(krylov._rows(wide)) > 2, "pieces of pieces"
    y = np.random.default_rng(1).standard_normal((300, 3)).astype(np.float32)
    np.testing.assert_allclose(krylov._multiplied(krylov._rows(wide), jnp.asarray(y)), wide @ y, rtol=1e-4, atol=1e-5)
