import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat.model import cross_entropy, token_losses


def oracle(z_BxTxR, w_RxV, targets_BxT):
    """(loss, dz, dw) in float64, from the definition."""
    z_NxR, w_RxV = np.float64(z_BxTxR).reshape(-1, w_RxV.shape[0]), np.float64(w_RxV)
    targets_N = targets_BxT.reshape(-1)
    kept_N = targets_N >= 0
    logits_NxV = z_NxR @ w_RxV
    logits_NxV -= logits_NxV.max(axis=1, keepdims=True)
    log_p_NxV = logits_NxV - np.log(np.exp(logits_NxV).sum(axis=1, keepdims=True))
    rows = np.arange(len(targets_N))
    loss = -log_p_NxV[rows, targets_N][kept_N].mean()
    d_NxV = np.exp(log_p_NxV)
    d_NxV[rows, targets_N] -= 1
    d_NxV *= kept_N[:, None] / kept_N.sum()
    return loss, (d_NxV @ w_RxV.T).reshape(z_BxTxR.shape), z_NxR.T @ d_NxV


def example(n_rows, n_positions, rank, vocab_size, ignored=0.2, scale=2.0):
    rng = np.random.default_rng(0)
    z_BxTxR = rng.normal(size=(n_rows, n_positions, rank)).astype(np.float32)
    w_RxV = (scale / np.sqrt(rank) * rng.normal(size=(rank, vocab_size))).astype(np.float32)
    targets_BxT = rng.integers(0, vocab_size, (n_rows, n_positions))
    targets_BxT[rng.random((n_rows, n_positions)) < ignored] = -1
    targets_BxT[-1, -1] = -2  # any negative is ignored
    targets_BxT[0, 0], targets_BxT[0, 1] = 0, vocab_size - 1
    return z_BxTxR, w_RxV, targets_BxT


value_and_grads = jax.jit(jax.value_and_grad(cross_entropy, argnums=(0, 1)))


def relative_error(a, b):
    return np.linalg.norm(np.float64(a) - b) / np.linalg.norm(b)


# T = 101 in 3 rows needs two chunks of 85 and a padded tail; T = 7 less than one; 1 row of 600 three of 256.
@pytest.mark.parametrize(
    "n_rows, n_positions, rank, vocab_size",
    [(3, 101, 12, 1000), (1, 600, 5, 1000), (2, 7, 3, 1000), (300, 3, 2, 11), (3, 101, 8, 50257), (3, 33, 8, 50304)],
)
def test_value_and_gradients_against_float64(n_rows, n_positions, rank, vocab_size):
    z, w, targets = example(n_rows, n_positions, rank, vocab_size)
    loss, dz, dw = oracle(z, w, targets)
    got, (got_dz, got_dw) = value_and_grads(z, w, targets)
    assert got == pytest.approx(loss, rel=2e-6)
    assert cross_entropy(jnp.asarray(z), jnp.asarray(w), targets) == pytest.approx(loss, rel=2e-6)
    assert relative_error(got_dz, dz) < 5e-6 and relative_error(got_dw, dw) < 5e-6
    assert (np.asarray(got_dz)[targets < 0] == 0).all()


def test_the_unit_of_loss_and_gradient_is_the_mean_over_kept_targets():
    z, w, targets = example(2, 5, 3, 17)
    uniform = cross_entropy(jnp.zeros_like(z), jnp.asarray(w), targets)
    assert uniform == pytest.approx(np.log(17), rel=1e-6)
    _, dz, _ = oracle(z, w, targets)
    tripled = jax.grad(lambda z: 3 * cross_entropy(z, jnp.asarray(w), targets))(jnp.asarray(z))
    assert relative_error(tripled, 3 * dz) < 5e-6


def test_bfloat16_inputs_keep_a_float32_loss():
    z, w, targets = (jnp.asarray(a) for a in example(3, 101, 16, 1000))
    z, w = z.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    loss, dz, dw = oracle(np.float64(z), np.float64(w), np.asarray(targets))
    got, (got_dz, got_dw) = value_and_grads(z, w, targets)
    assert got.dtype == jnp.float32 and got_dz.dtype == got_dw.dtype == jnp.bfloat16
    assert got == pytest.approx(loss, rel=1e-5)  # the logits are float32: only z and w are rounded
    assert relative_error(np.float64(got_dz), dz) < 1e-2 and relative_error(np.float64(got_dw), dw) < 1e-2


def test_extreme_logits_stay_finite():
    z, w, targets = example(2, 9, 3, 50, scale=3e4)
    loss, dz, dw = oracle(z, w, targets)
    got, (got_dz, got_dw) = value_and_grads(z, w, targets)
    assert got == pytest.approx(loss, rel=1e-5)
    # At logits of 1e5 a float32 logit is good to 1e-2, and so is the softmax of the few near ties.
    assert relative_error(got_dz, dz) < 2e-2 and relative_error(got_dw, dw) < 2e-2


def test_nothing_to_predict_is_zero_not_nan():
    z, w, _ = example(2, 9, 3, 50)
    got, (dz, dw) = value_and_grads(z, w, np.full((2, 9), -1))
    assert got == 0 and not dz.any() and not dw.any()


def test_vmapped_over_a_pack_is_each_member():
    members = [example(2, 50, 4, 100, scale=s) for s in (1.0, 2.0, 4.0)]
    z, w, targets = (jnp.stack([jnp.asarray(m[i]) for m in members]) for i in range(3))
    losses, (dz, dw) = jax.vmap(value_and_grads)(z, w, targets)
    for i in range(3):
        loss, (dz_i, dw_i) = value_and_grads(z[i], w[i], targets[i])
        np.testing.assert_allclose(losses[i], loss, rtol=1e-6)
        np.testing.assert_allclose(dz[i], dz_i, rtol=1e-4, atol=1e-8)
        np.testing.assert_allclose(dw[i], dw_i, rtol=1e-4, atol=1e-8)


def test_losses_of_single_tokens_are_those_whose_mean_is_the_loss():
    z, w, targets = example(3, 101, 12, 1000)
    nats = jax.jit(token_losses)(z, w, targets)
    assert nats.shape == targets.shape and nats.dtype == jnp.float32 and not nats[targets < 0].any()
    for b, t in ((0, 0), (0, 1), (2, 50), (1, 100)):  # first and last of V; a later chunk
        one = np.where((np.arange(3)[:, None] == b) & (np.arange(101) == t), np.abs(targets), -1)
        assert jax.jit(token_losses)(z, w, np.abs(targets))[b, t] == pytest.approx(oracle(z, w, one)[0], rel=2e-6)
    assert float(nats.sum()) / int((targets >= 0).sum()) == pytest.approx(oracle(z, w, targets)[0], rel=2e-6)


def mixture(n_rows, n_positions, n_softmaxes, rank, vocab_size):
    """(z_BxNxR, w_RxV, targets_BxT, log_prior_BxTxK), the last no distribution: its gradient is then any."""
    z_BxTxR, w_RxV, targets_BxT = example(n_rows, n_positions, rank, vocab_size)
    rng = np.random.default_rng(1)
    z_BxNxR = rng.normal(size=(n_rows, n_positions * n_softmaxes, rank)).astype(np.float32)
    log_prior_BxTxK = rng.normal(scale=2, size=(n_rows, n_positions, n_softmaxes)).astype(np.float32)
    return z_BxNxR, w_RxV, targets_BxT, log_prior_BxTxK


def mixture_oracle(z_BxNxR, w_RxV, targets_BxT, log_prior_BxTxK):
    """(nats_BxT, [dz, dw, dlog_prior]) in float64, from the definition and the autodiff of it."""

    def nats(z_BxNxR, w_RxV, log_prior_BxTxK):
        logits_BxTxKxV = (z_BxNxR @ w_RxV).reshape(*log_prior_BxTxK.shape, -1)
        log_p_BxTxKxV = jax.nn.log_softmax(logits_BxTxKxV) + log_prior_BxTxK[..., None]
        log_p_BxTxV = jax.nn.logsumexp(log_p_BxTxKxV, axis=2)
        return -jnp.take_along_axis(log_p_BxTxV, jnp.maximum(targets_BxT, 0)[..., None], axis=-1)[..., 0] * kept_BxT

    with jax.enable_x64(True):
        kept_BxT = jnp.float64(targets_BxT >= 0)
        args = [jnp.float64(x) for x in (z_BxNxR, w_RxV, log_prior_BxTxK)]
        mean = lambda *args: nats(*args).sum() / kept_BxT.sum()
        return np.asarray(nats(*args)), [np.asarray(g) for g in jax.grad(mean, argnums=(0, 1, 2))(*args)]


# Chunks of 28, 1, and all 3 positions of 3 softmaxes.
@pytest.mark.parametrize(
    "n_rows, n_positions, n_softmaxes, rank, vocab_size",
    [
        (3, 101, 3, 12, 1000),
        pytest.param(100, 5, 4, 2, 50, marks=pytest.mark.slow),
        pytest.param(2, 3, 3, 8, 50304, marks=pytest.mark.slow),
    ],
)
def test_a_mixture_against_float64(n_rows, n_positions, n_softmaxes, rank, vocab_size):
    z, w, targets, log_prior = mixture(n_rows, n_positions, n_softmaxes, rank, vocab_size)
    nats, gradients = mixture_oracle(z, w, targets, log_prior)
    got = jax.jit(token_losses)(z, w, targets, log_prior)
    np.testing.assert_allclose(got, nats, rtol=1e-5, atol=1e-6)
    assert (np.asarray(got)[targets < 0] == 0).all()
    loss, found = jax.jit(jax.value_and_grad(cross_entropy, argnums=(0, 1, 3)))(z, w, targets, log_prior)
    assert loss == pytest.approx(nats.sum() / (targets >= 0).sum(), rel=2e-6)
    assert loss == pytest.approx(float(cross_entropy(*map(jnp.asarray, (z, w, targets, log_prior)))), rel=1e-6)
    for ours, theirs in zip(found, gradients):
        assert relative_error(ours, theirs) < 5e-6


def test_a_mixture_of_one_softmax_is_it():
    z, w, targets = example(3, 101, 12, 1000)
    loss, (dz, dw) = value_and_grads(z, w, targets)
    one, ours = jax.jit(jax.value_and_grad(cross_entropy, argnums=(0, 1)))(z, w, targets, np.zeros((3, 101, 1), "f4"))
    assert one == pytest.approx(float(loss), rel=1e-6)
    assert relative_error(ours[0], dz) < 1e-6 and relative_error(ours[1], dw) < 1e-6


def test_a_mixture_stays_finite_where_one_softmax_has_all():
    z, w, targets = example(2, 9, 3, 50, scale=3e4)
    prior = np.full((2, 3, 3), [0, -200, -1e4], np.float32)
    loss, found = jax.value_and_grad(cross_entropy, argnums=(0, 1, 3))(*map(jnp.asarray, (z, w, targets[:, :3], prior)))
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in found)
