"""Rows to batches: which rows the batches of a run have is a pure function of its seed."""

import functools
import math
import sys

import grain
import numpy as np

from jaxsat.config import MIXED, InputError
from jaxsat.corpus.rows import Corpus, shares


def batch_at(corpus: Corpus, seed: int, i: int, batch_size: int, rows: slice = slice(None)) -> np.ndarray:
    """Batch `i` of an endless sequence: int32 (B_local, T + 1). Of one text it is epochs, each all rows once in an
    order of its own; of several each MIXED rows in a row have of every text its share, in an order of their own, and
    each text goes through its own epochs.

    `rows`: of the batch's `batch_size`, those to read. A pure function of its arguments. Raises InputError when the
    corpus has fewer rows than a batch.
    """
    R, T1 = sum(map(len, corpus.train)), corpus.train[0].shape[1]
    if R < batch_size:
        raise InputError(
            f"the corpus has {R} training rows of {T1 - 1} tokens: fewer than train.batch_size = {batch_size}"
        )
    n_B = np.arange(i * batch_size, (i + 1) * batch_size)[rows]
    if len(corpus.train) == 1:
        return _drawn(corpus.train[0], n_B, seed).astype(np.int32)
    text_B, place_B = _mixed(corpus.weights, n_B, seed)
    rows_BxT1 = np.empty((len(n_B), T1), np.int32)
    for text in np.unique(text_B):
        rows_BxT1[text_B == text] = _drawn(corpus.train[text], place_B[text_B == text], seed)
    return rows_BxT1


def _drawn(train_RxT1: np.ndarray, place_N: np.ndarray, seed: int) -> np.ndarray:
    """The rows at these places, ascending, of the endless sequence of epochs of one text."""
    R = len(train_RxT1)
    epoch_N, within_N = np.divmod(place_N, R)
    row_N = [shuffled(within_N[epoch_N == epoch], R, seed, epoch) for epoch in range(epoch_N[0], epoch_N[-1] + 1)]
    return train_RxT1[np.concatenate(row_N)]


def batches(
    corpus: Corpus, seed: int, batch_size: int, start: int = 0, rows: slice = slice(None)
) -> grain.DatasetIterator:
    """Batches `start`, `start` + 1, ... without end, read ahead by a thread that `.close()` stops; see `batch_at`."""
    batch_at(corpus, seed, start, batch_size, rows)  # errors here, not in the thread
    source = grain.MapDataset.range(start, sys.maxsize).map(lambda i: batch_at(corpus, seed, i, batch_size, rows))
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)))


def _mixed(weights: tuple[float, ...], n_B: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the n-th row: its text, and its place in the endless sequence of that text's rows."""
    text_B, place_B = np.empty((2, len(n_B)), np.int64)
    counts, block_B = shares(weights, MIXED), n_B // MIXED
    for block in np.unique(block_B):
        within_N = n_B[block_B == block] % MIXED
        text_Q, nth_Q = _block(weights, seed, int(block))
        text_B[block_B == block] = text_Q[within_N]
        place_B[block_B == block] = block * counts[text_Q[within_N]] + nth_Q[within_N]
    return text_B, place_B


@functools.lru_cache(maxsize=64)
def _block(weights: tuple[float, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(text_Q, nth_Q) of MIXED rows: which text, and the how manieth of it in the block."""
    text_Q = np.repeat(np.arange(len(weights)), shares(weights, MIXED))
    text_Q = np.random.default_rng([seed, block, len(weights)]).permutation(text_Q)
    nth_Q = np.empty(MIXED, np.int64)
    for text in range(len(weights)):
        nth_Q[text_Q == text] = np.arange(np.count_nonzero(text_Q == text))
    return text_Q, nth_Q


def shuffled(place_B: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a pseudo-random permutation of 0 .. size - 1 takes each place; int64. No permutation is ever held.

    A Feistel network on the pairs (left, right) of a just large enough rectangle, walked until inside. Its round
    functions are tables of sqrt(size) random numbers: 70 kB each for the 76 M rows of 2048 tokens of c4.
    """
    lefts, rights = _rectangle(size)
    row_B, outside_B = place_B.copy(), np.ones(len(place_B), bool)
    while outside_B.any():
        left, right = np.divmod(row_B[outside_B], rights)
        for by_right, by_left in _rounds(size, seed, epoch):
            left = (left + by_right[right]) % lefts
            right = (right + by_left[left]) % rights
        row_B[outside_B] = left * rights + right
        outside_B = row_B >= size
    return row_B


def _rectangle(size: int) -> tuple[int, int]:
    lefts = math.isqrt(size - 1) + 1 if size > 1 else 1
    return lefts, -(-size // lefts)


@functools.lru_cache(maxsize=64)  # made again in 0.1 ms for 46 k rows, 0.3 ms for 76 M
def _rounds(size: int, seed: int, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    lefts, rights = _rectangle(size)
    rng = np.random.default_rng([seed, epoch])
    return [(rng.integers(lefts, size=rights), rng.integers(rights, size=lefts)) for _ in range(4)]
