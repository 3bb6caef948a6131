import jax
import numpy as np
import pytest

from jaxsat.config import InputError
from jaxsat.corpus.synthetic import KnownRank, Spam, conditional_entropy, sample, share_seen, world


def distribution(phi_NxR: np.ndarray, w_VxR: np.ndarray) -> np.ndarray:
    """softmax, in float64 and spelt out."""
    z_NxV = np.einsum("nr,vr->nv", phi_NxR, w_VxR, dtype=np.float64)
    e_NxV = np.exp(z_NxV - z_NxV.max(axis=1, keepdims=True))
    return e_NxV / e_NxV.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("vocab_size", "rank", "power"), [(61, 1, 1.0), (61, 7, 0.5), (130, 16, 1.5)])
def test_spectrum_features_and_entropy(vocab_size: int, rank: int, power: float):
    w = world(vocab_size, rank, power, logit_sd=1.5, seed=2, contexts=3000)
    sigma = np.linalg.svd(w.w_VxR, compute_uv=False)
    np.testing.assert_allclose(sigma / sigma[0], np.arange(1.0, rank + 1) ** -power, rtol=1e-5)
    np.testing.assert_allclose(w.phi_CxR.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(w.phi_CxR.T @ w.phi_CxR / 3000, np.eye(rank), atol=1e-5)
    logits = w.phi_CxR @ w.w_VxR.T
    assert logits.std() == pytest.approx(1.5, rel=1e-5)
    np.testing.assert_allclose(logits.mean(axis=1), 0, atol=1e-5)  # nothing in W that softmax ignores
    p = distribution(w.phi_CxR, w.w_VxR)
    assert w.entropy == pytest.approx(-(p * np.log(p)).sum(axis=1) @ w.p_C, rel=1e-6)
    assert 0 < w.entropy < np.log(vocab_size) and w.p_C.sum() == pytest.approx(1)


@pytest.mark.parametrize("power", [0.5, 1.5])
def test_truncation_costs_half_the_square_of_the_tail(power: float):
    """papers A.7: the second-order gap. Measured with the prototype: 0.77 to 1.04 of it."""
    w = world(512, 16, power, logit_sd=1.5, seed=0, contexts=2000)
    p = distribution(w.phi_CxR, w.w_VxR)
    sigma = np.linalg.svd(w.w_VxR, compute_uv=False)
    for r in (4, 8, 12):
        q = distribution(w.phi_CxR, np.where(np.arange(16) < r, w.w_VxR, 0))  # its columns are the singular vectors
        gap = (p * np.log(p / q)).sum(axis=1).mean()
        assert gap == pytest.approx(np.sum(sigma[r:] ** 2) / 512 / 2, rel=0.25)


def test_few_symbols_use_every_context():
    w = world(5, 2, 1.0, 1.0, seed=0)
    pairs = (w.e1_VxR[:, None] + w.e2_VxR[None, :]).reshape(25, 2) / np.sqrt(2)
    np.testing.assert_allclose(np.sort(w.phi_CxR, axis=0), np.sort(pairs, axis=0), atol=1e-6)


def test_sampled_tokens_follow_the_language():
    w = world(5, 2, 1.0, 1.0, seed=0)
    tokens = sample(w, rows=500, length=400, seed=1)
    assert tokens.shape == (500, 400) and tokens.dtype == np.int32
    counts = np.zeros((25, 5))
    np.add.at(counts, ((5 * tokens[:, :-2] + tokens[:, 1:-1]).ravel(), tokens[:, 2:].ravel()), 1)
    pairs = (w.e1_VxR[:, None] + w.e2_VxR[None, :]).reshape(25, 2) / np.sqrt(2)
    p, n = distribution(pairs, w.w_VxR), counts.sum(axis=1, keepdims=True)
    assert (np.abs(counts - n * p) < 4.5 * np.sqrt(n * p * (1 - p))).all()
    exact = -(p * np.log(p)).sum(axis=1) @ n[:, 0] / n.sum()
    assert conditional_entropy(w, tokens) == pytest.approx(exact, rel=1e-5)


def test_seeds():
    a, b, c = (world(40, 3, 1.0, 1.0, seed) for seed in (0, 0, 1))
    assert np.array_equal(a.w_VxR, b.w_VxR) and np.array_equal(a.phi_CxR, b.phi_CxR)
    assert not np.array_equal(a.w_VxR, c.w_VxR)
    assert np.array_equal(sample(a, 4, 50, 0), sample(b, 4, 50, 0))
    assert not np.array_equal(sample(a, 4, 50, 0), sample(a, 4, 50, 1))


@pytest.mark.parametrize("rank", [0, 40])
def test_rank_out_of_range(rank: int):
    with pytest.raises(InputError, match=f"rank {rank} of a language of 40 symbols"):
        world(40, rank, 1.0, 1.0, 0)


def test_spam_is_one_symbol():
    rows = np.asarray(Spam().rows(11, jax.random.key(0), 20_000, 5))
    assert rows.shape == (20_000, 6) and rows.dtype == np.int32
    assert (rows[:, 0] == 0).all() and (rows[:, 1:] == rows[:, 1:2]).all()
    counts = np.bincount(rows[:, 1], minlength=11)
    assert counts[0] == 0 and (np.abs(counts[1:] - 2000) < 4.5 * np.sqrt(1800)).all()
    p_BxTxV = np.exp(Spam().log_p(11, rows[:50]))
    np.testing.assert_allclose(p_BxTxV.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(p_BxTxV[:, 0, 1:], 0.1, rtol=1e-6)
    taken = np.take_along_axis(p_BxTxV, rows[:50, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(taken, [[0.1, 1, 1, 1, 1]] * 50, rtol=1e-6)


def test_the_share_seen_is_that_of_drawn_rows():
    rows = np.asarray(Spam().rows(2001, jax.random.key(1), 1500, 2))
    assert len(np.unique(rows[:, 1])) / 2000 == pytest.approx(share_seen(1500, 2001), abs=4.5 * np.sqrt(0.25 / 2000))
    assert share_seen(0, 9) == 0 and share_seen(1, 9) == pytest.approx(1 / 8) and share_seen(10**6, 9) == 1


def test_rows_of_a_known_rank_follow_the_language():
    """As `world` has it in NumPy: the same truth, and sequences of it."""
    language, w = KnownRank(2, power=1.0, logit_sd=1.0), world(5, 2, 1.0, 1.0, seed=0)
    rows = np.asarray(language.rows(5, jax.random.key(3), 3000, 40))
    assert rows.shape == (3000, 41) and rows.dtype == np.int32
    assert (rows[:, :2] < 0).all() and (rows[:, 2:] >= 0).all() and (rows < 5).all()
    tokens = np.where(rows < 0, ~rows, rows)
    pairs = (w.e1_VxR[:, None] + w.e2_VxR[None, :]).reshape(25, 2) / np.sqrt(2)
    p, context = distribution(pairs, w.w_VxR), 5 * tokens[:, :-2] + tokens[:, 1:-1]
    counts = np.zeros((25, 5))
    np.add.at(counts, (context.ravel(), tokens[:, 2:].ravel()), 1)
    n = counts.sum(axis=1, keepdims=True)
    assert (np.abs(counts - n * p) < 4.5 * np.sqrt(n * p * (1 - p))).all()
    first = np.bincount(context[:, 0], minlength=25)
    assert (np.abs(first - 120) < 4.5 * np.sqrt(120)).all()
    np.testing.assert_allclose(np.exp(language.log_p(5, rows[:9]))[:, 1:], p[context[:9]], rtol=1e-5)


def test_languages_that_cannot_be():
    with pytest.raises(InputError, match="model.context = 1: a row of KnownRank.*two tokens that are no targets"):
        KnownRank(2).rows(5, jax.random.key(0), 3, 1)
    with pytest.raises(InputError, match="rank 5 of a language of 5 symbols"):
        KnownRank(5).rows(5, jax.random.key(0), 3, 9)
