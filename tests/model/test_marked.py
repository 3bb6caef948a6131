"""Pairs that share a row, and texts that share their beginning, are read as if each were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat import model
from jaxsat.config import ModelConfig
from jaxsat.model.attention import attend, attention
from jaxsat.model.marked import ends, places, read_marks

ROW = [~5, ~6, 7, 8, ~0, 9, ~3, ~2, ~1, 4, -1, -1]  # three pairs, and two places where nothing is
PAIRS = [slice(0, 4), slice(4, 6), slice(6, 10)]
DEPTHS = [0, 1, 2, 2, 3, 1, 0, 1, 2, 0, 0]  # two trees, and two places where nothing is
PATHS = [[0, 1, 2], [0, 1, 3, 4], [0, 5], [6, 7, 8], [9], [10]]  # from a root to each leaf
SWITCHES = [
    {"positions": "rotary", "kv_heads": 1},
    {"positions": "learned", "norm": "layer", "bias": True, "parallel_residual": True},
    {"positions": "rotary", "rotary_fraction": 0.5, "scan_layers": True},
]


def test_marks_say_what_is_read_and_where_pairs_begin():
    rows_BxT1 = jnp.array([ROW, list(range(12))], jnp.int32)
    inputs_BxT, segment_BxT = read_marks(rows_BxT1)
    assert inputs_BxT.tolist() == [[5, 6, 7, 8, 0, 9, 3, 2, 1, 4, 0], list(range(11))]
    assert segment_BxT.tolist() == [[0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3], [0] * 11]
    assert places(segment_BxT).tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 0], list(range(11))]


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_each_pair_stands_alone(switches, remat):
    config = ModelConfig(depth=2, width=16, heads=2, context=16, vocab_size=11, **switches)
    params = model.init(config, jax.random.key(0))
    params = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(jax.random.key(w.size), w.shape), params)
    rows_BxT1 = jnp.array([ROW, ROW[::-1]], jnp.int32)[:1]
    inputs_BxT, segment_BxT = read_marks(rows_BxT1)
    packed_BxTxD, _ = jax.jit(model.hidden, static_argnums=(0, 3))(config, params, inputs_BxT, remat, segment_BxT)
    for pair in PAIRS:
        alone_BxTxD, _ = model.hidden(config, params, inputs_BxT[:, pair])
        np.testing.assert_allclose(packed_BxTxD[:, pair], alone_BxTxD, rtol=1e-5, atol=1e-5)
    text_BxTxD, _ = model.hidden(config, params, inputs_BxT)
    assert not np.allclose(packed_BxTxD[:, 4:6], text_BxTxD[:, 4:6], atol=1e-2)  # which a text's second half is not


def test_the_ends_of_a_tree_are_behind_what_is_below():
    flat = list(range(11))
    found = ends(jnp.array([DEPTHS, [0] * 11, flat], jnp.int32))
    assert found.tolist() == [[6, 5, 3, 5, 5, 6, 9, 9, 9, 10, 11], [i + 1 for i in flat], [11] * 11]


@pytest.mark.parametrize("switches", SWITCHES)
def test_each_path_of_a_tree_stands_alone(switches):
    config = ModelConfig(depth=2, width=16, heads=2, context=4, vocab_size=11, **switches)  # the longest path's
    params = model.init(config, jax.random.key(0))
    params = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(jax.random.key(w.size), w.shape), params)
    tokens_BxT, depth_BxT = np.arange(11, dtype=np.int32)[None], np.array([DEPTHS], np.int32)
    hidden = jax.jit(model.hidden, static_argnums=0)
    read_BxTxD, _ = hidden(config, params, tokens_BxT, depth_BxT=depth_BxT)
    for path in PATHS:
        alone_BxTxD, _ = hidden(config, params, tokens_BxT[:, path])
        np.testing.assert_allclose(np.asarray(read_BxTxD)[:, path], alone_BxTxD, rtol=1e-5, atol=1e-5)


def test_one_segment_is_what_none_is():
    """A text between pairs gives the numbers that it gives alone."""
    config = ModelConfig(depth=2, width=16, heads=2, context=16, vocab_size=11)
    params, tokens_BxT = model.init(config, jax.random.key(0)), jnp.arange(22, dtype=jnp.int32).reshape(2, 11) % 11
    of_text, _ = model.hidden(config, params, tokens_BxT)
    of_segment, _ = model.hidden(config, params, tokens_BxT, segment_BxT=jnp.full((2, 11), 4, jnp.int32))
    np.testing.assert_allclose(of_segment, of_text, rtol=1e-6, atol=1e-6)


def test_segments_of_all_ways_to_attend_are_the_same(monkeypatch):
    """The CPU's products against `jax.nn.dot_product_attention`, which other devices take."""
    q, k, v = (jax.random.normal(jax.random.key(i), (3, 11, h, 8)) for i, h in enumerate((4, 2, 2)))
    segment_BxT = jnp.array([[0] * 4 + [1] * 7, [0] * 11, list(range(11))], jnp.int32)
    ours = attention(q, k, v, segment_BxT)
    monkeypatch.setattr("jaxsat.model.attention.platform", lambda: "gpu")
    np.testing.assert_allclose(attention(q, k, v, segment_BxT), ours, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[2], jnp.repeat(v[2], 2, axis=1), rtol=1e-6)  # each sees itself alone


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_trees_of_all_ways_to_attend_are_the_same(platform, monkeypatch):
    """A TPU's kernel, which it has for 128 positions, takes none."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 128, h, 8)) for i, h in enumerate((4, 2, 2)))
    end_BxT = ends(jnp.array([[*DEPTHS, *[0] * 117], list(range(128))], jnp.int32))
    ours = attention(q, k, v, end_BxT=end_BxT)
    monkeypatch.setattr("jaxsat.model.attention.platform", lambda: platform)
    np.testing.assert_allclose(attention(q, k, v, end_BxT=end_BxT), ours, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[0, 11:], jnp.repeat(v[0, 11:], 2, axis=1), rtol=1e-6)  # each sees itself alone
    np.testing.assert_allclose(ours[1], attend(q, k, v)[1], rtol=1e-5, atol=1e-6)  # a path is a text


def test_a_gradient_passes_no_border():
    config = ModelConfig(depth=2, width=16, heads=2, context=16, vocab_size=11)
    params = model.init(config, jax.random.key(0))
    inputs_BxT, segment_BxT = read_marks(jnp.array([ROW], jnp.int32))

    def of_second(embedding):
        h_BxTxD, _ = model.hidden(config, params | {"embedding": embedding}, inputs_BxT, segment_BxT=segment_BxT)
        return h_BxTxD[:, 4:6].sum()

    reached = np.flatnonzero(np.abs(jax.grad(of_second)(params["embedding"])).sum(axis=1))
    assert reached.tolist() == [0, 9]  # the tokens of the second pair
