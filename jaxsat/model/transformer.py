"""One decoder-only transformer, in `flax.nnx`; the switches of `ModelConfig` make it GPT-NeoX, Llama, GPT-2,
OPT or Gemma.

Training and measuring use it as pure functions of `params`, a plain dict of float32 arrays: `init` draws them,
`hidden` runs the layers; losses and logits of their output are made by `jaxsat.model.heads`. Layers are stacked on a
leading axis L in `params`, and scanned or unrolled by `ModelConfig.scan_layers`; the numbers are the same.

Shapes: B rows, T positions, D width, H attention heads, E dimensions a head, F feed-forward width, V vocabulary,
R head rank, L depth.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxsat.config import ModelConfig
from jaxsat.model import heads
from jaxsat.model.attention import attend_cached, attention
from jaxsat.model.heads import Head, Params, small
from jaxsat.model.marked import ends, places
from jaxsat.model.sharding import constrain, look_up, platform


@jax.custom_vjp
def _narrowing(x_NxI: jax.Array, w_IxO: jax.Array) -> jax.Array:
    """x w for I > O, on a CPU: its gradient of w is the product whose first factor is the narrower, transposed. XLA
    (jax 0.10.2, 2 cores) turns the wider: 1.4 x slower at I=512, 2.3 x at I=64, 2.7 x at I=32."""
    return x_NxI @ w_IxO


def _narrowing_backward(saved: tuple[jax.Array, jax.Array], dy_NxO: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_NxI, w_IxO = saved
    dw_OxI = jax.lax.dot_general(dy_NxO, x_NxI, (((0,), (0,)), ((), ())))
    return dy_NxO @ w_IxO.T, jax.lax.optimization_barrier(dw_OxI).T  # without the barrier XLA turns it around


_narrowing.defvjp(lambda x_NxI, w_IxO: (x_NxI @ w_IxO, (x_NxI, w_IxO)), _narrowing_backward)


def _linear(config: ModelConfig, n_in: int, n_out: int, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    narrowing = n_in > n_out and platform() == "cpu"
    return nnx.Linear(
        n_in,
        n_out,
        use_bias=config.bias,
        kernel_init=nnx.initializers.normal(std),
        dtype=jnp.dtype(config.compute_dtype),
        dot_general=(lambda x, w, *_, **__: _narrowing(x, w)) if narrowing else jax.lax.dot_general,
        rngs=rngs,
    )


class UnitOffsetRMSNorm(nnx.Module):
    """RMSNorm whose gain is 1 + w, so that weights pass between us and Gemma's files bit by bit."""

    def __init__(self, config: ModelConfig):
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.zeros(config.width))

    def __call__(self, x_NxD: jax.Array) -> jax.Array:
        rms_Nx1 = jnp.sqrt((x_NxD**2).mean(-1, keepdims=True) + self.eps)
        return x_NxD / rms_Nx1 * (1 + self.scale[None])


def _norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
    if config.norm == "rms_unit_offset":
        return UnitOffsetRMSNorm(config)
    if config.norm == "rms":
        return nnx.RMSNorm(config.width, epsilon=config.norm_eps, rngs=rngs)
    return nnx.LayerNorm(config.width, epsilon=config.norm_eps, use_bias=config.bias, rngs=rngs)


def _in_float32(norm: nnx.Module, x_NxD: jax.Array) -> jax.Array:
    """Whatever the compute type: bf16 sums of squares lose the small widths."""
    return norm(x_NxD.astype(jnp.float32)).astype(x_NxD.dtype)


def rotate(x_BxTxHxE: jax.Array, fraction: float, base: float, positions_BxT: jax.Array | None = None) -> jax.Array:
    """Rotary positions (Su et al. 2021) on the first `fraction` of each head, halves rotated as in GPT-NeoX.

    positions_BxT: of each; None: 0, 1, ... in every row."""
    n_rotated = int(x_BxTxHxE.shape[-1] * fraction) // 2 * 2
    frequency = base ** (-jnp.arange(0, n_rotated, 2, dtype=jnp.float32) / n_rotated)
    if positions_BxT is None:
        positions_BxT = jnp.arange(x_BxTxHxE.shape[1])[None]
    angle_BxTxE = positions_BxT.astype(jnp.float32)[..., None] * frequency[None, None]
    cos, sin = (f(angle_BxTxE)[:, :, None].astype(x_BxTxHxE.dtype) for f in (jnp.cos, jnp.sin))
    a, b, rest = jnp.split(x_BxTxHxE, [n_rotated // 2, n_rotated], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


class Attention(nnx.Module):
    """Causal self-attention with `kv_heads` shared key-value heads."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        d, e = config.width, config.head_dim
        he, kv = config.heads * e, (config.kv_heads or config.heads) * e
        std = small(d)
        self.query = _linear(config, d, he, std, rngs)
        self.key = _linear(config, d, kv, std, rngs)
        self.value = _linear(config, d, kv, std, rngs)
        self.out = _linear(config, he, d, std / math.sqrt(2 * config.depth), rngs)

    def __call__(
        self, x_NxD: jax.Array, n_rows: int, positions_BxT: jax.Array | None = None, attend: Callable = attention
    ) -> jax.Array:
        c = self.config
        split = lambda y_NxD: y_NxD.reshape(n_rows, -1, y_NxD.shape[1] // c.head_dim, c.head_dim)
        q, k, v = (constrain(split(f(x_NxD)), "data", None, "model") for f in (self.query, self.key, self.value))
        if c.positions == "rotary":
            q, k = (rotate(a, c.rotary_fraction, c.rotary_base, positions_BxT) for a in (q, k))
        return self.out(attend(q, k, v).reshape(len(x_NxD), -1))


class FeedForward(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        d, f = config.width, config.ffn_width or 4 * config.width
        self.up = _linear(config, d, f, small(d), rngs)
        if config.gated:
            self.gate = _linear(config, d, f, small(d), rngs)
        self.down = _linear(config, f, d, small(d) / math.sqrt(2 * config.depth), rngs)

    def __call__(self, x_NxD: jax.Array) -> jax.Array:
        h_NxF = constrain(self.up(x_NxD), "data", "model")
        match self.config.activation:
            case "swiglu":
                h_NxF = jax.nn.silu(self.gate(x_NxD)) * h_NxF
            case "geglu":
                h_NxF = jax.nn.gelu(self.gate(x_NxD), approximate=True) * h_NxF
            case "relu":
                h_NxF = jax.nn.relu(h_NxF)
            case "gelu_tanh":
                h_NxF = jax.nn.gelu(h_NxF, approximate=True)
            case "gelu":
                # By erf, as in torch; jax.nn.gelu's erfc costs 1.5-1.8 x in the whole feed-forward layer on a CPU.
                h_NxF = 0.5 * h_NxF * (1 + jax.lax.erf(h_NxF * math.sqrt(0.5)))
        return self.down(h_NxF)


class Block(nnx.Module):
    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.parallel = config.parallel_residual
        self.norm1, self.norm2 = _norm(config, rngs), _norm(config, rngs)
        self.attention, self.feed_forward = Attention(config, rngs), FeedForward(config, rngs)

    def __call__(self, x_NxD: jax.Array, n_rows: int, *how: Any) -> jax.Array:
        mixed = x_NxD + self.attention(_in_float32(self.norm1, x_NxD), n_rows, *how)
        source = x_NxD if self.parallel else constrain(mixed, "data")
        return constrain(mixed + self.feed_forward(_in_float32(self.norm2, source)), "data")


class Transformer(nnx.Module):
    """Embedding, stacked blocks, final norm. The head is applied by the loss, which never holds B x T x V."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rank: int | jax.Array):
        self.config = config
        normal = nnx.initializers.normal(small(config.width))
        self.embedding = nnx.Param(normal(rngs.params(), (config.vocab_size, config.width)))
        if config.positions == "learned":
            self.positions = nnx.Param(normal(rngs.params(), (config.context, config.width)))
        self.blocks = nnx.vmap(lambda rngs: Block(config, rngs))(rngs.split(config.depth))
        self.final_norm = _norm(config, rngs)
        self.head = Head(config, rngs, rank)

    def embed(self, tokens_BxT: jax.Array, positions_BxT: jax.Array | None = None) -> jax.Array:
        """x_NxD. Rows and positions as one axis N: gradients of the matrices are then plain products of two matrices,
        which makes the feed-forward layer 1.25-1.33 x faster on a CPU than products over two axes."""
        c, (n_rows, n_positions) = self.config, tokens_BxT.shape
        # In float32, and so the sum of its gradients: a common token has thousands of addends, which bf16 swallows.
        x = look_up(self.embedding[...], tokens_BxT.reshape(-1)).astype(c.compute_dtype)
        if c.scaled_embedding:
            x *= math.sqrt(c.width)
        if c.positions == "learned" and positions_BxT is None:
            x += jnp.tile(self.positions[:n_positions], (n_rows, 1)).astype(c.compute_dtype)
        elif c.positions == "learned":
            x += self.positions[positions_BxT.reshape(-1)].astype(c.compute_dtype)
        return x

    def __call__(
        self,
        tokens_BxT: jax.Array,
        remat: str = "none",
        segment_BxT: jax.Array | None = None,
        depth_BxT: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        c, (n_rows, n_positions) = self.config, tokens_BxT.shape
        positions_BxT, attend = None, attention
        if segment_BxT is not None:
            positions_BxT, attend = places(segment_BxT), functools.partial(attention, segment_BxT=segment_BxT)
        if depth_BxT is not None:
            positions_BxT, attend = depth_BxT, functools.partial(attention, end_BxT=ends(depth_BxT))
        x = self.embed(tokens_BxT, positions_BxT)
        graphdef, blocks = nnx.split(self.blocks)

        def layer(x_NxD, params):
            y_NxD = nnx.merge(graphdef, params)(x_NxD, n_rows, positions_BxT, attend)
            return y_NxD, y_NxD

        if remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
            layer = jax.checkpoint(layer, prevent_cse=not c.scan_layers, policy=policy)
        last, after_LxNxD = jax.lax.scan(layer, x, blocks, unroll=1 if c.scan_layers else c.depth)
        h_BxTxD = _in_float32(self.final_norm, last).reshape(n_rows, n_positions, c.width)
        return h_BxTxD, jnp.concatenate([x[None], after_LxNxD]).reshape(-1, *h_BxTxD.shape)

    def layer_groups(self) -> list[nnx.State]:
        """The parameters of the blocks, each layer by itself, or where they are scanned all in one."""
        _, blocks = nnx.split(self.blocks)
        if self.config.scan_layers:
            return [blocks]
        return [jax.tree.map(operator.itemgetter(i), blocks) for i in range(self.config.depth)]

    def extend(
        self, groups: list[nnx.State], tokens_BxC: jax.Array, cache: "Cache", start: jax.Array
    ) -> tuple[jax.Array, "Cache"]:
        c, (n_rows, n_new) = self.config, tokens_BxC.shape
        column_C, first_Bx1 = start + jnp.arange(n_new), cache.first_B[:, None]
        positions_BxC = jnp.clip(column_C[None] - first_Bx1, 0, c.context - 1)
        column_S = jnp.arange(cache.k[0].shape[-2])
        before_CxS = column_S[None] <= column_C[:, None]
        # What fills a row up before its first token sees itself alone, so that no softmax is over nothing.
        own_CxS, text_BxS = column_S[None] == column_C[:, None], column_S[None] >= first_Bx1
        seen_BxCxS = before_CxS[None] & text_BxS[:, None] | own_CxS[None]
        graphdef, _ = nnx.split(self.blocks)

        def block(carry, params, at):
            x_NxD, k, v = carry

            def attend(q_BxCxHxE, k_BxCxGxE, v_BxCxGxE):
                nonlocal k, v
                k, v = (
                    jax.lax.dynamic_update_slice(
                        cached, new_BxCxGxE.swapaxes(1, 2)[(None,) * len(at)], (*at, 0, 0, start, 0)
                    )
                    for cached, new_BxCxGxE in ((k, k_BxCxGxE), (v, v_BxCxGxE))
                )
                return attend_cached(q_BxCxHxE, k[at], v[at], seen_BxCxS)

            return nnx.merge(graphdef, params)(x_NxD, n_rows, positions_BxC, attend), k, v

        x_NxD, k, v = self.embed(tokens_BxC, positions_BxC), list(cache.k), list(cache.v)
        for i, group in enumerate(groups):
            carry = x_NxD, k[i], v[i]
            if c.scan_layers:
                step = lambda carry, layer: (block(carry, layer[0], (layer[1],)), None)
                (x_NxD, k[i], v[i]), _ = jax.lax.scan(step, carry, (group, jnp.arange(c.depth)))
            else:
                x_NxD, k[i], v[i] = block(carry, group, ())
        h_BxCxD = _in_float32(self.final_norm, x_NxD).reshape(n_rows, n_new, c.width)
        return h_BxCxD, Cache(tuple(k), tuple(v), cache.first_B)


class Cache(NamedTuple):
    """Keys and values of the tokens so far, of each group of layers (see `reader`). Column s is one place of all rows;
    the tokens of a row begin in column first_B and what lies before is never seen, so that rows of different lengths
    end in the same column."""

    k: tuple[jax.Array, ...]  # BxGxSxE, or where layers are scanned LxBxGxSxE of all
    v: tuple[jax.Array, ...]
    first_B: jax.Array


def empty_cache(config: ModelConfig, first_B: jax.Array, n_columns: int) -> Cache:
    shape = (len(first_B), config.kv_heads or config.heads, n_columns, config.head_dim)
    layers, n_groups = ((config.depth,), 1) if config.scan_layers else ((), config.depth)
    nothing = (jnp.zeros(layers + shape, config.compute_dtype),) * n_groups
    return Cache(nothing, nothing, first_B)


def reader(config: ModelConfig, params: Params) -> Callable[[jax.Array, Cache, jax.Array], tuple[jax.Array, Cache]]:
    """read(tokens_BxC, cache, start) -> (h_BxCxD after the final norm, the cache with these tokens in its columns from
    `start`, which may be traced, on): of each token what `hidden` says of it after those before it in its row.

    To be made once, outside the loop over tokens, as it sets the layers apart: where each is cut out of the stack again
    for every token, one sequence takes 1.7 x the time (10M parameters, one core). Caches of layers apart are read where
    they lie, and one of all layers is copied: 1.5 x for 64 sequences.
    """
    graphdef, state = _abstract(config)
    nnx.replace_by_pure_dict(state, params)
    transformer = nnx.merge(graphdef, state)
    return functools.partial(transformer.extend, transformer.layer_groups())


def init(config: ModelConfig, key: jax.Array, rank: int | jax.Array | None = None) -> Params:
    """Draws the parameters. `rank` (may be traced) is at most config.head_rank, the stored width of a factored head."""
    rank = config.rank if rank is None else rank
    return nnx.to_pure_dict(nnx.state(Transformer(config, nnx.Rngs(key), rank), nnx.Param))


def hidden(
    config: ModelConfig,
    params: Params,
    tokens_BxT: jax.Array,
    remat: str = "none",
    segment_BxT: jax.Array | None = None,
    depth_BxT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(h_BxTxD after the final norm, residual stream x_(L+1)xBxTxD: the embedding's output, then after each block).

    `remat`: what a backward pass computes again: "none"; "dots", all but the products with weights; "full", each block.
    segment_BxT: ascending numbers in a row, of which each stands as if it were alone, its first position 0.
    depth_BxT: instead, of texts that share their beginnings: trees in depth-first order, roots at depth 0. A token
    stands after its ancestors alone, at the position of its depth; so rows may be longer than the context.
    """
    graphdef, state = _abstract(config)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graphdef, state)(tokens_BxT, remat, segment_BxT, depth_BxT)


def logits(config: ModelConfig, params: Params, tokens_BxT: jax.Array) -> jax.Array:
    """logits_BxTxV in float32, whole: for scoring short texts and for tests, not for training."""
    return heads.logits(config, params, hidden(config, params, tokens_BxT)[0])


def _abstract(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0), config.rank)))
