"""config.json as transformers and the public repositories write it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsat.config import InputError, ModelConfig, Run, validate
from jaxsat.interop.families import canonical, read_config, write_config
from jaxsat.model import llama, neox, pythia
from tests.interop.conftest import FAMILIES, families

# As their authors published them, dropouts and the like left out in part.
PYTHIA_70M = dict(
    architectures=["GPTNeoXForCausalLM"], bos_token_id=0, eos_token_id=0, hidden_act="gelu", hidden_size=512,
    initializer_range=0.02, intermediate_size=2048, layer_norm_eps=1e-5, max_position_embeddings=2048,
    model_type="gpt_neox", num_attention_heads=8, num_hidden_layers=6, rotary_emb_base=10000, rotary_pct=0.25,
    tie_word_embeddings=False, torch_dtype="float16", transformers_version="4.24.0", use_cache=True,
    use_parallel_residual=True, vocab_size=50304,
)  # fmt: skip
GPT2 = dict(
    activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=50256,
    embd_pdrop=0.1, eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-5, model_type="gpt2", n_ctx=1024,
    n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1, summary_activation=None,
    summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
    task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}, vocab_size=50257,
)  # fmt: skip
OPT_125M = dict(
    _name_or_path="opt-125m", activation_dropout=0.0, activation_function="relu", attention_dropout=0.0, bos_token_id=2,
    do_layer_norm_before=True, dropout=0.1, eos_token_id=2, ffn_dim=3072, hidden_size=768, init_std=0.02, layerdrop=0.0,
    max_position_embeddings=2048, model_type="opt", num_attention_heads=12, num_hidden_layers=12, pad_token_id=1,
    prefix="</s>", torch_dtype="float16", use_cache=True, vocab_size=50272, word_embed_proj_dim=768,
    _remove_final_layer_norm=False,
)  # fmt: skip
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
    "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "model_type": "llama",
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49152,
    "transformers.js_config": {"dtype": "q4"},
}  # fmt: skip
MISTRAL_7B = dict(
    architectures=["MistralForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
    initializer_range=0.02, intermediate_size=14336, max_position_embeddings=32768, model_type="mistral",
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=10000.0,
    sliding_window=4096, tie_word_embeddings=False, use_cache=True, vocab_size=32000,
)  # fmt: skip
GEMMA_7B = dict(
    architectures=["GemmaForCausalLM"], attention_bias=False, bos_token_id=2, eos_token_id=1, head_dim=256,
    hidden_act="gelu", hidden_activation="gelu_pytorch_tanh", hidden_size=3072, initializer_range=0.02,
    intermediate_size=24576, max_position_embeddings=8192, model_type="gemma", num_attention_heads=16,
    num_hidden_layers=28, num_key_value_heads=16, pad_token_id=0, rms_norm_eps=1e-06, rope_scaling=None,
    rope_theta=10000.0, vocab_size=256000,
)  # fmt: skip


def read(data):
    return read_config(data, "config.json")


def test_public_models_are_read():
    def learned(**keys):
        return ModelConfig(norm="layer", bias=True, positions="learned", tied_head=True, scan_layers=True, **keys)

    assert read(PYTHIA_70M) == ("gpt_neox", pythia("70m"), [])
    shape = dict(depth=12, width=768, heads=12)
    assert read(GPT2)[1] == learned(context=1024, vocab_size=50257, activation="gelu_tanh", **shape)
    assert read(OPT_125M)[1] == learned(context=2048, vocab_size=50272, activation="relu", **shape)
    assert read(SMOLLM2_135M)[1] == llama(
        depth=30, width=576, heads=9, kv_heads=3, ffn_width=1536, context=8192, vocab_size=49152, tied_head=True,
        rotary_base=100_000.0, scan_layers=True,
    )  # fmt: skip
    assert read(GEMMA_7B)[1] == ModelConfig(
        depth=28, width=3072, heads=16, head_width=256, ffn_width=24576, context=8192, vocab_size=256_000,
        tied_head=True, norm="rms_unit_offset", norm_eps=1e-6, activation="geglu", scaled_embedding=True,
        scan_layers=True,
    )  # fmt: skip


def test_a_sliding_window_cuts_the_context_and_says_so():
    _, config, notes = read(MISTRAL_7B)
    assert config.context == 4096 and config.kv_heads == 8
    assert len(notes) == 1 and "sliding_window = 4096, context cut to it from 32768" in notes[0]
    assert read(MISTRAL_7B | {"sliding_window": None})[1:] == (dataclasses.replace(config, context=32768), [])


def test_keys_of_transformers_5_are_read():
    rope = {"rope_type": "default", "rope_theta": 500.0}
    new = {k: v for k, v in PYTHIA_70M.items() if not k.startswith("rotary")}
    found = read(new | {"rope_parameters": rope | {"partial_rotary_factor": 0.5}})[1]
    assert (found.rotary_base, found.rotary_fraction) == (500.0, 0.5)
    assert read(new)[1] == read(PYTHIA_70M)[1]
    assert read(SMOLLM2_135M | {"rope_theta": None, "rope_parameters": rope})[1].rotary_base == 500.0


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    "base, keys, words",
    [
        (SMOLLM2_135M, {"rope_scaling": YARN}, "rope_scaling: rope_type = 'yarn' cannot be expressed here"),
        (SMOLLM2_135M, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: type = 'linear'"),
        (SMOLLM2_135M, {"rope_scaling": {"factor": 2.0}}, "rope_scaling: factor = 2.0 is not known here"),
        (SMOLLM2_135M, {"rope_parameters": YARN}, "rope_parameters: rope_type = 'yarn'"),
        (SMOLLM2_135M, {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "full_attention = "),
        (SMOLLM2_135M, {"rope_parameters": {"rope_theta": 5.0}}, "'rope_theta': 100000.0, .* cannot be expressed"),
        (SMOLLM2_135M, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "'rope_parameters': 0.5} cannot be"),
        (SMOLLM2_135M, {"rope_scaling": "linear"}, "rope_scaling = 'linear' must be of type dict"),
        (SMOLLM2_135M, {"rope_interleaved": True}, "rope_interleaved = True cannot be expressed here"),
        (SMOLLM2_135M, {"attention_bias": True}, "attention_bias = True with mlp_bias = False"),
        (SMOLLM2_135M, {"mlp_bias": True}, "attention_bias = False with mlp_bias = True"),
        (SMOLLM2_135M, {"hidden_act": "gelu"}, "hidden_act = 'gelu' cannot be expressed here, only 'silu'"),
        (SMOLLM2_135M, {"hidden_act": ["silu"]}, "hidden_act = .'silu'. cannot be expressed here"),
        (SMOLLM2_135M, {"sliding_window": 128}, "sliding_window = 128 is not known here"),
        (SMOLLM2_135M, {"quantization_config": {"bits": 4}}, "quantization_config = .*bits.* is not known here"),
        (SMOLLM2_135M, {"embedding_multiplier": 12}, "embedding_multiplier = 12 is not known here"),
        (SMOLLM2_135M, {"hidden_size": None}, "hidden_size = None must be of type int"),
        (SMOLLM2_135M, {"hidden_size": "576"}, "hidden_size = '576' must be of type int"),
        (SMOLLM2_135M, {"num_key_value_heads": True}, "num_key_value_heads = True must be of type int"),
        (
            SMOLLM2_135M,
            {"num_attention_heads": 7},
            "model.width = 576 is not divisible by model.heads = 7",
        ),
        (SMOLLM2_135M, {"num_hidden_layers": 0}, "config.json: model.depth = 0: must be at least 1"),
        (PYTHIA_70M, {"attention_bias": False}, "attention_bias = False cannot be expressed here, only True"),
        (PYTHIA_70M, {"rotary_pct": 0.3}, "0.3 of 64 dimensions, an odd number"),
        (PYTHIA_70M, {"rotary_pct": 1.5}, "model.rotary_fraction = 1.5"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        (GPT2, {"scale_attn_weights": False}, "scale_attn_weights = False"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention = True"),
        (GPT2, {"activation_function": "quick_gelu"}, "activation_function = 'quick_gelu'"),
        (OPT_125M, {"word_embed_proj_dim": 512}, "word_embed_proj_dim = 512 cannot be expressed here, only 768"),
        (OPT_125M, {"do_layer_norm_before": False}, "do_layer_norm_before = False"),
        (OPT_125M, {"_remove_final_layer_norm": True}, "_remove_final_layer_norm = True"),
        (OPT_125M, {"enable_bias": False}, "enable_bias = False"),
        (OPT_125M, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine = False"),
        (GEMMA_7B, {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        (GEMMA_7B, {"attention_bias": True}, "attention_bias = True"),
        (GEMMA_7B, {"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        (GEMMA_7B, {"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not known here"),
        (
            GEMMA_7B,
            {"model_type": "gemma2"},
            "model_type = 'gemma2' is not known here, only gpt_neox, gpt2,",
        ),
        (GEMMA_7B, {"model_type": ["gemma"]}, "model_type = .'gemma'. is not known here"),
    ],
)
def test_what_changes_numbers_and_cannot_be_expressed_is_refused_by_name(base, keys, words):
    with pytest.raises(InputError, match=words) as e:
        read(base | keys)
    assert "config.json" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_a_config_without_a_size_is_refused(key):
    with pytest.raises(InputError, match=f"config.json has no {key}: it is cut"):
        read({k: v for k, v in SMOLLM2_135M.items() if k != key})


def test_keys_that_are_off_are_not_missed():
    assert read(SMOLLM2_135M | {"use_qk_norm": False, "layer_types": None, "pruned_heads": {}}) == read(SMOLLM2_135M)


@families
def test_each_family_is_written_as_itself(family):
    assert write_config(FAMILIES[family])["model_type"] == family


@given(
    st.sampled_from(list(FAMILIES)),
    st.fixed_dictionaries(
        {},
        optional=dict(
            depth=st.integers(1, 5),
            heads=st.sampled_from([1, 2, 3, 6]),
            kv_heads=st.sampled_from([None, 1, 2, 3]),
            head_width=st.sampled_from([None, 6, 8, 30]),
            ffn_width=st.none() | st.integers(1, 99),
            vocab_size=st.integers(1, 99),
            context=st.integers(1, 99),
            norm_eps=st.floats(1e-9, 1e-3),
            rotary_base=st.floats(1, 1e6),
            rotary_fraction=st.sampled_from([0.25, 0.5, 1.0]),
            norm=st.sampled_from(["rms", "layer", "rms_unit_offset"]),
            activation=st.sampled_from(["swiglu", "geglu", "gelu", "gelu_tanh", "relu"]),
            positions=st.sampled_from(["rotary", "learned"]),
            tied_head=st.booleans(),
            parallel_residual=st.booleans(),
            scaled_embedding=st.booleans(),
            bias=st.booleans(),
            head_rank=st.none() | st.just(3),
        ),
    ),
)
def test_what_is_written_is_read_as_the_same_or_refused_by_name(family, keys):
    config = dataclasses.replace(FAMILIES[family], **keys)
    try:
        validate(Run(config))
    except InputError:
        return
    try:
        data = write_config(config)
    except InputError as e:
        key = str(e).partition(" = ")[0].removeprefix("model.")
        assert "an odd number" in str(e) or repr(getattr(config, key)) in str(e)
    else:
        assert read(data)[1] == canonical(config)


@pytest.mark.parametrize(
    "config, words",
    [
        (llama(head_rank=8), "model.head_rank = 8 cannot be written .* nearest is llama, which has None"),
        (neox(head="mixture"), "model.head = 'mixture' cannot be written .* nearest is gpt_neox, which has 'linear'"),
        (ModelConfig(), "model.activation = 'gelu' cannot be written .* nearest is llama, which has 'swiglu'"),
        (neox(bias=False), "model.bias = False cannot be written .* nearest is gpt_neox, which has True"),
        (neox(kv_heads=2), "model.kv_heads = 2 cannot be written .* nearest is gpt_neox, which has None"),
        (llama(parallel_residual=True), "model.parallel_residual = True"),
        (llama(rotary_fraction=0.5), "model.rotary_fraction = 0.5"),
        (neox(rotary_fraction=0.2), "rotary positions on 0.2 of 16 dimensions, an odd number"),
    ],
)
def test_what_no_family_has_is_refused_by_name(config, words):
    with pytest.raises(InputError, match=words):
        write_config(config)
