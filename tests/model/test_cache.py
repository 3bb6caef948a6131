"""A text that is read in chunks, with a cache, is the text read whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat import model
from jaxsat.config import ModelConfig

SHAPE = dict(depth=3, width=24, heads=4, context=12, vocab_size=40)
SWITCHES = {
    "llama": dict(norm="rms", activation="swiglu", kv_heads=2, tied_head=True),
    "neox": dict(norm="layer", bias=True, parallel_residual=True, rotary_fraction=0.25, scan_layers=True),
    "gpt2": dict(norm="layer", bias=True, positions="learned", activation="gelu_tanh", head_rank=5),
    "one key head": dict(kv_heads=1, positions="learned", scan_layers=True),
}


@pytest.mark.parametrize("switches", [
    pytest.param(of, id=name, marks=[pytest.mark.slow] * (name != "gpt2"))
    for name, of in SWITCHES.items()
])  # fmt: skip
def test_rows_of_different_lengths_in_chunks_are_the_rows_whole(switches):
    config = ModelConfig(**SHAPE, **switches)
    params = jax.tree.map(lambda x: 3 * x, jax.jit(model.init, static_argnums=0)(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    tokens_BxS, first_B = rng.integers(0, 40, (3, 12)), np.array([0, 5, 11])
    read = jax.jit(lambda *args: model.reader(config, params)(*args))
    cache, chunks = model.empty_cache(config, jnp.asarray(first_B), 14), []
    for start, end in ((0, 6), (6, 7), (7, 12)):
        h_BxCxD, cache = read(tokens_BxS[:, start:end], cache, start)
        chunks.append(h_BxCxD)
    found_BxSxD = np.concatenate(chunks, axis=1)
    for row_S, first, found_SxD in zip(tokens_BxS, first_B, found_BxSxD):
        whole_1xTxD, _ = jax.jit(model.hidden, static_argnums=0)(config, params, row_S[None, first:])
        np.testing.assert_allclose(found_SxD[first:], whole_1xTxD[0], atol=2e-4)


def test_the_cache_of_bfloat16_is_bfloat16():
    config = ModelConfig(**SHAPE, compute_dtype="bfloat16")
    cache = jax.eval_shape(lambda: model.empty_cache(config, jnp.zeros(2, int), 8))
    assert [(x.dtype, x.shape) for x in cache.k + cache.v] == 6 * [(jnp.bfloat16, (2, 4, 8, 6))]
