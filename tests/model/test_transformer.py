import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat.config import ModelConfig
from jaxsat.model import heads, hidden, init, llama, logits, neox
from jaxsat.model.transformer import rotate

SHAPE = dict(depth=2, width=32, heads=4, context=11, vocab_size=53)
FAMILIES = {
    "neox": neox(**SHAPE),
    "llama": llama(kv_heads=2, ffn_width=40, **SHAPE),
    "gpt2": ModelConfig(norm="layer", bias=True, activation="gelu_tanh", positions="learned", tied_head=True, **SHAPE),
    "opt": ModelConfig(norm="layer", bias=True, activation="relu", positions="learned", head_rank=6, **SHAPE),
    "gemma": ModelConfig(
        norm="rms_unit_offset", activation="geglu", scaled_embedding=True, head_width=6, kv_heads=1, **SHAPE
    ),
}
families = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


run_hidden = jax.jit(hidden, static_argnums=0)
run_logits = jax.jit(logits, static_argnums=0)
run_init = jax.jit(init, static_argnums=0)


def tokens(n_rows=3, n_positions=11, vocab_size=53, seed=0):
    return jax.random.randint(jax.random.key(seed), (n_rows, n_positions), 0, vocab_size)


def jittered(config, seed=0):
    """Parameters with nothing at a special value: norms' gains off one, biases off zero."""
    rng = np.random.default_rng(seed)

    def draw(path, a):
        return float(path[-1].key == "scale") + 0.2 * jnp.asarray(rng.normal(size=a.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: init(config, jax.random.key(0))))


def loss(config, params, tokens_BxT):
    return heads.loss(config, params, hidden(config, params, tokens_BxT[:, :-1])[0], tokens_BxT[:, 1:])


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_scanned_layers_are_the_unrolled_ones(family):
    config = FAMILIES[family]
    scanned = dataclasses.replace(config, scan_layers=True)
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
    params = jittered(config)
    one, d_one = value_and_grad(config, params, tokens())
    other, d_other = value_and_grad(scanned, params, tokens())
    assert one == pytest.approx(float(other), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), d_one, d_other)


@families
def test_no_position_sees_a_later_token(config):
    params, before = jittered(config), tokens()
    after = before.at[:, 6].set((before[:, 6] + 1) % config.vocab_size)
    changed_T = np.abs(run_logits(config, params, before) - run_logits(config, params, after)).max(axis=(0, 2))
    assert (changed_T[:6] == 0).all() and (changed_T[6:] > 1e-4).all()


@families
def test_the_residual_stream_starts_at_the_embedding_and_ends_at_the_final_norm(config):
    params, x = jittered(config), tokens()
    h_BxTxD, x_LxBxTxD = run_hidden(config, params, x)
    assert x_LxBxTxD.shape == (config.depth + 1, 3, 11, config.width)
    start = params["embedding"][x] * (math.sqrt(config.width) if config.scaled_embedding else 1.0)
    start += params["positions"][None] if config.positions == "learned" else 0
    np.testing.assert_array_equal(x_LxBxTxD[0], start)
    last = np.float64(x_LxBxTxD[-1])
    centred = last - (last.mean(-1, keepdims=True) if config.norm == "layer" else 0)
    norm = jax.tree.map(np.asarray, params["final_norm"])
    gain = norm["scale"] + (config.norm == "rms_unit_offset")
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_eps) * gain + norm.get("bias", 0)
    np.testing.assert_allclose(h_BxTxD, expected, rtol=1e-4, atol=1e-5)


def test_logits_are_the_head_of_the_hidden_states():
    for config in FAMILIES.values():
        params, x = jittered(config), tokens()
        h = np.float64(run_hidden(config, params, x)[0])
        own = params.get("head", {})
        w = np.float64(
            params["embedding"].T if config.tied_head else own["a"] @ own["b"] if config.head_rank else own["kernel"]
        )
        np.testing.assert_allclose(run_logits(config, params, x), h @ w, rtol=1e-4, atol=1e-4)


def test_rotary_scores_depend_on_the_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 8))
    q_TxHxE, k_TxHxE = (rotate(jnp.tile(a, (1, 9, 1, 1)), 1.0, 100.0)[0] for a in (q, k))
    scores_HxTxT = np.einsum("mhe,nhe->hmn", q_TxHxE, k_TxHxE)
    for distance in range(-8, 9):
        diagonal = np.diagonal(scores_HxTxT, distance, axis1=1, axis2=2)
        np.testing.assert_allclose(diagonal, diagonal[:, :1].repeat(diagonal.shape[1], 1), atol=1e-5)
    assert np.ptp(scores_HxTxT[0, 0]) > 0.1
    np.testing.assert_allclose(q_TxHxE[0], q[0, 0], atol=1e-7)


def test_rotary_turns_a_fraction_by_the_published_angles():
    """Pair (i, i + n/2) of the first n dimensions turns by t base^(-2i/n): Su et al. 2021, halves as in GPT-NeoX."""
    x = np.asarray(jax.random.normal(jax.random.key(0), (1, 5, 1, 16)))
    y = np.asarray(rotate(jnp.asarray(x), 0.25, 10_000.0))
    for t in range(5):
        for i, angle in enumerate((t, t / 100)):
            pair = complex(x[0, t, 0, i], x[0, t, 0, i + 2]) * np.exp(1j * angle)
            assert complex(y[0, t, 0, i], y[0, t, 0, i + 2]) == pytest.approx(pair, abs=1e-6)
    np.testing.assert_array_equal(y[..., 4:], x[..., 4:])


def test_grouped_query_attention_is_full_attention_with_repeated_keys_and_values():
    grouped = llama(kv_heads=2, **SHAPE)
    params = jittered(grouped)
    attention = dict(params["blocks"]["attention"])
    for name in ("key", "value"):
        kernel_LxDxGxE = attention[name]["kernel"].reshape(2, 32, 2, 8)
        attention[name] = {"kernel": jnp.repeat(kernel_LxDxGxE, 2, axis=2).reshape(2, 32, 32)}
    repeated = params | {"blocks": params["blocks"] | {"attention": attention}}
    full = dataclasses.replace(grouped, kv_heads=None)
    np.testing.assert_allclose(
        run_logits(grouped, params, tokens()), run_logits(full, repeated, tokens()), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(family):
    config, x = FAMILIES[family], tokens()
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    assert jax.eval_shape(lambda: init(half, jax.random.key(0))) == jax.eval_shape(
        lambda: init(config, jax.random.key(0))
    )
    params = jittered(half)
    assert {a.dtype for a in jax.eval_shape(lambda: hidden(half, params, x))} == {jnp.dtype("bfloat16")}
    got, full = run_logits(half, params, x), run_logits(config, params, x)
    assert got.dtype == jnp.float32
    assert 0 < np.abs(got - full).max() < 0.05 * np.abs(full).max()


def test_init_is_a_function_of_the_key_and_no_two_layers_are_alike():
    config = FAMILIES["neox"]
    one, same, other = (run_init(config, jax.random.key(s)) for s in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    kernel_LxDxF = one["blocks"]["feed_forward"]["up"]["kernel"]
    assert not np.allclose(kernel_LxDxF, other["blocks"]["feed_forward"]["up"]["kernel"])
    assert not np.allclose(kernel_LxDxF[0], kernel_LxDxF[1])


def stories260k(path):
    """(config, params) of llama2.c's format: seven int32, then the weights as [out, in], layers stacked."""
    d, f, depth, heads, kv_heads, v, _ = np.fromfile(path, np.int32, 7).tolist()
    config = llama(depth=depth, width=d, heads=heads, kv_heads=kv_heads, ffn_width=f, vocab_size=v, tied_head=True)
    data, e, start = np.fromfile(path, np.float32, offset=28), d // heads, 0

    def take(*shape):
        nonlocal start
        start += np.prod(shape)
        return data[start - np.prod(shape) : start].reshape(shape)

    def rotated(n_heads):
        # llama2.c turns adjacent pairs, we turn halves: even dimensions of each head first, then the odd ones.
        pairs_LxHxExD = take(depth, n_heads, e // 2, 2, d)
        return pairs_LxHxExD.swapaxes(2, 3).reshape(depth, n_heads * e, d)

    embedding, norm1 = take(v, d), take(depth, d)
    attention = {"query": rotated(heads), "key": rotated(kv_heads), "value": take(depth, kv_heads * e, d)}
    attention["out"], norm2 = take(depth, d, d), take(depth, d)
    feed_forward = {"gate": take(depth, f, d), "down": take(depth, d, f), "up": take(depth, f, d)}
    kernels = lambda part: {name: {"kernel": w.swapaxes(1, 2)} for name, w in part.items()}
    blocks = {"norm1": {"scale": norm1}, "norm2": {"scale": norm2}}
    blocks |= {"attention": kernels(attention), "feed_forward": kernels(feed_forward)}
    params = {"embedding": embedding, "blocks": blocks, "final_norm": {"scale": take(d)}}
    assert len(data) - start == 512 * e  # only the cos and sin tables are left
    return config, jax.tree.map(jnp.asarray, params)


def test_real_llama_weights_tell_their_story(shared_data):
    folder = shared_data / "weights_stories260k"
    config, params = stories260k(folder / "stories260K.bin")
    story = json.loads((folder / "greedy_tokens.json").read_text())["greedy_from_bos"]
    assert jax.tree.structure(params) == jax.tree.structure(init(config, jax.random.key(0)))
    greedy = jax.jit(lambda tokens_1xT: logits(config, params, tokens_1xT).argmax(-1))
    text = np.zeros((1, len(story)), int)
    text[0, 0] = story[0]
    for t in range(len(story) - 1):
        text[0, t + 1] = greedy(text)[0, t]
    assert text[0].tolist() == story
