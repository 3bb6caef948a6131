"""log P of continuations given their contexts, in few compiled programs."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsat import model
from jaxsat.config import InputError, ModelConfig
from jaxsat.corpus.pairs import Pair, best_fit
from jaxsat.evaluate.scores import BLOCK_TOKENS, exact

CHUNK = 256  # targets whose logits are held at once
WIDTH = 128  # of a row of tries at least


class LogLikelihoods(NamedTuple):
    nats_N: np.ndarray  # log P(continuation | context), the sum over its tokens, in nats, float64
    greedy_N: np.ndarray  # whether greedy decoding would write it: every token was the likeliest


def log_likelihoods(config: ModelConfig, params: model.Params, pairs: Sequence[Pair]) -> LogLikelihoods:
    """Of every pair. What several begin with (the context of a choice's options, two texts up to where they differ) is
    read once; rows of a few widths, each full of such tries, run together, so that there are few programs.

    Raises InputError for ids that are not the model's, pairs longer than its context, and empty parts.
    """
    rows = [(*context, *continuation) for context, continuation in pairs]
    for (context, continuation), row in zip(pairs, rows):
        if not context or not continuation:
            raise InputError(f"context of {len(context)} and continuation of {len(continuation)} tokens: one at least")
        if len(row) > config.context + 1:
            raise InputError(f"a pair of {len(row)} tokens: model.context = {config.context} takes one more at most")
        check_ids(config, row)
    found = []
    for width, lines in _lines(config, _tries(config, [row[:-1] for row in rows])):
        size = min(max(1, BLOCK_TOKENS // width), 1 << (len(lines) - 1).bit_length())
        for i in range(0, len(lines), size):
            # Padding is as deep as a root, and so sees itself alone: no softmax is over nothing.
            tokens_N, depth_N = np.zeros((2, size * width), np.int32)
            n_A, at_A, target_A = [], [], []
            for b, line in enumerate(lines[i : i + size]):
                start = b * width
                for trie in line:
                    here = slice(start, start + len(trie.tokens))
                    tokens_N[here], depth_N[here] = trie.tokens, trie.depths
                    for n, column_T in trie.columns:
                        context, continuation = pairs[n]
                        n_A += [n] * len(continuation)
                        at_A.append(start + column_T[len(context) - 1 :])
                        target_A += continuation
                    start = here.stop
            # What pairs have in common is also asked once.
            asked_Q, of_A = np.unique(np.concatenate(at_A) * config.vocab_size + target_A, return_inverse=True)
            padded = np.zeros((2, max(CHUNK // 4, 1 << (len(asked_Q) - 1).bit_length())), np.int32)
            padded[:, : len(asked_Q)] = np.divmod(asked_Q, config.vocab_size)
            h_BxTxD = _hidden(config, params, tokens_N.reshape(size, width), depth_N.reshape(size, width))
            found.append((np.array(n_A), of_A, _targets(config, params, h_BxTxD, *padded)))
    nats_N, greedy_N = np.zeros(len(rows)), np.ones(len(rows), bool)
    for n_A, of_A, (log_p_Q, likeliest_Q) in jax.device_get(found):
        np.add.at(nats_N, n_A, np.float64(log_p_Q)[of_A])
        np.logical_and.at(greedy_N, n_A, likeliest_Q[of_A])
    return LogLikelihoods(nats_N, greedy_N)


@functools.partial(jax.jit, static_argnames="config")
@exact()
def _hidden(config: ModelConfig, params: model.Params, tokens_BxT: jax.Array, depth_BxT: jax.Array) -> jax.Array:
    return model.hidden(config, params, tokens_BxT, depth_BxT=depth_BxT)[0]


@functools.partial(jax.jit, static_argnames="config")
@exact()
def _targets(
    config: ModelConfig, params: model.Params, h_BxTxD: jax.Array, at_Q: jax.Array, target_Q: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(log_p_Q, likeliest_Q) of Q targets, each after the position `at` of all B T: a chunk of logits at a time."""

    def chunk(h_and_target: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h_CxD, target_C = h_and_target
        logits_CxV = model.heads.logits(config, params, h_CxD[None])[0]
        asked_C = jnp.take_along_axis(logits_CxV, target_C[:, None], axis=1)[:, 0]
        return asked_C - jax.nn.logsumexp(logits_CxV, axis=1), logits_CxV.argmax(axis=1) == target_C

    h_QxD = h_BxTxD.reshape(-1, config.width)[at_Q]
    chunks = jax.tree.map(lambda x: x.reshape(-1, min(CHUNK, len(x)), *x.shape[1:]), (h_QxD, target_Q))
    return jax.tree.map(jnp.ravel, jax.lax.map(chunk, chunks))


def check_ids(config: ModelConfig, row: Sequence[int]) -> None:
    """Raises InputError for ids that are not the model's: a look-up would take another row without a word."""
    if not 0 <= min(row) <= max(row) < config.vocab_size:
        wrong = next(i for i in row if not 0 <= i < config.vocab_size)
        raise InputError(f"token id {wrong}: the model's are 0 to {config.vocab_size - 1}; is this its tokenizer?")


def padded_length(n: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96 ... that is n or more: a third of it is padding at most."""
    power = max(16, 1 << (n - 1).bit_length())
    return power * 3 // 4 if n <= power * 3 // 4 and power > 16 else power


class _Trie(NamedTuple):
    """Rows that begin alike, each beginning once, in depth-first order."""

    tokens: list[int]
    depths: list[int]
    columns: list[tuple[int, np.ndarray]]  # (n, where the tokens of row n are)


def _tries(config: ModelConfig, rows: Sequence[tuple[int, ...]]) -> list[_Trie]:
    """Tries of all rows, each of as many tokens as `_widest` at most. One that is wider than `WIDTH` is worth its
    attention only where more than half of a row is shared: others begin another one."""
    ids = [np.array(row, np.int32) for row in rows]
    tries: list[_Trie] = []
    before, column_T = np.zeros((2, 0), np.int64)
    for n in sorted(range(len(rows)), key=lambda n: ids[n].tobytes()):  # what begins alike stands together
        size, length = len(tries[-1].tokens) if tries else 0, len(rows[n])
        shared = _alike(before, ids[n])
        if not shared or size + length - shared > (_widest(config) if 2 * shared > length else WIDTH):
            tries.append(_Trie([], [], []))
            size, shared = 0, 0
        tries[-1].tokens.extend(rows[n][shared:])
        tries[-1].depths.extend(range(shared, length))
        column_T = np.concatenate([column_T[:shared], np.arange(size, size + length - shared)])
        tries[-1].columns.append((n, column_T))
        before = ids[n]
    return tries


def _alike(a_T: np.ndarray, b_T: np.ndarray) -> int:
    """How many tokens both begin with."""
    n = min(len(a_T), len(b_T))
    return int(np.append(a_T[:n] != b_T[:n], True).argmax())


def _widest(config: ModelConfig) -> int:
    return max(WIDTH, 2 * config.context)


def _lines(config: ModelConfig, tries: Sequence[_Trie]) -> list[tuple[int, list[list[_Trie]]]]:
    """[(width, lines of this width)]: each trie, the longest first, in the fullest line that has room for it."""
    tries = sorted(tries, key=lambda trie: -len(trie.tokens))
    width_of = lambda size: min(max(WIDTH, padded_length(size)), _widest(config))
    row_P, _, width_R = best_fit([len(trie.tokens) for trie in tries], width_of)
    lines: list[list[_Trie]] = [[] for _ in width_R]
    for trie, row in zip(tries, row_P):
        lines[row].append(trie)
    return [(n, [line for line, width in zip(lines, width_R) if width == n]) for n in dict.fromkeys(width_R)]
