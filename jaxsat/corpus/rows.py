"""Documents to token rows on disk, and rows to batches.

The training tokens are one flat file, so every context length reads the same one: row i is the context + 1 tokens
from i * context on, and each token but the first is predicted exactly once. Memory-mapped: a batch of 16 rows of 65
costs 10 us to read and 16 us to draw, 40 us of a core through grain's prefetching thread; as array_record, a record a
row, 900 us. The file is local or on a mounted disk; each host touches only its own rows of it.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import sys
import uuid
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from tokenizers import Tokenizer

from jaxsat.config import DataConfig, InputError
from jaxsat.corpus import tokenizer as bpe
from jaxsat.corpus.documents import at_hand as documents_at_hand
from jaxsat.corpus.documents import content_id, documents, fingerprint, label
from jaxsat.corpus.editions import cache_dir, using_cache

RULES = 2  # how files are read, documents held out, rows cut and written: part of the cache's key and the identity
MAX_LOST = 0.01  # of a split's characters: with more, the loss is that of another text
Progress = Callable[[int, int, str], None]  # done, total, what


@dataclass(frozen=True)
class Statistics:
    """What corpus.json says about the token files beside it."""

    vocab_size: int  # the tokenizer's largest id and 1
    train_documents: int
    heldout_ids: int  # documents held out; translations share an id and count once
    train_tokens: int
    heldout_tokens: int
    bytes_per_token: float  # of the held-out text, <eos> counted: bits/byte = nats/token / log(2) / bytes_per_token
    lost_share: float  # of the characters: <unk>, or not given back by the tokens; see `_encode` for the sample
    content_hash: str  # of every id and text
    tokenizer_hash: str  # of tokenizer.json
    tokens_hash: str  # of the held-out and the training tokens


@dataclass(frozen=True, eq=False)
class Corpus(Statistics):
    """A prepared corpus. T = context, T1 = T + 1: inputs are row[:-1], targets row[1:]."""

    corpus: tuple[str, ...]  # names as they were given, of paths the last part
    tokenizer: Path  # tokenizer.json; read it by `jaxsat.corpus.tokenizer.load`
    train_RxT1: np.ndarray  # overlapping view of the mapped file, uint16 or uint32: copy what you take
    heldout_MxT1: np.ndarray  # int32; the fixed slice on which the loss is measured, spread over all held-out text
    heldout_document_MxT: np.ndarray  # int32; of each target of the slice, the number of its document (id): 0, 1, ...
    heldout_documents: int  # that the slice holds a part of; heldout_document_MxT is below it

    def identity(self) -> dict[str, Any]:
        """What a study on these rows must record, in JSON's types: whatever changes a row changes this.

        It depends on no path, clock or cache, nor on `context` and `heldout_tokens`, which a run says itself.
        """
        statistics = {f.name: getattr(self, f.name) for f in dataclasses.fields(Statistics)}
        return {"corpus": list(self.corpus), "rules": RULES} | statistics


def prepare(
    data: DataConfig, vocab_size: int, context: int, progress: Progress = lambda done, total, what: None
) -> Corpus:
    """Splits by document, tokenizes and writes `data.corpus` under the cache, or finds it there.

    Held out are the documents with the smallest hashes of their ids, so the same chapter of both translations:
    `data.heldout_fraction` of the ids, and at least 50 of 500 or more. A training document with the text of a held-out
    one is left out. A fraction of 1, which no run may have, holds out all: for a tokenizer that is there, and no
    training rows. The slice that is measured is `data.heldout_tokens` in rows evenly spread over all held-out text.
    Raises InputError for an unreadable corpus or tokenizer, for a tokenizer that loses more than 1 % of the characters
    (of all held-out documents, 1024 training documents and one of 64 of the others), for a cache that cannot be
    written, and for a corpus too small to fill a row of either split.
    """
    own = data.tokenizer == "bpe"
    key = [RULES, [fingerprint(name) for name in data.corpus], data.heldout_fraction]
    key += [vocab_size] if own else [_sha256(bpe.load(data.tokenizer, vocab_size).to_str(pretty=True).encode())]
    directory = cache_dir() / "rows" / _sha256(json.dumps(key).encode())[:16]
    with using_cache():
        if not directory.exists():
            unfinished = directory.parent / f".{directory.name}-{uuid.uuid4().hex}"
            try:
                unfinished.mkdir(parents=True)
                _write(unfinished, data, vocab_size, progress)
                unfinished.rename(directory)
            except OSError:
                if not directory.exists():  # else another process was first
                    raise
            finally:
                if unfinished.exists():
                    unfinished.rmtree()
        return _read(directory, data, context)


def at_hand(data: DataConfig) -> list[str | None]:
    """Fingerprints of texts and tokenizer, as far as they can be looked at without fetching or preparing anything: None
    for what cannot. Where they are as they were, so is the `identity`."""
    tokenizer = Path(data.tokenizer)
    of_file = _sha256(tokenizer.read_bytes()) if tokenizer.is_file() else None
    return [*map(documents_at_hand, data.corpus), data.tokenizer if data.tokenizer == "bpe" else of_file]


def batch_at(corpus: Corpus, seed: int, i: int, batch_size: int, rows: slice = slice(None)) -> np.ndarray:
    """Batch `i` of the endless sequence of epochs, each all rows once in an order of its own: int32 (B_local, T + 1).

    `rows`: of the batch's `batch_size`, those to read. A pure function of its arguments. Raises InputError when the
    corpus has fewer rows than a batch.
    """
    R = len(corpus.train_RxT1)
    if R < batch_size:
        T = corpus.train_RxT1.shape[1] - 1
        raise InputError(f"the corpus has {R} training rows of {T} tokens: fewer than train.batch_size = {batch_size}")
    epoch_B, place_B = np.divmod(np.arange(i * batch_size, (i + 1) * batch_size)[rows], R)
    row_B = [shuffled(place_B[epoch_B == epoch], R, seed, epoch) for epoch in range(epoch_B[0], epoch_B[-1] + 1)]
    return corpus.train_RxT1[np.concatenate(row_B)].astype(np.int32)


def batches(
    corpus: Corpus, seed: int, batch_size: int, start: int = 0, rows: slice = slice(None)
) -> grain.DatasetIterator:
    """Batches `start`, `start` + 1, ... without end, read ahead by a thread that `.close()` stops; see `batch_at`."""
    batch_at(corpus, seed, start, batch_size, rows)  # errors here, not in the thread
    source = grain.MapDataset.range(start, sys.maxsize).map(lambda i: batch_at(corpus, seed, i, batch_size, rows))
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)))


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


def _write(directory: Path, data: DataConfig, vocab_size: int, progress: Progress) -> None:
    """The files of a corpus. Streams: only held-out text stays in memory.

    train.tokens, heldout.tokens, heldout.starts (where in these each id begins), tokenizer.json and corpus.json.
    """

    def read(what: str) -> Iterator[tuple[int, str]]:
        pairs = itertools.chain.from_iterable(documents(name) for name in data.corpus)
        for done, (key, text) in enumerate(pairs):
            progress(done, max(len(hashes), done), what)
            yield int(content_id(key)[:16], 16), text

    hashes, content = array("Q"), hashlib.sha256()
    for key, text in read("reading"):
        hashes.append(key)
        content.update(f"{key}\0{text}\0".encode())
    ids = np.unique(hashes)
    if len(ids) < (needed := 2 if data.heldout_fraction < 1 else 1):
        raise InputError(
            f"corpus {', '.join(data.corpus)} has {len(ids)} documents: needs {needed} at least, one held out"
        )
    heldout_ids = max(1, round(data.heldout_fraction * len(ids)), 50 if len(ids) >= 500 else 0)
    last = ids[heldout_ids - 1]
    keys, heldout = zip(*sorted(item for item in read("splitting") if item[0] <= last), strict=True)
    known = {content_id(text) for text in heldout}

    def training(what: str) -> Iterator[str]:
        return (text for key, text in read(what) if key > last and content_id(text) not in known)

    if data.tokenizer == "bpe":
        tokenizer = bpe.train(training("training the tokenizer"), vocab_size)
    else:
        tokenizer = bpe.load(data.tokenizer, vocab_size)
    (directory / "tokenizer.json").write_text(serialized := tokenizer.to_str(pretty=True))
    hashed = hashlib.sha256()
    where = f"corpus {', '.join(data.corpus)}, tokenizer {data.tokenizer}"
    of_heldout = _encode(directory / "heldout.tokens", tokenizer, iter(heldout), 1, hashed, where)
    of_train = _encode(directory / "train.tokens", tokenizer, training("tokenizing"), 64, hashed, where)
    tokens = np.memmap(directory / "heldout.tokens", _dtype(bpe.size(tokenizer)), "r")
    ends = np.flatnonzero(tokens == bpe.eos_id(tokenizer)) + 1
    _, first = np.unique(np.array(keys, np.uint64), return_index=True)
    np.concatenate([[0], ends[:-1]])[first].astype("<i8").tofile(directory / "heldout.starts")
    statistics = Statistics(
        vocab_size=bpe.size(tokenizer),
        train_documents=of_train.documents,
        heldout_ids=heldout_ids,
        train_tokens=of_train.tokens,
        heldout_tokens=of_heldout.tokens,
        bytes_per_token=sum(len(text.encode()) for text in heldout) / of_heldout.tokens,
        lost_share=_check(of_heldout.lost + of_train.lost, of_heldout.characters + of_train.characters, where),
        content_hash=content.hexdigest(),
        tokenizer_hash=_sha256(serialized.encode()),
        tokens_hash=hashed.hexdigest(),
    )
    (directory / "corpus.json").write_text(json.dumps(dataclasses.asdict(statistics), indent=1))


class _Encoded(NamedTuple):
    documents: int
    tokens: int
    lost: int  # of these, of the documents that were decoded again
    characters: int


def _encode(
    path: Path, tokenizer: Tokenizer, texts: Iterator[str], every: int, hashed: "hashlib._Hash", where: str
) -> _Encoded:
    """Writes the texts' tokens, an end of text after each; decodes the first 1024 again, and then one of `every`."""
    eos, unk, dtype = bpe.eos_id(tokenizer), bpe.unk_id(tokenizer), _dtype(bpe.size(tokenizer))
    counts_4 = np.zeros(4, np.int64)
    with path.open("wb") as f:
        for n, block in enumerate(iter(lambda: list(itertools.islice(texts, 64)), [])):
            ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(block, add_special_tokens=False)]
            tokens = np.fromiter(itertools.chain.from_iterable((*ids_T, eos) for ids_T in ids), dtype)
            if np.count_nonzero(tokens == eos) != len(block):
                token = tokenizer.id_to_token(eos)
                raise InputError(
                    f"{where}: a text has {token} written out, and the tokenizer takes it for an end of text"
                )
            f.write(tokens.tobytes())
            hashed.update(tokens)
            again = list(zip(block, ids, strict=True))[:: every if n >= 16 else 1]
            lost_2 = np.sum([bpe.lost(tokenizer, unk, text, ids_T) for text, ids_T in again], axis=0)
            counts_4 += (len(block), len(tokens), *lost_2)
            if n == 15:  # here a share of 1 % is no accident, and most of a large corpus is still to come
                _check(*counts_4[2:], where)
    return _Encoded(*counts_4.tolist())


def _check(lost: int, characters: int, where: str) -> float:
    """The share of these characters that was lost. Raises InputError above MAX_LOST."""
    share = lost / max(1, characters)
    if share > MAX_LOST:
        raise InputError(
            f"{where}: {share:.1%} of the characters are unknown or do not come back from the tokens, "
            f"{MAX_LOST:.0%} at most may; give a tokenizer of this text, or the text that it reads"
        )
    return share


def _dtype(entries: int) -> np.dtype:
    return np.dtype(np.uint16 if entries <= 2**16 else np.uint32).newbyteorder("<")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(directory: Path, data: DataConfig, context: int) -> Corpus:
    statistics = Statistics(**json.loads((directory / "corpus.json").read_text()))
    rows = {}
    for split, size in (("train", statistics.train_tokens), ("heldout", statistics.heldout_tokens)):
        if split == "train" and data.heldout_fraction == 1:
            rows[split] = np.empty((0, context + 1), np.uint16)
            continue
        if size <= context:
            raise InputError(
                f"corpus {', '.join(data.corpus)} has {size} {split} tokens in {statistics.train_documents} train and "
                f"{statistics.heldout_ids} heldout documents: a row takes model.context + 1 = {context + 1}"
            )
        path, dtype = directory / f"{split}.tokens", _dtype(statistics.vocab_size)
        if (found := os.path.getsize(path)) != size * dtype.itemsize:
            raise InputError(f"{path} has {found} bytes and should have {size * dtype.itemsize}: remove {directory}")
        tokens = np.asarray(np.memmap(path, dtype, "r"))
        rows[split] = np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[::context]
    H = len(rows["heldout"])
    M = min(H, -(-data.heldout_tokens // context))
    row_M = np.arange(M) * H // M
    starts = np.fromfile(directory / "heldout.starts", "<i8")
    target_MxT = row_M[:, None] * context + np.arange(1, context + 1)[None]
    held, document_MxT = np.unique(np.searchsorted(starts, target_MxT, side="right"), return_inverse=True)
    return Corpus(
        **dataclasses.asdict(statistics),
        corpus=tuple(label(name) for name in data.corpus),
        tokenizer=directory / "tokenizer.json",
        train_RxT1=rows["train"],
        heldout_MxT1=rows["heldout"][row_M].astype(np.int32),
        heldout_document_MxT=document_MxT.reshape(M, context).astype(np.int32),
        heldout_documents=len(held),
    )
