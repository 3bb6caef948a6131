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
    nats_KxN = heads.divergences(pairs, h, t)
    assert nats_KxN.shape == (2, n)
    np.testing.assert_allclose(nats_KxN.mean(axis=1, dtype=np.float64), losses64(pairs, h, t), rtol=2e-6)


def test_truncated_heads_are_the_best_approximation():
    w = np.asarray(sample(2)[2])
    sigma = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    for r, (a, b) in zip(RANKS, heads.truncated_heads(w, RANKS), strict=True):
        assert (a.shape, b.shape) == ((D, r), (r, V))
        np.testing.assert_allclose(np.linalg.norm(w - a @ b), np.sqrt(np.sum(sigma[r:] ** 2)), atol=1e-5 * sigma[0])


def test_first_step_is_adam_on_the_gradient_of_the_cross_entropy():
    h, t, _ = sample(256)
    start = heads.gaussian_heads(jax.random.key(1), D, V, (1, 5))
    trained = heads.train(jax.tree.map(jnp.copy, start), h, t, np.arange(256)[None], (1e-2, 1e-3))

    def loss(pairs):
        logp = [jax.nn.log_softmax(h @ a @ b) for a, b in pairs]
        return -sum(jnp.mean(jnp.take_along_axis(lp, t[:, None], axis=1)) for lp in logp)

    for k, rate in enumerate((1e-2, 1e-3)):
        for x, x0, g in zip(trained[k], start[k], jax.jit(jax.grad(loss))(start)[k], strict=True):
            np.testing.assert_allclose(np.asarray(x) - x0, -rate * g / (np.abs(g) + 1e-8), atol=2e-5)


@pytest.mark.parametrize(("n", "logits"), [(60, 2**22), (60, 20 * V), (60, 7 * V), (7, 1)])
def test_the_gradient_is_that_of_the_loss_in_float64_whatever_the_chunks(n, logits, monkeypatch):
    """Of rows together: all, 20, 6, one."""
    monkeypatch.setattr(heads, "LOGITS", logits)
    h, t, w = sample(n)
    head = heads.gaussian_heads(jax.random.key(1), D, V, (5,))[0]
    found = heads.gradient(head, h, t)
    learnt = heads.gradient(head, h, None, w)
    with jax.enable_x64(True):
        a, b, h, w = (jnp.asarray(np.asarray(x), jnp.float64) for x in (*head, h, w))

        def loss(head, truth):
            return -jnp.sum(truth * jax.nn.log_softmax(h @ head[0] @ head[1]))

        one_hot = jnp.asarray(np.eye(V)[np.asarray(t)])
        for got, truth in ((found, one_hot), (learnt, jax.nn.softmax(h @ w))):
            for x, g in zip(got, jax.grad(loss)((a, b), truth), strict=True):
                np.testing.assert_allclose(x, g, rtol=1e-4, atol=2e-6 * np.abs(g).max())


def test_a_step_holds_the_logits_of_a_chunk_at_the_vocabulary_of_pythia():
    """XLA's plan: 21 MiB beside the heads, whether of four ranks or of one; all logits of a batch are 98."""
    v, size = 50_304, jax.ShapeDtypeStruct
    planned = []
    for ranks in ((16,), (2, 4, 8, 16)):
        pairs = [(size((D, r), jnp.float32), size((r, v), jnp.float32)) for r in ranks]
        carry = jax.eval_shape(lambda pairs: (pairs, heads._ADAM.init(pairs)), pairs)
        fed = size((3, 512, D), jnp.float32), size((3, 512), jnp.int32), None, size((3, len(ranks)), jnp.float32)
        plan = heads._steps.lower(carry, *fed, size((), jnp.int32), mesh=heads._mesh(1)).compile()
        of_heads = sum(4 * r * (D + v) for r in ranks)
        planned.append(plan.memory_analysis().temp_size_in_bytes - of_heads)
    assert max(planned) < 1.1 * 4 * heads.LOGITS < 4 * 512 * v / 4


def test_blocks_of_steps_are_one_training(monkeypatch):
    """11 steps, fed by 4: the last block has 3."""
    h, t, _ = sample(1100)
    order = np.arange(1100).reshape(11, 100)
    start = lambda: heads.gaussian_heads(jax.random.key(0), D, V, (3,))
    whole = heads.train(start(), h, t, order, (1e-2,))
    monkeypatch.setattr(heads, "FED", 4 * 4 * 100 * D)
    for x, y in zip(whole[0], heads.train(start(), h, t, order, (1e-2,))[0], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_devices_share_the_batch(monkeypatch):
    """Four of the eight, as 100 rows allow, and one."""
    h, t, _ = sample(1000)
    order = np.arange(1000).reshape(10, 100)
    train = lambda: heads.train(heads.gaussian_heads(jax.random.key(0), D, V, (3, 7)), h, t, order, (1e-2, 1e-2))
    many = train()
    assert many[0][0].sharding.num_devices == 4
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    for x, y in zip(*map(jax.tree.leaves, (many, train())), strict=True):
        np.testing.assert_allclose(x, np.asarray(y), atol=1e-5)


def test_a_head_padded_with_zeros_stays_at_its_rank():
    """What packed runs of several head ranks rest on: zero factors have zero gradients, so no mask is needed."""
    h, t, _ = sample(2000)
    order = np.arange(2000).reshape(20, 100)
    a, b = heads.gaussian_heads(jax.random.key(0), D, V, (3,))[0]
    padded = jnp.pad(a, ((0, 0), (0, 4))), jnp.pad(b, ((0, 4), (0, 0)))
    (a3, b3), (a7, b7) = heads.train([(jnp.copy(a), jnp.copy(b)), padded], h, t, order, (1e-2, 1e-2))
    assert not jnp.any(a7[:, 3:]) and not jnp.any(b7[3:])
    np.testing.assert_allclose(a7[:, :3], a3, atol=1e-5)
    np.testing.assert_allclose(b7[:3], b3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_loss_moves_less_than_the_lipschitz_bound_under_truncation(seed):
    h, t, w = sample(500, seed)
    sigma = jnp.linalg.svd(w, compute_uv=False)
    radius = float(jnp.max(jnp.linalg.norm(h, axis=1)))
    ranks = (1, 3, 6, 12, D)
    losses = heads.divergences(heads.truncated_heads(w, ranks), h, t).mean(axis=1, dtype=np.float64)
    for r, moved in zip(ranks, np.abs(losses - losses[-1]), strict=True):
        assert moved <= heads.lipschitz_bound(sigma, r, radius) + 1e-5
    assert heads.lipschitz_bound(sigma, 1, radius) == pytest.approx(2 * radius * float(sigma[1]))
    assert heads.lipschitz_bound(sigma, D, radius) == 0


def test_the_bound_is_of_the_right_size():
    """A state along the direction that is cut, logits +-sigma / sqrt(2) on two tokens: a third of the bound is met."""
    w = jnp.array([[3.0, 0, 0], [0, 2**0.5, -(2**0.5)]])  # sigma = 3, 2
    h, t = jnp.array([[0.0, 1]]), jnp.array([2])
    full, cut = heads.divergences(heads.truncated_heads(w, (2, 1)), h, t)[:, 0]
    assert full - cut > heads.lipschitz_bound(jnp.array([3.0, 2]), 1, 1.0) / 3


@pytest.mark.parametrize("rank", [0, D + 1])
def test_a_rank_out_of_range_is_named(rank):
    w = sample(1)[2]
    with pytest.raises(InputError, match=f"head rank {rank}: must lie between 1 and {D}"):
        heads.gaussian_heads(jax.random.key(0), D, V, (2, rank))
    with pytest.raises(InputError, match=f"head rank {rank}"):
        heads.truncated_heads(w, (2, rank))


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
