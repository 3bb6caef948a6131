import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxsat.parallel import abstract_like, make_mesh, over_runs, per_run, per_run_and_row, replicated


@pytest.mark.parametrize(
    "runs, rows, alone, given",
    [
        (1, 16, (1, 1), (1, 8)),  # rows are split where devices are given; on a CPU left alone they stay together
        (8, 16, (8, 1), (8, 1)),
        (2, 16, (2, 1), (2, 4)),
        (6, 2, (2, 1), (2, 2)),
        (3, 5, (1, 1), (1, 1)),
        (16, 1, (8, 1), (8, 1)),
    ],
)
def test_mesh_divides_runs_first_then_rows(runs, rows, alone, given):
    assert tuple(make_mesh(runs, rows).shape.values()) == alone
    assert tuple(make_mesh(runs, rows, jax.devices()).shape.values()) == given


def test_shardings_put_each_run_where_it_trains():
    mesh = make_mesh(4, 2, jax.devices())
    x_KxBxT = np.arange(4 * 2 * 3).reshape(4, 2, 3)
    shapes = lambda sharding: {s.data.shape for s in jax.device_put(x_KxBxT, sharding).addressable_shards}
    assert shapes(per_run(mesh)) == {(1, 2, 3)}
    assert shapes(per_run_and_row(mesh)) == {(1, 1, 3)}
    assert shapes(replicated(mesh)) == {(4, 2, 3)}


def test_over_runs_computes_each_run_alone():
    """A batched SVD, which XLA left to itself gathers on every device; two runs a device."""
    mesh = make_mesh(16, 1)
    x_KxMxN = np.random.default_rng(0).normal(size=(16, 7, 5)).astype(np.float32)

    def sigma(x_MxN, scale):
        assert x_MxN.ndim == 2 and scale.ndim == 0
        return {"sigma": jnp.linalg.svd(x_MxN, compute_uv=False) * scale}

    f = jax.jit(over_runs(mesh, sigma, shared=1))
    args = jax.device_put(x_KxMxN, per_run(mesh)), jax.device_put(np.float32(3), replicated(mesh))
    found = f(*args)["sigma"]
    np.testing.assert_allclose(found, 3 * np.linalg.svd(np.float64(x_KxMxN), compute_uv=False), rtol=1e-5)
    assert found.sharding.spec == PartitionSpec("pack")
    text = f.lower(*args).compile().as_text()
    assert "all-" not in text and "collective" not in text


def test_abstract_like_keeps_shapes_and_types():
    mesh = make_mesh(2, 1)
    tree = {"w": jnp.ones((2, 3), jnp.bfloat16), "keys": jax.random.split(jax.random.key(0), 2)}
    abstract = abstract_like(tree, per_run(mesh))
    for name, x in tree.items():
        assert (abstract[name].shape, abstract[name].dtype) == (x.shape, x.dtype)
        assert abstract[name].sharding == per_run(mesh)
