"""Text out of a model: a key-value cache, rows of different lengths at once, stopped at the end of text."""

import functools
import math
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jaxsat import model
from jaxsat.config import InputError, ModelConfig
from jaxsat.corpus.tokenizer import begin_ids, encode, end_id
from jaxsat.evaluate.likelihood import check_ids, padded_length
from jaxsat.evaluate.scores import exact

MAX_ROWS = 64  # at once
CACHE_BYTES = 2**31  # of the cache, at most, where a row alone takes less
CHUNK = 128  # tokens of the prompts that are read at once: scores are rows x heads x these x all


def generate(
    config: ModelConfig,
    params: model.Params,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    n_tokens: int = 64,
    *,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[str]:
    """What follows each prompt, up to the end of text, `n_tokens`, or the end of the model's context.

    A prompt is encoded as the tokenizer does it by itself; an empty one is its `begin_ids`. temperature, top_k, top_p,
    seed: see `generate_tokens`. Raises InputError.
    """
    rows = [e.ids or begin_ids(tokenizer) for e in encode(tokenizer, prompts, special=True)]
    settings = dict(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    end = [] if (token_id := end_id(tokenizer)) is None else [token_id]
    found = generate_tokens(config, params, rows, n_tokens, ends=end, **settings)
    decode = functools.partial(tokenizer.decode, skip_special_tokens=False)
    return [decode(row + new[: -1 if new[-1:] == end else None])[len(decode(row)) :] for row, new in zip(rows, found)]


def generate_tokens(
    config: ModelConfig,
    params: model.Params,
    prompts: Sequence[Sequence[int]],
    n_tokens: int | Sequence[int],
    *,
    ends: Collection[int] = (),
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """The ids that follow each prompt: `n_tokens` (of all, or of each), or fewer where one of `ends` comes, which is
    then the last, or the model's context ends.

    Greedy at temperature 0, which is the default without top_k and top_p (else 1). Drawn, a token is one of the `top_k`
    likeliest and, of these, of the fewest that together have probability `top_p`; a row's numbers come from `seed` and
    its place among the prompts, whatever runs beside it. Raises InputError.
    """
    limits = _check(config, prompts, n_tokens, temperature, top_k, top_p, seed)
    if temperature is None:
        temperature = 0.0 if top_k is None and top_p is None else 1.0
    sampling = (
        jnp.float32(temperature),
        jnp.int32(min(top_k or config.vocab_size, config.vocab_size)),
        jnp.float32(top_p or 1.0),
    )
    kind = "greedy" if temperature == 0 else "all" if top_k is None and top_p is None else "top"
    key, ends_V = jax.random.key(seed), np.isin(np.arange(config.vocab_size), list(ends))
    found: list[list[int]] = [[] for _ in prompts]
    for block in _blocks(config, prompts, limits):
        size, width = 1 << (len(block) - 1).bit_length(), _width(max(len(prompts[n]) for n in block))
        prompt_BxP, first_B = np.zeros((size, width), np.int32), np.full(size, width - 1, np.int32)
        limit_B, row_B = np.zeros(size, np.int32), np.zeros(size, np.int32)
        for b, n in enumerate(block):
            first_B[b], limit_B[b], row_B[b] = width - len(prompts[n]), limits[n], n
            prompt_BxP[b, first_B[b] :] = prompts[n]
        n_new = padded_length(int(limit_B.max()))
        rows = (prompt_BxP, first_B, limit_B, row_B)
        tokens_BxN = np.asarray(_generate(config, n_new, kind, params, *rows, ends_V, key, sampling))
        for b, n in enumerate(block):
            (at,) = np.nonzero(ends_V[tokens_BxN[b, : limits[n]]])
            found[n] = tokens_BxN[b, : at[0] + 1 if len(at) else limits[n]].tolist()
    return found


def written(config: ModelConfig, params: model.Params, tokens_BxP: jax.Array, n_new: int, key: jax.Array) -> jax.Array:
    """tokens_BxN that the model writes after these, drawn at temperature 1: to be called inside a traced function, with
    a length that its context has room for."""
    n, ones = len(tokens_BxP), jnp.ones((), jnp.float32)
    first_B, limit_B, row_B = jnp.zeros(n, jnp.int32), jnp.full(n, n_new), jnp.arange(n)
    never_V = jnp.zeros(config.vocab_size, bool)
    sampling = ones, jnp.int32(config.vocab_size), ones
    return _generate(config, n_new, "all", params, tokens_BxP, first_B, limit_B, row_B, never_V, key, sampling)


def tokens_with(tokenizer: Tokenizer, texts: Collection[str]) -> list[int]:
    """The ids of the tokens that hold one of these, such as a line break: where it ends a text, so do they."""
    decoded = ((i, tokenizer.decode([i], skip_special_tokens=False)) for i in tokenizer.get_vocab().values())
    return [i for i, token in decoded if any(text in token for text in texts)]


@functools.partial(jax.jit, static_argnames=("config", "n_new", "kind"))
@exact()
def _generate(
    config: ModelConfig,
    n_new: int,
    kind: str,
    params: model.Params,
    prompt_BxP: jax.Array,
    first_B: jax.Array,
    limit_B: jax.Array,
    row_B: jax.Array,
    ends_V: jax.Array,
    key: jax.Array,
    sampling: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:
    """tokens_BxN of prompts that begin in column first_B and end in the last one; of a row what follows its end or
    limit is anything."""
    (n_rows, width), extend = prompt_BxP.shape, model.reader(config, params)

    def read(cache: model.Cache, chunk: tuple[jax.Array, jax.Array]) -> tuple[model.Cache, jax.Array]:
        start, tokens_BxC = chunk
        h_BxCxD, cache = extend(tokens_BxC, cache, start)
        return cache, h_BxCxD[:, -1:]

    def pick(t: jax.Array, h_Bx1xD: jax.Array) -> jax.Array:
        logits_BxV = model.heads.logits(config, params, h_Bx1xD)[:, 0]
        if kind == "greedy":
            return logits_BxV.argmax(axis=1).astype(jnp.int32)
        key_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, row), t))(row_B)
        return jax.vmap(functools.partial(_draw, kind == "top", *sampling))(key_B, logits_BxV)

    def step(state: tuple) -> tuple:
        t, token_B, cache, tokens_BxN, done_B = state
        h_Bx1xD, cache = extend(token_B[:, None], cache, width + t - 1)
        token_B = pick(t, h_Bx1xD)
        tokens_BxN = jax.lax.dynamic_update_slice(tokens_BxN, token_B[:, None], (0, t))
        return t + 1, token_B, cache, tokens_BxN, done_B | ends_V[token_B] | (t + 1 >= limit_B)

    chunk = min(width, CHUNK)
    chunks = prompt_BxP.reshape(n_rows, -1, chunk).swapaxes(0, 1)
    cache = model.empty_cache(config, first_B, width + n_new - 1)
    cache, last_MxBx1xD = jax.lax.scan(read, cache, (jnp.arange(0, width, chunk), chunks))
    token_B = pick(jnp.int32(0), last_MxBx1xD[-1])
    tokens_BxN = jnp.zeros((n_rows, n_new), jnp.int32).at[:, 0].set(token_B)
    # No scan, which would run on when all rows have ended.
    state = jnp.int32(1), token_B, cache, tokens_BxN, ends_V[token_B] | (limit_B <= 1)
    return jax.lax.while_loop(lambda state: ~state[-1].all(), step, state)[3]


def _draw(
    top: bool, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array, key: jax.Array, logits_V: jax.Array
) -> jax.Array:
    """A token of softmax(logits / temperature), of the likeliest alone where `top`."""
    logits_V = (logits_V - logits_V.max()) / temperature
    noise_V = jax.random.gumbel(key, logits_V.shape)
    if not top:
        return (logits_V + noise_V).argmax().astype(jnp.int32)
    order_V = jnp.argsort(-logits_V)
    logits_V = jnp.where(jnp.arange(len(order_V)) < top_k, logits_V[order_V], -jnp.inf)
    p_V = jax.nn.softmax(logits_V)
    kept_V = jnp.cumsum(p_V) - p_V < top_p  # what the likelier ones do not reach alone
    return order_V[(jnp.where(kept_V, logits_V, -jnp.inf) + noise_V).argmax()].astype(jnp.int32)


def _blocks(config: ModelConfig, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> list[list[int]]:
    """Places of the prompts that run together, of like length."""
    c = config
    a_column = 2 * c.depth * (c.kv_heads or c.heads) * c.head_dim * jnp.dtype(c.compute_dtype).itemsize
    a_row = (_width(max(map(len, prompts))) + padded_length(max(limits))) * a_column
    size = min(MAX_ROWS, max(1, CACHE_BYTES // a_row))
    by_length = sorted(range(len(prompts)), key=lambda n: (len(prompts[n]), limits[n]))
    return [by_length[i : i + size] for i in range(0, len(by_length), size)]


def _width(n: int) -> int:
    """Columns of the longest prompt: whole chunks."""
    return padded_length(n) if n <= CHUNK else -(-n // CHUNK) * CHUNK


def _check(
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    n_tokens: int | Sequence[int],
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> list[int]:
    """How many tokens may follow each prompt. Raises InputError."""
    if temperature is not None and not 0 <= temperature < math.inf:
        raise InputError(f"temperature = {temperature}: must be a finite number, at least 0")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed = {seed}: must be from 0 to 2^32 - 1")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k = {top_k}: must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p = {top_p}: must be above 0, and 1 at most")
    if not len(prompts):
        raise InputError("no prompts: give one at least")
    wanted = [n_tokens] * len(prompts) if isinstance(n_tokens, int) else list(n_tokens)
    if len(wanted) != len(prompts) or min(wanted) < 1:
        raise InputError(f"n_tokens = {n_tokens}: must be at least 1, one for all prompts or one for each")
    for n, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= config.context:
            raise InputError(f"prompt {n} has {len(prompt)} tokens: must be 1 to model.context = {config.context}")
        check_ids(config, prompt)
    return [min(n, config.context + 1 - len(prompt)) for n, prompt in zip(wanted, prompts)]
