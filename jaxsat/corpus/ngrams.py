"""What follows what in a text: the counts of n-grams as a sparse matrix, contexts x vocabulary.

Godey et al. 2024, section 6, take 5-grams: a row is a context of four tokens, its entries the shares of the tokens that
follow it. Counted in two passes over the tokens, which lie in a temporary file: first the contexts, then what follows
the most frequent of them.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import scipy.sparse
from tokenizers import Tokenizer

from jaxsat.config import InputError
from jaxsat.corpus import tokenizer as bpe
from jaxsat.corpus.documents import TextPair, documents

BLOCK = 1 << 22  # tokens that are looked at together


@dataclass(frozen=True, eq=False)
class NGrams:
    """`shares_CxV`: of each of the C most frequent contexts, descending, the share of each next token. `contexts`: how
    many different ones the text has, most of which may not be here. `tokens`: of the text."""

    shares_CxV: scipy.sparse.csr_array
    contexts: int
    tokens: int


def tokenizer_of(name: str, corpus: Sequence[str], vocab_size: int) -> Tokenizer:
    """ "bpe" or "words", trained on the corpus to `vocab_size` entries at most, or that of a tokenizer.json."""
    if name not in bpe.TRAINED:
        return bpe.load(name, 2**31, ends=False)
    return bpe.TRAINED[name](_texts(corpus), vocab_size)


def count(corpus: Sequence[str], tokenizer: Tokenizer, n: int, most: int) -> NGrams:
    """The n-grams of texts whose context is among the `most` most frequent (of equals the one with lower ids); none
    goes over the end of a document. Memory: 16 bytes for each different context of the text, and again for each that is
    new in BLOCK tokens. Raises InputError for what cannot be read, and for texts without any n-gram."""
    if not 2 <= n <= 32:
        raise InputError(f"n = {n}: an n-gram has from 2 to 32 tokens")
    vocab_size = bpe.size(tokenizer)
    with tempfile.TemporaryFile() as file:
        n_tokens = _write(file, corpus, tokenizer)
        keys_K, counts_K = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        for key_N, _ in _blocks(file, n, vocab_size):
            keys_K, counts_K = _merged(keys_K, counts_K, *np.unique(key_N, return_counts=True))
        if not len(keys_K):
            raise InputError(f"{', '.join(corpus)}: no document has {n} tokens, of which an n-gram is made")
        chosen_C = np.lexsort((keys_K, -counts_K))[:most]
        row_of_place_C = np.argsort(keys_K[chosen_C])  # of the chosen contexts in the order of their keys
        sorted_C = keys_K[chosen_C][row_of_place_C]
        cells_E, seen_E = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        for key_N, next_N in _blocks(file, n, vocab_size):
            place_N = np.minimum(np.searchsorted(sorted_C, key_N), len(sorted_C) - 1)
            kept_N = sorted_C[place_N] == key_N
            cell_N = row_of_place_C[place_N[kept_N]].astype(np.uint64) * np.uint64(vocab_size) + next_N[kept_N]
            cells_E, seen_E = _merged(cells_E, seen_E, *np.unique(cell_N, return_counts=True))
    rows_E, columns_E = np.divmod(cells_E, np.uint64(vocab_size))
    totals_C = counts_K[chosen_C]
    shares_E = (seen_E / totals_C[rows_E.astype(np.int64)]).astype(np.float32)
    shape = len(chosen_C), vocab_size
    shares_CxV = scipy.sparse.csr_array((shares_E, (rows_E.astype(np.int64), columns_E.astype(np.int64))), shape)
    return NGrams(shares_CxV, len(keys_K), n_tokens)


def _texts(corpus: Sequence[str]) -> Iterator[str]:
    for name in corpus:
        for _, document in documents(name):
            if isinstance(document, TextPair):
                raise InputError(f"{name} is of pairs: n-grams are of text")
            yield document


def _write(file: BinaryIO, corpus: Sequence[str], tokenizer: Tokenizer) -> int:
    """The tokens of all documents, uint32, with an end that is no token behind each; how many tokens there are."""
    texts, n_tokens, end = _texts(corpus), 0, np.uint32(2**32 - 1)
    for block in iter(lambda: list(itertools.islice(texts, 64)), []):
        ids = [encoding.ids for encoding in bpe.encode(tokenizer, block)]
        n_tokens += sum(map(len, ids))
        file.write(np.fromiter(itertools.chain.from_iterable((*each, end) for each in ids), np.uint32).tobytes())
    return n_tokens


def _blocks(file: BinaryIO, n: int, vocab_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(a number of each context, the token after it) of every n-gram. The number is exact where the context's ids fit
    64 bits (4 of up to 65,536), else a hash of 64 bits: two of a million contexts share one with a chance of 3e-8."""
    bits, end = max(1, int(vocab_size - 1).bit_length()), 2**32 - 1
    file.seek(0)
    left_T = np.zeros(0, np.uint32)
    while len(read_T := np.frombuffer(file.read(4 * BLOCK), np.uint32)):
        token_T = np.concatenate([left_T, read_T])
        left_T = token_T[max(0, len(token_T) - n + 1) :]
        n_grams = len(token_T) - n + 1
        if n_grams < 1:
            continue
        key_N, whole_N = np.zeros(n_grams, np.uint64), np.ones(n_grams, bool)
        for i in range(n):
            at_N = token_T[i : i + n_grams]
            whole_N &= at_N != end
            if i < n - 1:
                id_N = at_N.astype(np.uint64)
                key_N = key_N << np.uint64(bits) | id_N if bits * (n - 1) <= 64 else _mixed(key_N + id_N)
        yield key_N[whole_N], token_T[n - 1 :][whole_N].astype(np.uint64)


def _mixed(x_N: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x_N = x_N + np.uint64(0x9E3779B97F4A7C15)
        x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x_N ^ (x_N >> np.uint64(31))


def _merged(
    keys_K: np.ndarray, counts_K: np.ndarray, more_keys: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of sorted keys, added up."""
    keys, where = np.unique(np.concatenate([keys_K, more_keys]), return_inverse=True)
    return keys, np.bincount(where, np.concatenate([counts_K, more_counts]), len(keys)).astype(np.int64)
