import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxsat.config import InputError
from jaxsat.corpus.synthetic import world
from jaxsat.measure import heads

D, V = 13, 101  # not round
RANKS = (1, 2, 5, 13)


def sample(n: int, seed: int = 0):
    """States, tokens drawn from the softmax of a known head, and that head."""
    kh, kw, kt = jax.random.split(jax.random.key(seed), 3)
    h_NxD, w_DxV = jax.random.normal(kh, (n, D)), jax.random.normal(kw, (D, V)) * 0.5
    return h_NxD, jax.random.categorical(kt, h_NxD @ w_DxV), w_DxV


def losses64(pairs, h, t) -> list[float]:
    """Mean cross entropy in float64, all at once."""
    h, t = np.asarray(h, np.float64), np.asarray(t)
    out = []
    for a, b in pairs:
        logits = h @ np.asarray(a, np.float64) @ np.asarray(b, np.float64)
        top = logits.max(1, keepdims=True)
        out.append(np.mean(np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(t)), t]))
    return out


@pytest.mark.parametrize("n", [1, 777, 1024, 2501])
def test_losses_against_float64_whatever_the_chunks(n):
    h, t, w = sample(n)
    pairs = heads.truncated_heads(w, (2, 13))
    np.testing.assert_allclose(heads.frozen_head_losses(pairs, h, t), losses64(pairs, h, t), rtol=2e-6)


def test_truncated_heads_are_the_best_approximation():
    w = np.asarray(sample(2)[2])
    sigma = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    for r, (a, b) in zip(RANKS, heads.truncated_heads(w, RANKS), strict=True):
        assert (a.shape, b.shape) == ((D, r), (r, V))
        np.testing.assert_allclose(np.linalg.norm(w - a @ b), np.sqrt(np.sum(sigma[r:] ** 2)), atol=1e-5 * sigma[0])


def test_first_step_is_adam_on_the_gradient_of_the_cross_entropy():
    h, t, _ = sample(256)
    start = heads._gaussian_heads(jax.random.key(1), D, V, (1, 5))
    trained = heads._train(jax.tree.map(jnp.copy, start), h, t, jnp.arange(256)[None], 1e-2)

    def loss(pairs):
        logp = [jax.nn.log_softmax(h @ a @ b) for a, b in pairs]
        return -sum(jnp.mean(jnp.take_along_axis(lp, t[:, None], axis=1)) for lp in logp)

    for x, x0, g in zip(*map(jax.tree.leaves, (trained, start, jax.jit(jax.grad(loss))(start))), strict=True):
        np.testing.assert_allclose(x - x0, -1e-2 * g / (jnp.abs(g) + 1e-8), atol=2e-5)


def test_training_recovers_the_head_that_made_the_data_and_loss_falls_with_rank():
    h, t, w = sample(40_000)
    trained = heads.train_frozen_heads(h[:36_000], t[:36_000], V, RANKS, batch_size=200, epochs=4)
    losses = np.asarray(heads.frozen_head_losses(trained, h[36_000:], t[36_000:]))
    truncated = np.asarray(heads.frozen_head_losses(heads.truncated_heads(w, RANKS), h[36_000:], t[36_000:]))
    assert np.all(np.diff(losses) < 0)
    assert losses[-1] - truncated[-1] < 0.05  # to the true head, which is the best there is
    assert np.all(losses[:-1] < truncated[:-1] + 0.02)


def test_same_seed_same_heads_and_each_rank_trains_alone():
    h, t, _ = sample(2000)
    train = functools.partial(heads.train_frozen_heads, h, t, V, batch_size=100)
    both, again, other = train((2, 5), seed=3), train((2, 5), seed=3), train((2, 5), seed=4)
    for x, y, z in zip(*map(jax.tree.leaves, (both, again, other)), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.any(x != z)
    for x, y in zip(both[1], train((5,), seed=3)[0], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_head_padded_with_zeros_stays_at_its_rank():
    """What packed runs of several head ranks rest on: zero factors have zero gradients, so no mask is needed."""
    h, t, _ = sample(2000)
    order = jnp.arange(2000).reshape(20, 100)
    a, b = heads._gaussian_heads(jax.random.key(0), D, V, (3,))[0]
    padded = jnp.pad(a, ((0, 0), (0, 4))), jnp.pad(b, ((0, 4), (0, 0)))
    (a3, b3), (a7, b7) = heads._train([(a, b), padded], h, t, order, 1e-2)
    assert not jnp.any(a7[:, 3:]) and not jnp.any(b7[3:])
    np.testing.assert_allclose(a7[:, :3], a3, atol=1e-5)
    np.testing.assert_allclose(b7[:3], b3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_loss_moves_less_than_the_lipschitz_bound_under_truncation(seed):
    h, t, w = sample(500, seed)
    sigma = jnp.linalg.svd(w, compute_uv=False)
    radius = float(jnp.max(jnp.linalg.norm(h, axis=1)))
    ranks = (1, 3, 6, 12, D)
    losses = heads.frozen_head_losses(heads.truncated_heads(w, ranks), h, t)
    for r, moved in zip(ranks, jnp.abs(losses - losses[-1]), strict=True):
        assert moved <= heads.lipschitz_bound(sigma, r, radius) + 1e-5
    assert heads.lipschitz_bound(sigma, 1, radius) == pytest.approx(2 * radius * float(sigma[1]))
    assert heads.lipschitz_bound(sigma, D, radius) == 0


def test_the_bound_is_of_the_right_size():
    """A state along the direction that is cut, logits +-sigma / sqrt(2) on two tokens: a third of the bound is met."""
    w = jnp.array([[3.0, 0, 0], [0, 2**0.5, -(2**0.5)]])  # sigma = 3, 2
    h, t = jnp.array([[0.0, 1]]), jnp.array([2])
    full, cut = heads.frozen_head_losses(heads.truncated_heads(w, (2, 1)), h, t)
    assert full - cut > heads.lipschitz_bound(jnp.array([3.0, 2]), 1, 1.0) / 3


@pytest.mark.parametrize("rank", [0, D + 1])
def test_a_rank_out_of_range_is_named(rank):
    h, t, w = sample(600)
    with pytest.raises(InputError, match=f"head rank {rank}: must lie between 1 and {D}"):
        heads.train_frozen_heads(h, t, V, (2, rank))
    with pytest.raises(InputError, match=f"head rank {rank}"):
        heads.truncated_heads(w, (2, rank))


def test_fewer_states_than_a_batch_is_an_error():
    h, t, _ = sample(100)
    with pytest.raises(InputError, match="100 hidden states are fewer than one batch of 256"):
        heads.train_frozen_heads(h, t, V, (2,))


@pytest.mark.parametrize("power", [pytest.param(0.5, marks=pytest.mark.slow), 1.5])
def test_the_control_gives_the_known_answer(power):
    w = world(vocab_size=211, rank=12, power=power, logit_sd=1.5, seed=0, contexts=3001)
    ranks = (1, 2, 4, 6, 9, 12)
    t = heads.control(w, ranks, steps=1200)
    assert len(t) == 4 * len(ranks)
    tail, truncated, trained, bound = (
        t[t["metric"] == m].set_index("index")["value"].loc[list(ranks)].to_numpy()
        for m in ("head_tail", "head_gap_truncated", "head_gap_trained", "head_gap_bound")
    )
    # Exactly, in float64.
    sigma = np.linalg.svd(w.w_VxR.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(tail[:-1], [np.sqrt(np.sum(sigma[r:] ** 2)) for r in ranks[:-1]])
    np.testing.assert_allclose(truncated, [gap64(w, r) for r in ranks], atol=2e-6)
    # The bound of first order holds for each rank, and the gap falls like the square of the tail.
    radius = float(np.linalg.norm(w.phi_CxR, axis=1).max())
    np.testing.assert_allclose(bound, [heads.lipschitz_bound(sigma, r, radius) for r in ranks], rtol=1e-5, atol=1e-9)
    assert (truncated <= bound + 1e-5).all()
    for gap in (truncated, trained):
        assert np.polyfit(np.log(tail[:-1]), np.log(gap[:-1]), 1)[0] == pytest.approx(2, abs=0.15)
        assert abs(gap[-1]) < 1e-3
        assert np.all(np.diff(gap) < 0)
    # Training can only improve on truncation, and there is little to gain.
    np.testing.assert_array_less(0.9 * truncated[:-1], trained[:-1])
    np.testing.assert_array_less(trained[:-1], 1.001 * truncated[:-1])


def gap64(w, rank: int) -> float:
    """Cross entropy of the truncated head under the true distributions, less their entropy, in float64."""
    u, s, vt = np.linalg.svd(w.w_VxR.astype(np.float64), full_matrices=False)
    logp, logq = (
        log_softmax(w.phi_CxR.astype(np.float64) @ m.T, axis=1) for m in (w.w_VxR, (u[:, :rank] * s[:rank]) @ vt[:rank])
    )
    return float(np.mean(np.sum(np.exp(logp) * (logp - logq), axis=1)))
