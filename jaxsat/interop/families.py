"""config.json of the families that we know, as ModelConfig and back.

What is in a config.json is used, is known to change no number, or is refused by its name.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxsat.config import InputError, ModelConfig, Run, validate

# Of no influence on the logits of a text.
_NEUTRAL = set(
    """architectures model_type dtype torch_dtype transformers_version use_cache pretraining_tp name_or_path prefix
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id
    initializer_range init_std dropout attention_dropout activation_dropout hidden_dropout emb_dropout layerdrop
    classifier_dropout attn_pdrop embd_pdrop resid_pdrop summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout reorder_and_upcast_attn n_ctx id2label label2id num_labels
    problem_type finetuning_task task_specific_params tokenizer_class output_attentions output_hidden_states
    output_scores return_dict return_dict_in_generate use_return_dict gradient_checkpointing torchscript
    use_bfloat16 tf_legacy_loss remove_invalid_values chunk_size_feed_forward is_decoder max_length min_length
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences
    output_past is_llama_config transformers.js_config unsloth_version unsloth_fixed""".split()
)
_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_PLAIN = {"gelu": "gelu", "relu": "relu"} | dict.fromkeys(_TANH, "gelu_tanh")
_GATED = {"silu": "swiglu", "swish": "swiglu"} | dict.fromkeys(_TANH, "geglu")


class Keys:
    """A config.json whose keys are asked for one after another. Errors name the file and the key."""

    def __init__(self, data: dict[str, Any], where: str):
        self.data, self.where, self.notes = dict(data), where, []

    def take(self, name: str, kind: type, default: Any = ...) -> Any:
        value = self.data.pop(name, default)
        if value is ...:
            raise InputError(f"{self.where} has no {name}: it is cut, or of another kind of model")
        if value is None and default is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise InputError(f"{self.where}: {name} = {value!r} must be of type {kind.__name__}")
        return value

    def choice(self, name: str, known: dict[Any, Any], default: Any) -> Any:
        """What `known` says of the value."""
        value = self.data.pop(name, default)
        if not isinstance(value, (str, bool, int, type(None))) or value not in known:
            can = " or ".join(map(repr, known))
            raise InputError(f"{self.where}: {name} = {value!r} cannot be expressed here, only {can}")
        return known[value]

    def only(self, name: str, *values: Any) -> None:
        """Absent, or one of these."""
        self.choice(name, dict.fromkeys(values), values[0])

    def rotary(self, base: str = "rope_theta", fraction: str | None = None) -> dict[str, float]:
        """Of positions that are scaled in no way; files of before transformers 5 call them `base` and `fraction`."""
        found = {"rotary_base": {}, "rotary_fraction": {}}
        for ours, name in {"rotary_base": base, "rotary_fraction": fraction}.items():
            found[ours][name] = self.take(name, float, None) if name else None
        for name in ("rope_scaling", "rope_parameters"):
            inner = Keys(self.take(name, dict, None) or {}, f"{self.where}: {name}")
            inner.only("rope_type", "default")
            inner.only("type", "default")
            found["rotary_base"][name] = inner.take("rope_theta", float, None)
            found["rotary_fraction"][name] = inner.take("partial_rotary_factor", float, None)
            inner.done()
        default = {"rotary_base": 10_000.0, "rotary_fraction": 0.25 if fraction else 1.0}
        for ours, given in found.items():
            values = {value for value in given.values() if value is not None}
            if len(values) > 1 or ours == "rotary_fraction" and not fraction and values - {1.0}:
                raise InputError(f"{self.where}: {given} cannot be expressed here: give one value, or none")
            default[ours] = values.pop() if values else default[ours]
        return default

    def done(self) -> None:
        """Raises InputError for a key that nothing has asked for and that may change numbers."""
        off = lambda value: value is None or value is False or value in ({}, [])
        for name, value in self.data.items():
            if name not in _NEUTRAL and not name.startswith("_") and not off(value):
                raise InputError(
                    f"{self.where}: {name} = {str(value)[:60]} is not known here: if it changes no number, remove it"
                )


def read_config(data: dict[str, Any], where: str) -> tuple[str, ModelConfig, list[str]]:
    """(model_type, configuration, what was changed in words) of a config.json. Raises InputError."""
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in _READ:
        raise InputError(f"{where}: model_type = {kind!r} is not known here, only {', '.join(_READ)}")
    keys = Keys(data, where)
    config = canonical(ModelConfig(**_READ[kind](keys), scan_layers=True))
    keys.done()
    try:
        validate(Run(config))
    except InputError as e:
        raise InputError(f"{where}: {e}") from None
    if config.positions == "rotary" and int(config.head_dim * config.rotary_fraction) % 2:
        raise InputError(
            f"{where}: rotary positions on {config.rotary_fraction} of {config.head_dim} dimensions, an odd number"
        )
    return kind, config, keys.notes


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of the family that has these switches. Raises InputError where none has, naming what differs from
    the nearest."""
    wanted = dataclasses.asdict(canonical(dataclasses.replace(config, scan_layers=True, compute_dtype="float32")))
    nearest: dict[str, Any] | None = None
    for write in _WRITE:
        data = write(config)
        given = canonical(ModelConfig(**_READ[data["model_type"]](Keys(data, "")), scan_layers=True))
        differs = {key: value for key, value in dataclasses.asdict(given).items() if value != wanted[key]}
        if not differs:
            read_config(data, "model")
            return data
        if nearest is None or len(differs) < len(nearest):
            nearest, kind = differs, data["model_type"]
    key = next(iter(nearest))
    raise InputError(
        f"model.{key} = {getattr(config, key)!r} cannot be written for transformers: of its families the nearest is "
        f"{kind}, which has {nearest[key]!r}; jaxsat.model.neox and llama make such as can"
    )


def canonical(config: ModelConfig) -> ModelConfig:
    """The same model with None for what is the default's own size, and what has no effect at its default."""
    c = config
    values: dict[str, Any] = {
        "kv_heads": None if c.kv_heads == c.heads else c.kv_heads,
        "ffn_width": None if c.ffn_width == 4 * c.width else c.ffn_width,
        "head_width": None if c.head_width and c.head_width * c.heads == c.width else c.head_width,
    }
    if c.positions == "learned":
        values |= {name: getattr(ModelConfig(), name) for name in ("rotary_fraction", "rotary_base")}
    return dataclasses.replace(c, **values)


def _common(keys: Keys, act: str, acts: dict[str, str], default: str, tied: bool, eps: float) -> dict[str, Any]:
    """What most families spell alike."""
    return {
        "vocab_size": keys.take("vocab_size", int),
        "width": keys.take("hidden_size", int),
        "depth": keys.take("num_hidden_layers", int),
        "heads": keys.take("num_attention_heads", int),
        "context": keys.take("max_position_embeddings", int),
        "activation": keys.choice(act, acts, default),
        "tied_head": keys.take("tie_word_embeddings", bool, tied),
        "norm_eps": eps,
    }


def _read_neox(keys: Keys) -> dict[str, Any]:
    keys.only("attention_bias", True)
    return {
        "norm": "layer",
        "bias": True,
        "ffn_width": keys.take("intermediate_size", int),
        "parallel_residual": keys.take("use_parallel_residual", bool, True),
        **keys.rotary("rotary_emb_base", "rotary_pct"),
        **_common(keys, "hidden_act", _PLAIN, "gelu", False, keys.take("layer_norm_eps", float, 1e-5)),
    }


def _read_gpt2(keys: Keys) -> dict[str, Any]:
    keys.only("scale_attn_weights", True)
    keys.only("scale_attn_by_inverse_layer_idx", False)
    keys.only("add_cross_attention", False)
    return {
        "norm": "layer",
        "bias": True,
        "positions": "learned",
        "vocab_size": keys.take("vocab_size", int),
        "width": keys.take("n_embd", int),
        "depth": keys.take("n_layer", int),
        "heads": keys.take("n_head", int),
        "context": keys.take("n_positions", int),
        "ffn_width": keys.take("n_inner", int, None),
        "activation": keys.choice("activation_function", _PLAIN, "gelu_new"),
        "tied_head": keys.take("tie_word_embeddings", bool, True),
        "norm_eps": keys.take("layer_norm_epsilon", float, 1e-5),
    }


def _read_opt(keys: Keys) -> dict[str, Any]:
    common = _common(keys, "activation_function", _PLAIN, "relu", True, 1e-5)
    keys.only("do_layer_norm_before", True)
    keys.only("_remove_final_layer_norm", False)
    keys.only("enable_bias", True)
    keys.only("layer_norm_elementwise_affine", True)
    keys.only("word_embed_proj_dim", common["width"], None)
    return {
        "norm": "layer",
        "bias": True,
        "positions": "learned",
        "ffn_width": keys.take("ffn_dim", int),
        **common,
    }


def _read_llama(keys: Keys, acts: dict[str, str] = _GATED, act: str = "silu", tied: bool = False) -> dict[str, Any]:
    keys.only("rope_interleaved", False)
    return {
        "ffn_width": keys.take("intermediate_size", int),
        "kv_heads": keys.take("num_key_value_heads", int, None),
        "head_width": keys.take("head_dim", int, None),
        **keys.rotary(),
        **_common(keys, "hidden_act", acts, act, tied, keys.take("rms_norm_eps", float, 1e-6)),
    }


def _read_llama_bias(keys: Keys) -> dict[str, Any]:
    attention, mlp = (keys.take(name, bool, False) for name in ("attention_bias", "mlp_bias"))
    if attention != mlp:
        raise InputError(
            f"{keys.where}: attention_bias = {attention} with mlp_bias = {mlp} cannot be expressed here, only both or "
            "none"
        )
    return _read_llama(keys) | {"bias": attention}


def _read_mistral(keys: Keys) -> dict[str, Any]:
    found = _read_llama(keys)
    window = keys.take("sliding_window", int, None)
    if window is not None and window < found["context"]:
        keys.notes.append(
            f"{keys.where}: sliding_window = {window}, context cut to it from {found['context']}: in longer texts its "
            "positions would see only part of what is before them"
        )
        found["context"] = window
    return found


def _read_gemma(keys: Keys) -> dict[str, Any]:
    keys.only("attention_bias", False)
    keys.only("use_bidirectional_attention", None, False)
    # "gelu" of the first files is meant as the tanh form, which transformers takes for it.
    acts = dict.fromkeys((*_TANH, "gelu"), "geglu")
    keys.only("hidden_activation", None, *acts)
    found = _read_llama(keys, acts, "gelu_pytorch_tanh", tied=True)
    return found | {"norm": "rms_unit_offset", "scaled_embedding": True}


_READ: dict[str, Callable[[Keys], dict[str, Any]]] = {
    "gpt_neox": _read_neox,
    "gpt2": _read_gpt2,
    "opt": _read_opt,
    "llama": _read_llama_bias,
    "mistral": _read_mistral,
    "gemma": _read_gemma,
}


def _shape(c: ModelConfig, model_type: str, architecture: str, act: str, acts: dict[str, str]) -> dict[str, Any]:
    spelt = next((theirs for theirs, ours in acts.items() if ours == c.activation), next(iter(acts)))
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "dtype": "float32",
        "torch_dtype": "float32",  # as older versions call it
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "max_position_embeddings": c.context,
        "tie_word_embeddings": c.tied_head,
        act: spelt,
    }


def _write_neox(c: ModelConfig) -> dict[str, Any]:
    return _shape(c, "gpt_neox", "GPTNeoXForCausalLM", "hidden_act", _PLAIN) | {
        "intermediate_size": c.ffn_width or 4 * c.width,
        "layer_norm_eps": c.norm_eps,
        "use_parallel_residual": c.parallel_residual,
        "rotary_pct": c.rotary_fraction,
        "rotary_emb_base": c.rotary_base,
    }


def _write_gpt2(c: ModelConfig) -> dict[str, Any]:
    shape = _shape(c, "gpt2", "GPT2LMHeadModel", "activation_function", _PLAIN)
    renamed = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
               "max_position_embeddings": "n_positions"}  # fmt: skip
    shape = {renamed.get(key, key): value for key, value in shape.items()}
    return shape | {"n_inner": c.ffn_width or 4 * c.width, "layer_norm_epsilon": c.norm_eps}


def _write_opt(c: ModelConfig) -> dict[str, Any]:
    shape = _shape(c, "opt", "OPTForCausalLM", "activation_function", {"relu": "relu"})  # else it is GPT-2's kind
    return shape | {"ffn_dim": c.ffn_width or 4 * c.width, "word_embed_proj_dim": c.width}


def _write_llama(c: ModelConfig, name: str = "Llama", acts: dict[str, str] = _GATED) -> dict[str, Any]:
    return _shape(c, name.lower(), f"{name}ForCausalLM", "hidden_act", acts) | {
        "intermediate_size": c.ffn_width or 4 * c.width,
        "num_key_value_heads": c.kv_heads or c.heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rotary_base,
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
    }


def _write_mistral(c: ModelConfig) -> dict[str, Any]:
    """Llama's kind, where its configuration wants heads that divide the width."""
    data = _write_llama(c, "Mistral") | {"sliding_window": None}
    return {key: value for key, value in data.items() if key not in ("attention_bias", "mlp_bias")}


def _write_gemma(c: ModelConfig) -> dict[str, Any]:
    data = _write_llama(c, "Gemma", dict.fromkeys(_TANH, "geglu")) | {"attention_bias": False}
    return {key: value for key, value in data.items() if key != "mlp_bias"}


_WRITE = (
    _write_neox,
    _write_opt,
    _write_gpt2,
    lambda c: _write_mistral(c) if c.width % c.heads else _write_llama(c),
    _write_gemma,
)
