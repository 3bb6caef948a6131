"""Pairs: what is learnt is the target, after a source that is no target itself.

In a row a token of a source is written ~token, which is negative. So the marks alone tell where a pair begins: at the
first source token after a target's. Pairs share rows of `context` + 1 tokens, what is left of a row is -1, and no pair
sees another (`jaxsat.model.marked`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from jaxsat.corpus.tokenizer import begin_ids, encode, own_begin


class Pair(NamedTuple):
    """Ids of a context, one at least, and of its continuation, which is learnt or scored."""

    context: list[int]
    continuation: list[int]


def encode_pairs(tokenizer: Tokenizer, texts: Sequence[tuple[str, str]]) -> list[Pair]:
    """(context, continuation) as ids, split as by lm-eval: spaces at the end of the context belong to the continuation,
    and what the whole text has more tokens than the context alone are the continuation's.

    Nothing is put before a context but what the tokenizer itself would; an empty one is `begin_ids`.
    """
    stripped = [context.rstrip() for context, _ in texts]
    contexts = list(dict.fromkeys(stripped))
    ids = lambda texts: [encoding.ids for encoding in encode(tokenizer, texts)]
    ids_of = dict(zip(contexts, ids(contexts)))
    wholes = ids([context + continuation for context, continuation in texts])
    begin, own = begin_ids(tokenizer), own_begin(tokenizer)
    return [
        Pair(own + ids_of[context] if ids_of[context] else begin, whole[len(ids_of[context]) :])
        for context, whole in zip(stripped, wholes)
    ]


def lengths_of(tokens_N: np.ndarray) -> np.ndarray:
    """The lengths of the pairs that lie one after another in marked tokens."""
    begins_N = (tokens_N < 0) & (np.concatenate([[0], tokens_N[:-1]]) >= 0)
    return np.diff(np.flatnonzero(begins_N), append=len(tokens_N))


def pack(tokens_N: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows_RxW, pair_RxW): the pairs of `tokens_N`, none longer than the width, each in the fullest row that still has
    room for it; and the number of the pair that a token is of, -1 for none.

    Which pairs share a row never changes. All in memory, with some integers of 8 bytes a token on the way.
    """
    lengths_P = lengths_of(tokens_N)
    row_P, at_P, widths_R = best_fit(lengths_P.tolist(), lambda length: width)
    starts_P = np.cumsum(lengths_P) - lengths_P
    place_N = np.repeat(row_P * width + at_P - starts_P, lengths_P) + np.arange(len(tokens_N))
    shape = len(widths_R), width
    rows_RxW, pair_RxW = np.full(shape, -1, tokens_N.dtype), np.full(shape, -1, np.int32)
    rows_RxW.reshape(-1)[place_N] = tokens_N
    pair_RxW.reshape(-1)[place_N] = np.repeat(np.arange(len(lengths_P)), lengths_P)
    return rows_RxW, pair_RxW


def best_fit(lengths_P: Sequence[int], width_of: Callable[[int], int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(row_P, at_P, width_R): each in turn lies in the fullest row that still has room for it, at this place; else in a
    new one, of a width for its length."""
    row_P, at_P = np.zeros((2, len(lengths_P)), np.int64)
    width_R: list[int] = []
    open_rows: dict[int, list[int]] = {}  # by the room in them
    rooms = 0  # bit n: there is an open row with room for n
    for i, length in enumerate(lengths_P):
        if enough := rooms >> length:
            room = length + (enough & -enough).bit_length() - 1
            row = open_rows[room].pop()
            rooms ^= 0 if open_rows[room] else 1 << room
        else:
            row, room = len(width_R), width_of(length)
            width_R.append(room)
        row_P[i], at_P[i] = row, width_R[row] - room
        open_rows.setdefault(room - length, []).append(row)
        rooms |= 1 << (room - length)
    return row_P, at_P, width_R
