import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh

from jaxsat.measure import spectra
from jaxsat.parallel import over_runs, state_shardings

V, D = 1009, 37  # not round
rng = np.random.default_rng(0)


def matrix(v: int, d: int, sigma: np.ndarray, seed: int = 0) -> np.ndarray:
    """A float32 v x d matrix with the singular values sigma, to rounding."""
    g = np.random.default_rng(seed)
    u, _ = np.linalg.qr(g.standard_normal((v, len(sigma))))
    q, _ = np.linalg.qr(g.standard_normal((d, len(sigma))))
    return ((u * sigma) @ q.T).astype(np.float32)


def svd64(w) -> np.ndarray:
    return np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)


def moved(program) -> list[list[int]]:
    """Of each transfer between devices how many numbers each array of its result has."""
    lines = re.findall(r"= \(?(.*?)\)? (?:all-gather|all-to-all|all-reduce|collective-permute)\(", program.as_text())
    return [[math.prod(map(int, dims.split(","))) for dims in re.findall(r"f32\[([\d,]+)\]", line)] for line in lines]


@pytest.mark.parametrize("log10_condition", [0, 2, 4, 6])
def test_head_spectrum_against_float64(log10_condition):
    w = matrix(V, D, np.logspace(0, -log10_condition, D))
    ours, oracle = spectra.head_spectrum(w), svd64(w)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, oracle, atol=1e-6 * oracle[0], rtol=0)
    np.testing.assert_allclose(spectra.head_spectrum(w.T), oracle, atol=1e-6 * oracle[0], rtol=0)


def test_small_singular_values_survive_where_a_float32_gram_matrix_loses_them():
    w = matrix(V, D, np.logspace(0, -5, D))
    gram = np.sqrt(np.maximum(np.linalg.eigvalsh(w.T @ w)[::-1], 0))
    oracle = svd64(w)
    assert abs(gram[-1] / oracle[-1] - 1) > 0.5
    np.testing.assert_allclose(spectra.head_spectrum(w), oracle, rtol=5e-4)


def test_head_spectrum_of_bfloat16_is_that_of_its_values():
    w = jnp.asarray(rng.standard_normal((V, D)), jnp.bfloat16)
    oracle = svd64(w)
    np.testing.assert_allclose(spectra.head_spectrum(w), oracle, atol=1e-6 * oracle[0], rtol=0)


@pytest.mark.parametrize("rank", [1, 5, D])
def test_factored_head_spectrum_against_float64_product(rank):
    a, b = rng.standard_normal((D, rank)), rng.standard_normal((rank, V))
    ours = spectra.factored_head_spectrum(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    oracle = svd64(a.astype(np.float32).astype(np.float64) @ b.astype(np.float32).astype(np.float64))[:rank]
    np.testing.assert_allclose(ours, oracle, atol=2e-6 * oracle[0], rtol=0)


def test_padded_factors_have_the_spectrum_of_the_true_rank_under_vmap_over_a_pack():
    ranks = [2, 7, 13]
    a, b = rng.standard_normal((3, D, 13)), rng.standard_normal((3, 13, V))
    kept = np.arange(13) < np.array(ranks)[:, None]
    a, b = (a * kept[:, None, :]).astype(np.float32), (b * kept[:, :, None]).astype(np.float32)
    sigma = jax.vmap(spectra.factored_head_spectrum)(a, b)
    entropy = jax.vmap(spectra.singular_entropy)(sigma, jnp.array(ranks))
    condition = jax.vmap(spectra.condition_number)(sigma, jnp.array(ranks))
    for k, r in enumerate(ranks):
        oracle = svd64(a[k].astype(np.float64) @ b[k])[:r]
        p = oracle / oracle.sum()
        np.testing.assert_allclose(sigma[k, :r], oracle, atol=2e-6 * oracle[0])
        np.testing.assert_allclose(sigma[k, r:], 0, atol=1e-5 * oracle[0])
        np.testing.assert_allclose(entropy[k], np.log(r) + np.sum(p * np.log(p)), atol=1e-5)
        np.testing.assert_allclose(condition[k], oracle[0] / oracle[-1], rtol=1e-4)


@pytest.mark.parametrize("v", [1000, 12571])  # the second, a quarter of GPT-2's 50257, divides by nothing
@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 8, 1), (2, 2, 2), (1, 3, 2)])
def test_a_split_vocabulary_is_factored_where_it_lies(shape, v):
    """Full, tied and factored heads stored as in training; the factored one's ranks differ over the pack."""
    d, r, k = 24, 8, shape[0]
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, ("pack", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    g = np.random.default_rng(0)
    w = np.stack([matrix(v, d, np.logspace(0, -4, d), seed) for seed in range(k)])
    a, b = (g.standard_normal(s).astype(np.float32) for s in ((k, d, r), (k, r, v)))
    a[-1, :, 3:] = b[-1, 3:] = 0
    params = {"embedding": w, "head": {"kernel": w.swapaxes(1, 2), "a": a, "b": b}}
    params = jax.tree.map(jax.device_put, params, state_shardings(mesh, params))

    def spectra_of(params):
        head = params["head"]
        whole = spectra.head_spectrum(params["embedding"]), spectra.head_spectrum(head["kernel"])
        return *whole, spectra.factored_head_spectrum(head["a"], head["b"])

    program = jax.jit(over_runs(mesh, spectra_of)).lower(params).compile()
    for sigmas, heads in zip(jax.block_until_ready(program(params)), (w, w, a.astype(np.float64) @ b), strict=True):
        for sigma, head in zip(sigmas, heads, strict=True):
            oracle = svd64(head)[: len(sigma)]
            np.testing.assert_allclose(sigma, oracle, atol=2e-6 * oracle[0], rtol=0)
    assert 0 < max(max(sizes) for sizes in moved(program)) < max(v * d / 4, 5 * d * d)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2), (1, 3, 2), (1, 1, 1)])
@pytest.mark.parametrize("size", [(5, 24, 37), (16, 64, 24)])  # in the first nothing divides
def test_layers_are_dealt_out_over_the_devices(shape, size):
    """A device is sent its own layers: nobody gathers them all."""
    k = shape[0]
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, ("pack", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    w_KxLxIxO = np.random.default_rng(0).standard_normal((k, *size)).astype(np.float32)
    params = {"out": {"kernel": w_KxLxIxO}}
    params = jax.tree.map(jax.device_put, params, state_shardings(mesh, params))
    program = jax.jit(over_runs(mesh, lambda p: spectra.layer_spectra(p["out"]["kernel"]))).lower(params).compile()
    sigma_KxLxR = program(params)
    np.testing.assert_allclose(sigma_KxLxR, svd64(w_KxLxIxO), rtol=2e-5)
    if (shape, size) == ((1, 4, 2), (16, 64, 24)):
        assert 0 < max(map(sum, moved(program))) <= w_KxLxIxO.size / 8


def test_scalars_of_known_spectra():
    flat, spike = jnp.ones(5), jnp.array([3.0, 0, 0, 0, 0])
    assert spectra.singular_entropy(flat) == 0
    assert spectra.singular_entropy(spike) == pytest.approx(np.log(5))
    assert spectra.effective_rank(flat) == pytest.approx(5)
    assert spectra.effective_rank(spike) == 1
    assert spectra.largest_share(flat) == pytest.approx(0.2)
    assert spectra.largest_share(spike) == 1
    assert spectra.condition_number(jnp.array([8.0, 4, 2])) == 4
    assert spectra.condition_number(jnp.array([8.0, 4, 0]), 2) == 2
    assert np.isinf(spectra.condition_number(spike))
    assert np.isnan(spectra.singular_entropy(jnp.zeros(5)))
    # p = (2/3, 1/3): log 2 - H
    oracle = np.log(2) - np.log(3) + 2 / 3 * np.log(2)
    assert spectra.singular_entropy(jnp.array([2.0, 1])) == pytest.approx(oracle, abs=1e-6)


spectrum = st.lists(st.floats(1e-3, 1e3), min_size=13, max_size=13).map(lambda s: np.sort(np.float32(s))[::-1].copy())


@settings(max_examples=50, deadline=None)
@given(spectrum, st.floats(1e-6, 1e6), st.integers(1, 13))
def test_scalar_properties(sigma, scale, rank):
    entropy, effective = float(spectra.singular_entropy(sigma, rank)), float(spectra.effective_rank(sigma, rank))
    condition = float(spectra.condition_number(sigma, rank))
    assert 0 <= entropy <= np.log(rank) + 1e-5
    assert 1 - 1e-5 <= effective <= rank * (1 + 1e-5)
    assert effective == pytest.approx(rank * np.exp(-entropy), rel=1e-4)
    assert 1 / rank - 1e-6 <= spectra.largest_share(sigma, rank) <= 1 + 1e-6
    assert condition >= 1
    scaled = sigma * np.float32(scale)
    assert spectra.singular_entropy(scaled, rank) == pytest.approx(entropy, abs=1e-5)
    assert spectra.condition_number(scaled, rank) == pytest.approx(condition, rel=1e-5)
    noisy = np.where(np.arange(13) < rank, sigma, 1e-3).astype(np.float32)
    assert spectra.singular_entropy(noisy, rank) == entropy


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-4, 1e4))
def test_spectrum_is_invariant_under_rotations_of_the_states_and_scales_with_the_head(seed, scale):
    g = np.random.default_rng(seed)
    w = g.standard_normal((101, 11)).astype(np.float32)
    q, _ = np.linalg.qr(g.standard_normal((11, 11)))
    sigma = np.asarray(spectra.head_spectrum(w))
    np.testing.assert_allclose(spectra.head_spectrum((w @ q).astype(np.float32)), sigma, atol=3e-6 * sigma[0])
    np.testing.assert_allclose(spectra.head_spectrum(w * np.float32(scale)), scale * sigma, rtol=1e-5)
    np.testing.assert_allclose(np.sum(sigma.astype(np.float64) ** 2), np.sum(w.astype(np.float64) ** 2), rtol=1e-5)
