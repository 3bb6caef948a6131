"""transformers writes what we read and reads what we write, and the logits of both are the same."""

import json
import warnings

import jax
import numpy as np
import pytest

from jaxsat import interop, model
from jaxsat.corpus import tokenizer as bpe
from tests.interop.conftest import FAMILIES, draw, families, same
from tests.model.test_transformer import stories260k

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'jaxsat[bench]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'jaxsat[bench]'")
transformers.utils.logging.disable_progress_bar()

run_logits = jax.jit(model.logits, static_argnums=0)
SHAPE = dict(
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=6,
    intermediate_size=50,
    vocab_size=91,
    max_position_embeddings=64,
)
GPT2 = dict(n_embd=36, n_layer=3, n_head=4, vocab_size=91, n_positions=64, eos_token_id=0, bos_token_id=0)
OPT = {key: value for key, value in SHAPE.items() if key != "intermediate_size"} | {"ffn_dim": 50}


def rope(theta=10_000.0, **keys):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | keys}


CASES = {
    "gpt_neox": ("GPTNeoX", SHAPE),
    "gpt_neox, sequential, all rotated, tied": (
        "GPTNeoX",
        SHAPE | dict(use_parallel_residual=False, tie_word_embeddings=True) | rope(500.0, partial_rotary_factor=1.0),
    ),
    "gpt_neox, half rotated, tanh": (
        "GPTNeoX",
        SHAPE | dict(hidden_act="gelu_new", layer_norm_eps=0.1) | rope(partial_rotary_factor=0.5),
    ),
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied, wide, relu": (
        "GPT2",
        GPT2 | dict(tie_word_embeddings=False, n_inner=50, activation_function="relu"),
    ),
    "gpt2, exact gelu": ("GPT2", GPT2 | dict(activation_function="gelu", layer_norm_epsilon=0.1)),
    "opt": ("OPT", OPT),
    "opt, untied": ("OPT", OPT | dict(tie_word_embeddings=False)),
    "llama": ("Llama", SHAPE),
    "llama, grouped, tied, biased": (
        "Llama",
        SHAPE | dict(num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True, mlp_bias=True) | rope(500.0),
    ),
    "llama, one key, narrow heads, geglu": (
        "Llama",
        SHAPE | dict(num_key_value_heads=1, head_dim=4, hidden_act="gelu_pytorch_tanh", rms_norm_eps=0.1),
    ),
    "mistral": ("Mistral", SHAPE | dict(num_key_value_heads=3, head_dim=8, sliding_window=None)),
    "gemma": ("Gemma", SHAPE | dict(num_key_value_heads=1, head_dim=10)),
    "gemma, untied": ("Gemma", SHAPE | dict(num_key_value_heads=6, head_dim=6, tie_word_embeddings=False)),
}


def drawn(architecture, keys):
    """With every weight random, also the gains and biases that start at 1 and 0."""
    config = getattr(transformers, f"{architecture}Config")(**keys)
    name = f"{architecture}LMHeadModel" if architecture == "GPT2" else f"{architecture}ForCausalLM"
    found, generator = getattr(transformers, name)(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return found


def loaded(folder):
    with warnings.catch_warnings(action="error"):
        found, about = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    assert not any(about.values())  # nothing missing, nothing unexpected
    return found.eval()


def compare(config, params, theirs, longest=64):
    tokens_BxT = np.random.default_rng(0).integers(0, config.vocab_size, (3, longest))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens_BxT)).logits.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(run_logits(config, params, tokens_BxT), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_theirs_in_and_out(case, tmp_path):
    theirs = drawn(*CASES[case])
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    source = interop.open(tmp_path / "theirs")
    params = source.params()
    compare(source.config, params, theirs)
    interop.write(source.config, params, None, tmp_path / "ours")
    again = interop.open(tmp_path / "ours")
    assert again.config == source.config
    same(again.params(), params)
    compare(source.config, params, loaded(tmp_path / "ours"))


@families
def test_what_we_drew_they_load(family, tmp_path):
    config, params = FAMILIES[family], draw(FAMILIES[family])
    interop.write(config, params, None, tmp_path / "model")
    compare(config, params, loaded(tmp_path / "model"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_what_they_are(dtype, tmp_path):
    drawn("Llama", SHAPE).to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    source = interop.open(tmp_path / "theirs")
    compare(source.config, source.params(), loaded(tmp_path / "theirs"))


def test_within_its_window_a_mistral_is_theirs(tmp_path):
    theirs = drawn("Mistral", SHAPE | dict(num_key_value_heads=2, sliding_window=20))
    theirs.save_pretrained(tmp_path / "theirs")
    source = interop.open(tmp_path / "theirs")
    assert source.config.context == 20
    compare(source.config, source.params(), theirs, longest=20)


def test_they_load_the_tokenizer(tmp_path):
    tokenizer = bpe.train(["the sun and the moon"] * 5, 40)
    interop.write(FAMILIES["llama"], draw(FAMILIES["llama"]), tokenizer.to_str(), tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs("the moon")["input_ids"] == tokenizer.encode("the moon").ids
    assert theirs.eos_token == bpe.EOS and theirs.decode(tokenizer.encode("the moon").ids) == "the moon"
    assert loaded(tmp_path / "model").config.eos_token_id == theirs.eos_token_id


def test_real_weights_tell_their_story_to_them(shared_data, tmp_path):
    folder = shared_data / "weights_stories260k"
    config, params = stories260k(folder / "stories260K.bin")
    story = json.loads((folder / "greedy_tokens.json").read_text())["greedy_from_bos"]
    interop.write(config, params, None, tmp_path / "model")
    same(interop.open(tmp_path / "model").params(), params)
    theirs = loaded(tmp_path / "model")
    found = theirs.generate(torch.tensor([story[:1]]), max_new_tokens=len(story) - 1, do_sample=False, pad_token_id=0)
    assert found[0].tolist() == story
