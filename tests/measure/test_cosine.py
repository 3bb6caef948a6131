import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsat.config import InputError
from jaxsat.measure.cosine import anisotropy, centred, centred_anisotropy


def all_pairs(h) -> float:
    h = np.asarray(h, np.float64)
    u = h / np.linalg.norm(h, axis=1, keepdims=True)
    cos = u @ u.T
    return (cos.sum() - np.trace(cos)) / (len(h) * (len(h) - 1))


def states(n: int, d: int, drift: float, seed: int = 0) -> np.ndarray:
    g = np.random.default_rng(seed)
    return (g.standard_normal((n, d)) * g.lognormal(size=(n, 1)) + drift * g.standard_normal(d)).astype(np.float32)


@pytest.mark.parametrize("drift", [0, 0.3, 3, 100])
def test_against_all_pairs_in_float64(drift):
    h = states(1009, 37, drift)
    assert anisotropy(h) == pytest.approx(all_pairs(h), abs=1e-6)
    bf16 = jnp.asarray(h, jnp.bfloat16)
    assert anisotropy(bf16) == pytest.approx(all_pairs(bf16), abs=1e-6)


def test_many_rows_lose_no_digits():
    h = states(200_003, 7, 1.0)
    u = h.astype(np.float64) / np.linalg.norm(h.astype(np.float64), axis=1, keepdims=True)
    s, n = u.sum(0), len(h)
    assert anisotropy(h) == pytest.approx((s @ s - n) / (n * (n - 1)), abs=1e-6)


@pytest.mark.parametrize("drift", [0, 1, 100, 1e4])
def test_centred_rows_against_float64(drift):
    """1e4: rounding the mean to float32 alone would cost 8e-6."""
    h = states(100_003, 7, drift)
    x = h.astype(np.float64) - h.astype(np.float64).mean(0)
    s, n = (x / np.linalg.norm(x, axis=1, keepdims=True)).sum(0), len(h)
    assert centred_anisotropy(h) == pytest.approx((s @ s - n) / (n * (n - 1)), abs=1e-8)
    np.testing.assert_allclose(centred(h), x, atol=1e-6 * np.abs(x).max())
    if drift >= 1:
        assert abs(centred_anisotropy(h)) < 1e-3 < 0.1 < anisotropy(h)


def test_equal_rows_have_no_direction_from_their_mean():
    assert np.isnan(centred_anisotropy(np.full((1009, 5), np.float32(0.1))))
    assert centred_anisotropy(jnp.array([[3.0, 1], [4, 1]])) == pytest.approx(-1)


def test_known_values():
    assert anisotropy(jnp.ones((5, 3))) == pytest.approx(1)
    assert anisotropy(jnp.array([[1.0, 2], [-2, -4]])) == pytest.approx(-1)
    assert anisotropy(jnp.eye(4)) == pytest.approx(0, abs=1e-7)
    simplex = jnp.eye(4) - 0.25  # sums to zero: the smallest mean there is
    assert anisotropy(simplex) == pytest.approx(-1 / 3)


def test_zero_rows_are_left_out_and_two_directions_are_needed():
    h = states(50, 5, 1.0)
    padded = np.concatenate([h, np.zeros((7, 5), np.float32)])
    assert anisotropy(padded) == pytest.approx(all_pairs(h), abs=1e-6)
    assert np.isnan(anisotropy(jnp.zeros((3, 5))))
    assert np.isnan(anisotropy(jnp.eye(3)[:, :1] * jnp.ones((3, 5))))


def test_one_row_is_an_error_that_says_so():
    for f in (anisotropy, centred_anisotropy):
        with pytest.raises(InputError, match="at least 2 rows"):
            f(jnp.ones((1, 5)))
        with pytest.raises(InputError, match="N x D"):
            f(jnp.ones((2, 4, 5)))


def test_rows_sharded_over_devices_and_layers_vmapped():
    h_LxNxD = np.stack([states(64, 37, drift) for drift in (0, 1, 2)])
    mesh = jax.make_mesh((8,), ("data",))
    sharded = jax.device_put(h_LxNxD, jax.NamedSharding(mesh, jax.P(None, "data")))
    oracle = [all_pairs(h) for h in h_LxNxD]
    np.testing.assert_allclose(jax.vmap(anisotropy)(sharded), oracle, atol=1e-6)
    of_centred = [all_pairs(np.float64(h) - np.float64(h).mean(0)) for h in h_LxNxD]
    np.testing.assert_allclose(jax.vmap(centred_anisotropy)(sharded), of_centred, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 10), st.integers(-30, 30))
def test_properties(seed, drift, exponent):
    n, d = 23, 5
    h = states(n, d, drift, seed)
    g = np.random.default_rng(seed + 1)
    q, _ = np.linalg.qr(g.standard_normal((d, d)))
    ours = float(anisotropy(h))
    assert -1 / (n - 1) - 1e-6 <= ours <= 1 + 1e-6
    assert anisotropy((h @ q).astype(np.float32)) == pytest.approx(ours, abs=2e-6)
    assert anisotropy(h[g.permutation(n)]) == pytest.approx(ours, abs=2e-6)
    lengths = np.float32(10.0) ** g.uniform(-1, 1, (n, 1)).astype(np.float32) * np.float32(10.0) ** np.float32(exponent)
    assert anisotropy(h * lengths) == pytest.approx(ours, abs=2e-6)
    moved = h.astype(np.float64) + 10 * g.standard_normal(d)  # by an offset, that leaves the centred one as it is
    oracle = all_pairs(moved.astype(np.float32) - moved.astype(np.float32).astype(np.float64).mean(0))
    assert centred_anisotropy(moved.astype(np.float32)) == pytest.approx(oracle, abs=2e-6)
    assert oracle == pytest.approx(all_pairs(h - h.astype(np.float64).mean(0)), abs=1e-3)
