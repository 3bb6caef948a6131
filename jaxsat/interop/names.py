"""Which tensors of a family hold which of our parameters, and how; and the step that a name says.

A module of ours is written as its path in `params`; `{}` in their name stands for the layer.
"""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np

from jaxsat import model
from jaxsat.config import ModelConfig

Path = tuple[str, ...]

_QKV = "blocks.attention.query blocks.attention.key blocks.attention.value"
_LLAMA = {
    "model.embed_tokens": "embedding",
    "lm_head": "head",
    "model.norm": "final_norm",
    "model.layers.{}.input_layernorm": "blocks.norm1",
    "model.layers.{}.post_attention_layernorm": "blocks.norm2",
    "model.layers.{}.self_attn.q_proj": "blocks.attention.query",
    "model.layers.{}.self_attn.k_proj": "blocks.attention.key",
    "model.layers.{}.self_attn.v_proj": "blocks.attention.value",
    "model.layers.{}.self_attn.o_proj": "blocks.attention.out",
    "model.layers.{}.mlp.gate_proj": "blocks.feed_forward.gate",
    "model.layers.{}.mlp.up_proj": "blocks.feed_forward.up",
    "model.layers.{}.mlp.down_proj": "blocks.feed_forward.down",
}
_MODULES = {
    "gpt_neox": {
        "gpt_neox.embed_in": "embedding",
        "embed_out": "head",
        "gpt_neox.final_layer_norm": "final_norm",
        "gpt_neox.layers.{}.input_layernorm": "blocks.norm1",
        "gpt_neox.layers.{}.post_attention_layernorm": "blocks.norm2",
        "gpt_neox.layers.{}.attention.query_key_value": _QKV,
        "gpt_neox.layers.{}.attention.dense": "blocks.attention.out",
        "gpt_neox.layers.{}.mlp.dense_h_to_4h": "blocks.feed_forward.up",
        "gpt_neox.layers.{}.mlp.dense_4h_to_h": "blocks.feed_forward.down",
    },
    "gpt2": {
        "transformer.wte": "embedding",
        "transformer.wpe": "positions",
        "lm_head": "head",
        "transformer.ln_f": "final_norm",
        "transformer.h.{}.ln_1": "blocks.norm1",
        "transformer.h.{}.ln_2": "blocks.norm2",
        "transformer.h.{}.attn.c_attn": _QKV,
        "transformer.h.{}.attn.c_proj": "blocks.attention.out",
        "transformer.h.{}.mlp.c_fc": "blocks.feed_forward.up",
        "transformer.h.{}.mlp.c_proj": "blocks.feed_forward.down",
    },
    "opt": {
        "model.decoder.embed_tokens": "embedding",
        "model.decoder.embed_positions": "positions",
        "lm_head": "head",
        "model.decoder.final_layer_norm": "final_norm",
        "model.decoder.layers.{}.self_attn_layer_norm": "blocks.norm1",
        "model.decoder.layers.{}.final_layer_norm": "blocks.norm2",
        "model.decoder.layers.{}.self_attn.q_proj": "blocks.attention.query",
        "model.decoder.layers.{}.self_attn.k_proj": "blocks.attention.key",
        "model.decoder.layers.{}.self_attn.v_proj": "blocks.attention.value",
        "model.decoder.layers.{}.self_attn.out_proj": "blocks.attention.out",
        "model.decoder.layers.{}.fc1": "blocks.feed_forward.up",
        "model.decoder.layers.{}.fc2": "blocks.feed_forward.down",
    },
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
}
# Masks and frequencies that some versions of transformers wrote beside the parameters.
BUFFERS = re.compile(r"(\.(attention|attn)\.(bias|masked_bias)|rotary_emb\.inv_freq)$")


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs, or, with `{}` in its name, one a layer. Of our parameters (a layer of) those at `paths`:
    `read` makes them of it, as views where they are not cut out of it, and `write` makes it of them."""

    name: str
    shape: tuple[int, ...]
    paths: tuple[Path, ...]
    read: Callable[[np.ndarray], list[np.ndarray]]
    write: Callable[[list[np.ndarray]], np.ndarray]

    def names(self, config: ModelConfig) -> list[str]:
        return [self.name.format(i) for i in range(config.depth)] if "{}" in self.name else [self.name]

    def spellings(self, name: str) -> list[str]:
        """Those in use: a model without its head is saved without the first word; NeoX's head has two names."""
        first, _, rest = name.partition(".")
        return [name, rest] if first in ("gpt_neox", "transformer", "model") else [name, f"lm_head.{rest}"]


@functools.cache
def shapes(config: ModelConfig) -> model.Params:
    """Our parameters, as ShapeDtypeStructs."""
    return jax.eval_shape(lambda: model.init(config, jax.random.key(0)))


def entries(kind: str, config: ModelConfig) -> Iterator[Entry]:
    """Everything that a model of this configuration has, the tables first."""
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes(config))
    ours = {tuple(key.key for key in path): leaf.shape for path, leaf in flat}
    for theirs, modules in _MODULES[kind].items():
        paths = [tuple(module.split(".")) for module in modules.split()]
        if paths[0] in ours:
            yield _entry(kind, config, f"{theirs}.weight", paths, ours)
        for leaf, suffix in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
            if (*paths[0], leaf) in ours:
                yield _entry(kind, config, f"{theirs}.{suffix}", [(*path, leaf) for path in paths], ours)


def _entry(kind: str, c: ModelConfig, name: str, paths: list[Path], ours: dict[Path, tuple[int, ...]]) -> Entry:
    shape = ours[paths[0]][1:] if "{}" in name else ours[paths[0]]
    # GPT-2's matrices lie as ours do, all others are turned.
    turned = paths[0][-1] == "kernel" and (kind != "gpt2" or paths[0][0] == "head")
    if len(paths) > 1 and kind == "gpt2":
        read, write = lambda x: np.split(x, 3, axis=-1), lambda xs: np.concatenate(xs, axis=-1)
        shape = (*shape[:-1], 3 * shape[-1])
    elif len(paths) > 1:  # of each head in turn query, key and value
        by_head = lambda x: np.moveaxis(x.reshape(c.heads, 3, c.head_dim, *x.shape[1:]), 1, 0)
        read = lambda x: [part.reshape(-1, *x.shape[1:]).T for part in by_head(x)]
        write = lambda xs: np.stack([x.T.reshape(c.heads, -1, *x.shape[:-1]) for x in xs], 1).reshape(
            -1, *xs[0].shape[:-1]
        )
        shape = (3 * shape[-1], *shape[:-1])
    elif kind == "opt" and paths[0] == ("positions",):  # the first position is the third row
        read, write = lambda x: [x[2:]], lambda xs: np.pad(xs[0], ((2, 0), (0, 0)))
        shape = (shape[0] + 2, shape[1])
    elif turned:
        read, write, shape = lambda x: [x.T], lambda xs: xs[0].T, shape[::-1]
    else:
        read, write = lambda x: [x], lambda xs: xs[0]
    return Entry(name, shape, tuple(paths), read, write)


def step_of(name: str) -> int | None:
    """The step that the last part of a folder's name, or the revision of the hub's, says: step1000, step-1000-tokens4B,
    checkpoint-1000, global_step1000, iter_0001000, 1000. None where it says none, or several."""
    last = name.rpartition("@")[2] if name.startswith("hf:") else name.rstrip("/").rpartition("/")[2]
    if last.isascii() and last.isdigit():
        return int(last)
    for words in ("steps?", "checkpoint|ckpt|iter|iteration"):
        if found := re.findall(rf"(?:^|[^a-z])(?:{words})[-_=]?(\d+)(?![\d.]*[a-z])(?!\.?\d)", last.lower()):
            return int(found[0]) if len({*map(int, found)}) == 1 else None
    return None
