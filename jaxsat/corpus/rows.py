"""Documents to token rows on disk, and rows to batches.

The training tokens are one flat file, so every context length reads the same one: row i is the context + 1 tokens
from i * context on, and each token but the first is predicted exactly once. Memory-mapped: a batch of 16 rows of 65
costs 10 us to read, 40 us of a core through grain's prefetching thread; as array_record, a record a row, 900 us.
The file is local or on a mounted disk; each host touches only its own rows of it.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import sys
import uuid
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np
from tokenizers import Tokenizer

from jaxsat.config import DataConfig, InputError
from jaxsat.corpus import tokenizer as bpe
from jaxsat.corpus.documents import content_id, documents, fingerprint
from jaxsat.corpus.editions import cache_dir

FORMAT = 1  # of the files below cache_dir()/rows, and of what decides the split: part of their key
Progress = Callable[[int, int, str], None]  # done, total, what


@dataclass(frozen=True)
class Statistics:
    """What corpus.json says about the token files beside it."""

    vocab_size: int  # entries of the tokenizer
    train_documents: int
    heldout_documents: int
    train_tokens: int
    heldout_tokens: int
    bytes_per_token: float  # of the held-out text, <eos> counted: bits/byte = nats/token / log(2) / bytes_per_token
    content_hash: str  # of every id and text


@dataclass(frozen=True, eq=False)
class Corpus(Statistics):
    """A prepared corpus. T = context, T1 = T + 1: inputs are row[:-1], targets row[1:]."""

    tokenizer: Path  # tokenizer.json
    train_RxT1: np.ndarray  # overlapping view of the mapped file, uint16 or uint32: copy what you take
    heldout_MxT1: np.ndarray  # int32; the fixed slice on which the loss is measured


def prepare(
    data: DataConfig, vocab_size: int, context: int, progress: Progress = lambda done, total, what: None
) -> Corpus:
    """Splits by document, tokenizes and writes `data.corpus` under the cache, or finds it there.

    The held-out documents are those with the smallest hashes of their ids, so the same chapter is held out of both
    translations; a training document with the text of a held-out one is left out. Raises InputError for an unreadable
    corpus or tokenizer, and for one too small to fill a row of either split.
    """
    own = data.tokenizer == "bpe"
    key = [FORMAT, [fingerprint(name) for name in data.corpus], data.heldout_fraction]
    key += [vocab_size] if own else [hashlib.sha256(bpe.load(data.tokenizer, vocab_size).to_str().encode()).hexdigest()]
    directory = cache_dir() / "rows" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    if not directory.exists():
        unfinished = directory.parent / f".{directory.name}-{uuid.uuid4().hex}"
        unfinished.mkdir(parents=True)
        try:
            _write(unfinished, data, vocab_size, progress)
            unfinished.rename(directory)
        except OSError:
            if not directory.exists():  # else another process was first
                raise
        finally:
            if unfinished.exists():
                unfinished.rmtree()
    return _read(directory, data, context)


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
    order_B = [_order(seed, epoch, R)[place_B[epoch_B == epoch]] for epoch in range(epoch_B[0], epoch_B[-1] + 1)]
    return corpus.train_RxT1[np.concatenate(order_B)].astype(np.int32)


def batches(
    corpus: Corpus, seed: int, batch_size: int, start: int = 0, rows: slice = slice(None)
) -> grain.DatasetIterator:
    """Batches `start`, `start` + 1, ... without end, read ahead by a thread that `.close()` stops; see `batch_at`."""
    batch_at(corpus, seed, start, batch_size, rows)  # errors here, not in the thread
    source = grain.MapDataset.range(start, sys.maxsize).map(lambda i: batch_at(corpus, seed, i, batch_size, rows))
    return iter(source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)))


@functools.lru_cache(maxsize=16)  # eight seeds at once where two epochs meet
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    # 0.4 ms for the 38 k rows of the Bibles, 6 s and 0.3 GB for the 76 M rows of 2048 tokens of c4: once an epoch.
    return np.random.default_rng([seed, epoch]).permutation(np.arange(rows, dtype=np.uint32))


def _write(directory: Path, data: DataConfig, vocab_size: int, progress: Progress) -> None:
    """train.tokens, heldout.tokens, tokenizer.json and corpus.json. Streams: only held-out text stays in memory."""

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
    if len(ids) < 2:
        raise InputError(f"corpus {', '.join(data.corpus)} has {len(ids)} documents: needs 2 at least, one held out")
    last = ids[max(1, round(data.heldout_fraction * len(ids))) - 1]
    heldout = [text for _, text in sorted(item for item in read("splitting") if item[0] <= last)]
    known = {content_id(text) for text in heldout}

    def training(what: str) -> Iterator[str]:
        return (text for key, text in read(what) if key > last and content_id(text) not in known)

    if data.tokenizer == "bpe":
        tokenizer = bpe.train(training("training the tokenizer"), vocab_size)
    else:
        tokenizer = bpe.load(data.tokenizer, vocab_size)
    tokenizer.save(str(directory / "tokenizer.json"))
    train_documents, train_tokens = _encode(directory / "train.tokens", tokenizer, training("tokenizing"))
    _, heldout_tokens = _encode(directory / "heldout.tokens", tokenizer, iter(heldout))
    statistics = Statistics(
        vocab_size=tokenizer.get_vocab_size(),
        train_documents=train_documents,
        heldout_documents=len(heldout),
        train_tokens=train_tokens,
        heldout_tokens=heldout_tokens,
        bytes_per_token=sum(len(text.encode()) for text in heldout) / heldout_tokens,
        content_hash=content.hexdigest(),
    )
    (directory / "corpus.json").write_text(json.dumps(dataclasses.asdict(statistics), indent=1))


def _encode(path: Path, tokenizer: Tokenizer, texts: Iterator[str]) -> tuple[int, int]:
    """Writes the texts' tokens, an end of text after each; returns how many texts and tokens."""
    eos, dtype, count, size = bpe.eos_id(tokenizer), _dtype(tokenizer.get_vocab_size()), 0, 0
    with path.open("wb") as f:
        while block := list(itertools.islice(texts, 64)):
            ids = [e.ids + [eos] for e in tokenizer.encode_batch_fast(block, add_special_tokens=False)]
            tokens = np.fromiter(itertools.chain.from_iterable(ids), dtype)
            f.write(tokens.tobytes())
            count, size = count + len(block), size + len(tokens)
    return count, size


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32).newbyteorder("<")


def _read(directory: Path, data: DataConfig, context: int) -> Corpus:
    statistics = Statistics(**json.loads((directory / "corpus.json").read_text()))
    rows = {}
    for split, size in (("train", statistics.train_tokens), ("heldout", statistics.heldout_tokens)):
        if size <= context:
            raise InputError(
                f"corpus {', '.join(data.corpus)} has {size} {split} tokens in {statistics.train_documents} train and "
                f"{statistics.heldout_documents} heldout documents: a row takes model.context + 1 = {context + 1}"
            )
        tokens = np.asarray(np.memmap(directory / f"{split}.tokens", _dtype(statistics.vocab_size), "r"))
        rows[split] = np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[::context]
    return Corpus(
        **dataclasses.asdict(statistics),
        tokenizer=directory / "tokenizer.json",
        train_RxT1=rows["train"],
        heldout_MxT1=rows["heldout"][: -(-data.heldout_tokens // context)].astype(np.int32),
    )
