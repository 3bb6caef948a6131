import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import AxisType, PartitionSpec

from jaxsat.model import attention


def exact(q_BxTxHxE, k_BxTxGxE, v_BxTxGxE):
    """Float64, one softmax at a time."""
    q, k, v = (np.float64(x) for x in (q_BxTxHxE, k_BxTxGxE, v_BxTxGxE))
    y = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        g = h * k.shape[2] // q.shape[2]
        p = np.exp(k[b, : t + 1, g] @ q[b, t, h] / np.sqrt(q.shape[3]))
        y[b, t, h] = p @ v[b, : t + 1, g] / p.sum()
    return y


def drawn(n_kv_heads: int, n_positions: int, head_dim: int):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(2, n_positions, h, head_dim)).astype(np.float32) for h in (4, *[n_kv_heads] * 2))


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_every_platform_has_the_same_attention(monkeypatch, platform, n_kv_heads):
    monkeypatch.setattr(attention, "platform", lambda: platform)
    qkv = drawn(n_kv_heads, 24, 8)
    np.testing.assert_allclose(attention.attention(*qkv), exact(*qkv), atol=2e-6)


@pytest.mark.parametrize("n_kv_heads", [2, 4])
def test_the_tpu_kernel_has_it_too_on_its_own_rows_and_heads(monkeypatch, n_kv_heads):
    """Interpreted here; tests/test_plan.py compiles it."""
    make = functools.partial(splash_attention.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", make)
    qkv = drawn(n_kv_heads, 128, 128)
    loss = lambda f: lambda *qkv: (f(*qkv) * jnp.arange(128.0)[None, None, None]).mean()
    expected, gradients = jax.value_and_grad(loss(attention.attend), (0, 1, 2))(*qkv)
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    mesh = jax.make_mesh((1, 2, 2), ("pack", "data", "model"), axis_types=(AxisType.Auto,) * 3)

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("pack"), out_specs=PartitionSpec("pack"),
                       axis_names={"pack"}, check_vma=False)  # fmt: skip
    def of_runs(*qkv_K):
        return jax.vmap(jax.value_and_grad(loss(attention.attention), (0, 1, 2)))(*qkv_K)

    found, found_gradients = of_runs(*(x[None] for x in qkv))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    for ours, theirs in zip(found_gradients, gradients):
        np.testing.assert_allclose(ours[0], theirs, atol=1e-5)
