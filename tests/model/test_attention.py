import functools
import importlib.util
import os
import subprocess
import sys

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


@pytest.fixture
def tpu(monkeypatch):
    """The kernel of a TPU, interpreted; tests/test_plan.py and the last test below compile it."""
    make = functools.partial(splash_attention.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", make)
    monkeypatch.setattr(attention, "platform", lambda: "tpu")


@pytest.mark.parametrize("n_kv_heads", [2, 4])
def test_the_tpu_kernel_has_it_too_on_its_own_rows_and_heads(tpu, n_kv_heads):
    qkv = drawn(n_kv_heads, 128, 128)
    loss = lambda f: lambda *qkv: (f(*qkv) * jnp.arange(128.0)[None, None, None]).mean()
    expected, gradients = jax.value_and_grad(loss(attention.attend), (0, 1, 2))(*qkv)
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


def test_the_tpu_kernel_needs_no_mesh(tpu):
    qkv = drawn(2, 128, 128)
    np.testing.assert_allclose(jax.jit(attention.attention)(*qkv), exact(*qkv), atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_highest_precision_is_asked_of_the_tpu_kernel_where_it_has_one(tpu, dtype):
    qkv = [x.astype(dtype) for x in drawn(4, 128, 128)]
    with jax.default_matmul_precision("highest"):
        jaxpr = str(jax.make_jaxpr(attention.attention)(*qkv))
    assert jaxpr.count("dot_general") >= 2 and ("HIGHEST" in jaxpr) == (dtype == "float32")


OUTSIDE_A_MESH = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jaxsat import evaluate, model
from jaxsat.config import ModelConfig
from jaxsat.model import attention, loss, transformer

for module in (attention, loss, transformer):
    module.platform = lambda: "tpu"
device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
on_it = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(device))
for dtype in ("float32", "bfloat16"):
    config = ModelConfig(depth=1, width=128, heads=1, context=128, vocab_size=256, compute_dtype=dtype)
    shapes = jax.eval_shape(lambda: (model.init(config, jax.random.key(0)), jnp.zeros((2, 129), int)))
    params, rows = jax.tree.map(on_it, shapes)
    logits = jax.jit(lambda params, rows: model.logits(config, params, rows[:, :-1]))
    for lowered in (logits.lower(params, rows), evaluate.token_losses.lower(config, params, rows)):
        assert "tpu_custom_call" in lowered.compile().as_text()
print("compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install jax[tpu]")
def test_forward_passes_outside_a_mesh_compile_for_a_tpu():
    env = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    env |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    child = subprocess.run([sys.executable, "-c", OUTSIDE_A_MESH], env=os.environ | env, capture_output=True, text=True)
    assert child.stdout == "compiled\n", child.stderr
