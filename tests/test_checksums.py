import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsat import checksums as sums
from jaxsat.checksums import checksums


def oracle(x_K: np.ndarray) -> list[int]:
    """Word by word, with Python's integers."""
    sums = []
    for part in x_K:
        total = 0
        for place, word in enumerate(
            np.ascontiguousarray(part).view(f"u{min(4, x_K.dtype.itemsize)}").ravel().tolist()
        ):
            h = word ^ (place * 0x9E3779B1 % 2**32)
            h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
            h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
            total += h ^ h >> 16
        sums.append(total % 2**32)
    return sums


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_against_pythons_integers(dtype):
    x_K = np.random.default_rng(0).normal(0, 9, (3, 5, 7)).astype(jnp.dtype(dtype))
    assert checksums({"a": [jnp.asarray(x_K)]}) == {"a.0": oracle(x_K)}


def test_scalars_truths_and_keys():
    keys_K = jax.vmap(jax.random.key)(jnp.arange(3, dtype=jnp.uint32))
    found = checksums({"step": jnp.int32(7), "yes": jnp.array([True, False]), "keys": keys_K})
    assert found["step"] == oracle(np.array([[7]], np.int32)) and found["yes"] == oracle(np.array([[1], [0]], np.uint8))
    assert found["keys"] == oracle(np.asarray(jax.random.key_data(keys_K)))


@pytest.mark.parametrize("spec", [(), ("pack",), ("pack", None, "model"), (None, "model"), (None, ("pack", "model"))])
def test_the_same_on_any_mesh(spec):
    x_K = np.random.default_rng(0).normal(size=(2, 8, 6)).astype(np.float32)
    mesh = jax.make_mesh((2, 2), ("pack", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    assert checksums(jax.device_put(x_K, NamedSharding(mesh, PartitionSpec(*spec)))) == {"": oracle(x_K)}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2 * 4 * 6 - 1), st.integers(0, 31))
def test_every_bit_counts_and_only_for_its_run(place, bit):
    x_K = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    before = checksums({"x": jnp.asarray(x_K)})["x"]
    x_K.view(np.uint32).reshape(-1)[place] ^= np.uint32(1 << bit)
    after = checksums({"x": jnp.asarray(x_K)})["x"]
    assert [a == b for a, b in zip(after, before)] == [place >= 24, place < 24]


def test_what_changes_places_counts():
    x_K = jnp.arange(12.0).reshape(1, 3, 4)
    assert checksums({"x": x_K}) != checksums({"x": x_K[:, ::-1]}) != checksums({"x": x_K[:, :, ::-1]})


def test_sums_of_a_pack_are_not_gathered(monkeypatch):
    """On a CPU of two cores many gathers at once stop for good."""
    mesh = jax.make_mesh((2, 1, 1), ("pack", "data", "model"), axis_types=(AxisType.Auto,) * 3)
    x_Kx3 = jax.device_put(jnp.ones((4, 3)), jax.NamedSharding(mesh, jax.P("pack")))
    asked, inner = [], sums._sum
    monkeypatch.setattr(sums, "_sum", lambda x, to: (asked.append(inner.lower(x, to)), inner(x, to))[1])
    assert sums.checksums({"x": x_Kx3}) == sums.checksums({"x": np.ones((4, 3), np.float32)})
    assert not [c for c in ("all-gather", "all-reduce", "all-to-all") if c in asked[0].compile().as_text()]
