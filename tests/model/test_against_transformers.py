"""The same random weights in Hugging Face's models and in ours give the same logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat.model import init, llama, logits, neox

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'jaxsat[bench]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'jaxsat[bench]'")

SHAPE = dict(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=100,
    vocab_size=91,
    max_position_embeddings=64,
)
OURS = dict(depth=3, width=64, heads=4, ffn_width=100, vocab_size=91, context=64)


def weights(model) -> dict[str, np.ndarray]:
    """The model's state with every weight random, also the norms and biases that start at 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def stacked(state, prefix, names, suffix, convert=np.asarray):
    """One array per name with the layers on axis 0."""
    layers = range(SHAPE["num_hidden_layers"])
    return {
        ours: np.stack([convert(state[f"{prefix}.{i}.{theirs}.{suffix}"]) for i in layers]) for ours, theirs in names
    }


def linears(state, prefix, names, bias):
    kernels = stacked(state, prefix, names, "weight", np.transpose)
    biases = stacked(state, prefix, names, "bias") if bias else {}
    return {name: {"kernel": w} | ({"bias": biases[name]} if bias else {}) for name, w in kernels.items()}


def from_neox(state):
    layers = "gpt_neox.layers"
    fused = linears(state, layers, [("qkv", "attention.query_key_value")], bias=True)["qkv"]
    # Each head's rows are its query, key and value in turn.
    kernel_LxDxHx3xE = fused["kernel"].reshape(3, 64, 4, 3, 16)
    bias_LxHx3xE = fused["bias"].reshape(3, 4, 3, 16)
    attention = linears(state, layers, [("out", "attention.dense")], bias=True) | {
        name: {"kernel": kernel_LxDxHx3xE[..., i, :].reshape(3, 64, 64), "bias": bias_LxHx3xE[..., i, :].reshape(3, 64)}
        for i, name in enumerate(("query", "key", "value"))
    }
    norms = [("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm")]
    scale, bias = (stacked(state, layers, norms, suffix) for suffix in ("weight", "bias"))
    blocks = {name: {"scale": scale[name], "bias": bias[name]} for name in scale}
    blocks["attention"] = attention
    mlp = [("up", "mlp.dense_h_to_4h"), ("down", "mlp.dense_4h_to_h")]
    blocks["feed_forward"] = linears(state, layers, mlp, bias=True)
    norm = {"scale": state["gpt_neox.final_layer_norm.weight"], "bias": state["gpt_neox.final_layer_norm.bias"]}
    embedding, kernel = state["gpt_neox.embed_in.weight"], state["lm_head.weight"].T
    return {"embedding": embedding, "blocks": blocks, "final_norm": norm, "head": {"kernel": kernel}}


def from_llama(state):
    attention = [(ours, f"self_attn.{ours[0]}_proj") for ours in ("query", "key", "value", "out")]
    feed_forward = [(ours, f"mlp.{ours}_proj") for ours in ("gate", "up", "down")]
    norms = [("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm")]
    scale = stacked(state, "model.layers", norms, "weight")
    blocks = {name: {"scale": scale[name]} for name in scale}
    blocks["attention"] = linears(state, "model.layers", attention, bias=False)
    blocks["feed_forward"] = linears(state, "model.layers", feed_forward, bias=False)
    params = {"embedding": state["model.embed_tokens.weight"], "blocks": blocks}
    params["final_norm"] = {"scale": state["model.norm.weight"]}
    return params | {"head": {"kernel": state["lm_head.weight"].T}}


def compare(config, params, model):
    reference = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, reference)
    tokens_BxT = np.random.default_rng(0).integers(0, config.vocab_size, (3, 37))
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens_BxT)).logits.numpy()
    ours = jax.jit(logits, static_argnums=0)(config, params, tokens_BxT)
    assert theirs.std() > 0.3
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("parallel_residual", [True, False])
@pytest.mark.parametrize("rotary_fraction", [0.25, 1.0])
def test_gpt_neox(parallel_residual, rotary_fraction):
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": rotary_fraction}
    config = transformers.GPTNeoXConfig(use_parallel_residual=parallel_residual, rope_parameters=rope, **SHAPE)
    model = transformers.GPTNeoXForCausalLM(config).eval()
    ours = neox(parallel_residual=parallel_residual, rotary_fraction=rotary_fraction, **OURS)
    compare(ours, from_neox(weights(model)), model)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llama(kv_heads):
    rope = {"rope_type": "default", "rope_theta": 500.0}
    config = transformers.LlamaConfig(num_key_value_heads=kv_heads, rope_parameters=rope, rms_norm_eps=1e-5, **SHAPE)
    model = transformers.LlamaForCausalLM(config).eval()
    compare(llama(kv_heads=kv_heads, rotary_base=500.0, **OURS), from_llama(weights(model)), model)
