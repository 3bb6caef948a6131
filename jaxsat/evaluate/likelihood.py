"""log P of continuations given their contexts, in few compiled programs."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsat import model
from jaxsat.config import InputError, ModelConfig
from jaxsat.corpus.pairs import Pair
from jaxsat.evaluate.scores import BLOCK_TOKENS, exact

CHUNK = 256  # targets whose logits are held at once


class LogLikelihoods(NamedTuple):
    nats_N: np.ndarray  # log P(continuation | context), the sum over its tokens, in nats, float64
    greedy_N: np.ndarray  # whether greedy decoding would write it: every token was the likeliest


def log_likelihoods(config: ModelConfig, params: model.Params, pairs: Sequence[Pair]) -> LogLikelihoods:
    """Of every pair. Rows of like length run together, padded to few lengths, so that there are few programs; a row
    that begins another one (the options of one token after one context are all one row) is not run by itself.

    Raises InputError for ids that are not the model's, pairs longer than its context, and empty parts.
    """
    rows = [(*context, *continuation) for context, continuation in pairs]
    for (context, continuation), row in zip(pairs, rows):
        if not context or not continuation:
            raise InputError(f"context of {len(context)} and continuation of {len(continuation)} tokens: one at least")
        if len(row) > config.context + 1:
            raise InputError(f"a pair of {len(row)} tokens: model.context = {config.context} takes one more at most")
        check_ids(config, row)
    inputs, place_N = _without_beginnings([row[:-1] for row in rows])
    targets: list[list[int]] = [[] for _ in inputs]  # pairs of each row of inputs
    for n, place in enumerate(place_N):
        targets[place].append(n)
    found = []
    for width, places in _buckets(config, inputs):
        size = min(max(1, BLOCK_TOKENS // width), 1 << (len(places) - 1).bit_length())
        for i in range(0, len(places), size):
            block = places[i : i + size]
            tokens_BxT = np.zeros((size, width), np.int32)
            for b, place in enumerate(block):
                tokens_BxT[b, : len(inputs[place])] = inputs[place]
            asked = [
                (n, b * width + len(pairs[n].context) - 1 + t, target)
                for b, place in enumerate(block)
                for n in targets[place]
                for t, target in enumerate(pairs[n].continuation)
            ]
            n_Q, at_Q, target_Q = np.array(asked, np.int32).T
            padded = np.zeros((2, max(CHUNK // 4, 1 << (len(n_Q) - 1).bit_length())), np.int32)
            padded[:, : len(n_Q)] = at_Q, target_Q
            found.append((n_Q, _targets(config, params, _hidden(config, params, tokens_BxT), *padded)))
    nats_N, greedy_N = np.zeros(len(rows)), np.ones(len(rows), bool)
    for n_Q, (log_p_Q, likeliest_Q) in jax.device_get(found):
        np.add.at(nats_N, n_Q, np.float64(log_p_Q[: len(n_Q)]))
        np.logical_and.at(greedy_N, n_Q, likeliest_Q[: len(n_Q)])
    return LogLikelihoods(nats_N, greedy_N)


@functools.partial(jax.jit, static_argnames="config")
@exact()
def _hidden(config: ModelConfig, params: model.Params, tokens_BxT: jax.Array) -> jax.Array:
    return model.hidden(config, params, tokens_BxT)[0]


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


def _without_beginnings(rows: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """(the rows that begin no other one, the place among them of each row or of the one that it begins)."""
    kept: list[tuple[int, ...]] = []
    place = [0] * len(rows)
    for n in sorted(range(len(rows)), key=rows.__getitem__, reverse=True):  # what it begins stands next to it
        if not kept or kept[-1][: len(rows[n])] != rows[n]:
            kept.append(rows[n])
        place[n] = len(kept) - 1
    return kept, place


def check_ids(config: ModelConfig, row: Sequence[int]) -> None:
    """Raises InputError for ids that are not the model's: a look-up would take another row without a word."""
    if not 0 <= min(row) <= max(row) < config.vocab_size:
        wrong = next(i for i in row if not 0 <= i < config.vocab_size)
        raise InputError(f"token id {wrong}: the model's are 0 to {config.vocab_size - 1}; is this its tokenizer?")


def padded_length(n: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96 ... that is n or more: a third of it is padding at most."""
    power = max(16, 1 << (n - 1).bit_length())
    return power * 3 // 4 if n <= power * 3 // 4 and power > 16 else power


def _buckets(config: ModelConfig, rows: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """[(padded length, places of its rows)], the longest first."""
    buckets: dict[int, list[int]] = {}
    for place in sorted(range(len(rows)), key=lambda place: -len(rows[place])):
        buckets.setdefault(min(padded_length(len(rows[place])), config.context), []).append(place)
    return list(buckets.items())
