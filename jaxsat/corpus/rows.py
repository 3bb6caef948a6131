"""Documents to token rows on disk.

The training tokens of a text are one flat file, so every context length reads the same one: row i is the context + 1
tokens from i * context on, and each token but the first is predicted exactly once. Memory-mapped: a batch of 16 rows of
65 costs 10 us to read and 16 us to draw, 40 us of a core through grain's prefetching thread; as array_record, a record
a row, 900 us. The file is local or on a mounted disk; each host touches only its own rows of it. Pairs are packed into
rows in memory (`jaxsat.corpus.pairs`).
"""

import dataclasses
import hashlib
import itertools
import json
import os
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from tokenizers import Tokenizer

from jaxsat.config import DataConfig, InputError
from jaxsat.corpus import tokenizer as bpe
from jaxsat.corpus.documents import TextPair, Units, content_id, documents, fingerprint, label
from jaxsat.corpus.documents import at_hand as documents_at_hand
from jaxsat.corpus.editions import cache_dir, using_cache
from jaxsat.corpus.pairs import encode_pairs, lengths_of, pack
from jaxsat.disk import read_json, write_atomically

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
    bytes_per_token: float  # of the held-out text that is learnt, <eos> counted: bits/byte = nats/token / log(2) / this
    lost_share: float  # of the characters: <unk>, or not given back by the tokens; see `_encode` for the sample
    content_hash: str  # of every id and text
    tokenizer_hash: str  # of tokenizer.json
    tokens_hash: str  # of the held-out and the training tokens


_Kept = TypedDict("_Kept", {**Statistics.__annotations__, "train": list[list[Any]], "heldout": list[list[Any]]})


@dataclass(frozen=True, eq=False)
class Corpus(Statistics):
    """A prepared corpus. T = context, T1 = T + 1: inputs are row[:-1], targets row[1:].

    Without weights its corpora are one text; with them each is a text of its own, and rows are drawn from all: see
    `order.batch_at`.
    """

    corpus: tuple[str, ...]  # names as they were given, of paths the last part
    weights: tuple[float, ...]  # of the texts
    tokenizer: Path  # tokenizer.json; read it by `jaxsat.corpus.tokenizer.load`
    marked: bool  # its training rows hold pairs: a token that is no target is written ~token, see `jaxsat.corpus.pairs`
    heldout_marked: bool  # its held-out rows do
    # rows_RxT1 of each text: overlapping views of the mapped files, uint16 or uint32, of which copy what you take; of
    # pairs int16 or int32
    train: tuple[np.ndarray, ...]
    heldout_MxT1: np.ndarray  # int32; the fixed slice on which the loss is measured, spread over all held-out text
    heldout_document_MxT: np.ndarray  # int32; of each target of the slice the number of its document (id), else -1
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
    `data.heldout_fraction` of the ids, at least 50 of 500 or more, and one of each text; or all of `data.heldout`. A
    training document with the text of a held-out one, or the source of a held-out pair, is left out. A fraction of 1,
    which no run may have, holds out all: for a tokenizer that is there, and no training rows. The slice that is
    measured is `data.heldout_tokens` in rows evenly spread over all held-out text; of several texts by their weights,
    and fewer where one of them has too few.
    Raises InputError for an unreadable corpus or tokenizer, for a tokenizer that loses more than 1 % of the characters
    (of all held-out documents, 1024 training documents and one of 64 of the others), for a cache that cannot be
    written, for a corpus too small to fill a row of either split, and for a pair that is longer than a row.
    """
    own = data.tokenizer in bpe.TRAINED
    key = [RULES, [[fingerprint(name) for name in names] for names in (data.corpus, data.heldout)]]
    key += [data.heldout_fraction, data.weights]
    tokenizer = bpe.load(data.tokenizer, vocab_size).to_str(pretty=True) if not own else ""
    key += [data.tokenizer, vocab_size] if own else [_sha256(tokenizer.encode())]
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
    trained = data.tokenizer in bpe.TRAINED
    return [*map(documents_at_hand, (*data.corpus, *data.heldout)), data.tokenizer if trained else of_file]


def shares(weights: tuple[float, ...], n: int) -> np.ndarray:
    """n whole things dealt out by weight: the nearest whole numbers that add up to n."""
    exact = np.array(weights) / sum(weights) * n
    counts = np.floor(exact + 1e-9).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    return counts


def _write(directory: Path, data: DataConfig, vocab_size: int, progress: Progress) -> None:
    """The files of a corpus. Streams: only held-out text stays in memory.

    Of the i-th text i.train.tokens and i.heldout.tokens, and where these are no pairs i.heldout.starts, where in them
    each id begins; tokenizer.json and corpus.json.
    """
    texts = [(name,) for name in data.corpus] if data.weights else [data.corpus]
    held_texts = [data.heldout] if data.heldout else texts
    where = f"corpus {', '.join(data.corpus)}, tokenizer {data.tokenizer}"

    def read(what: str, names: Iterable[str]) -> Iterator[tuple[int, str | TextPair]]:
        found = itertools.chain.from_iterable(documents(name) for name in names)
        for done, (key, document) in enumerate(found):
            progress(done, max(len(hashes), done), what)
            yield int(content_id(key)[:16], 16), document

    hashes, first, content = array("Q"), set(), hashlib.sha256()  # first: the smallest hash of each text
    for i, names in enumerate([*texts, *(held_texts if data.heldout else [])]):
        kinds: dict[str, set[str]] = {name: set() for name in names}
        least = None
        for name in names:
            for key, document in read("reading", [name]):
                kinds[name].add(_KINDS[type(document)])
                content.update("\0".join((str(key), *_parts(document), "")).encode())
                least = key if least is None else min(key, least)
                if i < len(texts):
                    hashes.append(key)
        if least is None and (data.weights or i >= len(texts)):
            raise InputError(f"corpus {', '.join(names)} has 0 documents: needs 1 at least")
        if i < len(texts):
            first.add(least)
        _check_kinds(kinds, data, i < len(texts))
    ids = np.unique(hashes)
    if len(ids) < (needed := 2 if data.heldout_fraction < 1 and not data.heldout else 1):
        raise InputError(
            f"corpus {', '.join(data.corpus)} has {len(ids)} documents: needs {needed} at least, one held out"
        )
    heldout_ids = max(1, round(data.heldout_fraction * len(ids)), 50 if len(ids) >= 500 else 0)
    last = ids[heldout_ids - 1]
    is_heldout = lambda key: not data.heldout and (key <= last or key in first)  # of each text one at least
    heldout = [
        sorted(item for item in read("splitting", names) if data.heldout or is_heldout(item[0])) for names in held_texts
    ]
    known = {content_id(_parts(document)[0]) for found in heldout for _, document in found}

    def training(what: str, names: Iterable[str]) -> Iterator[str | TextPair]:
        found = (document for key, document in read(what, names) if not is_heldout(key))
        return (document for document in found if content_id(_parts(document)[0]) not in known)

    for names in texts if data.heldout_fraction < 1 else ():
        if next(training("splitting", names), None) is None:
            raise InputError(
                f"corpus {', '.join(names)} has nothing left to train on: all its texts, or sources of pairs, are "
                "among the held-out ones"
            )
    if data.tokenizer in bpe.TRAINED:
        found = itertools.chain.from_iterable(training("training the tokenizer", names) for names in texts)
        whole = (document if isinstance(document, str) else document.whole for document in found)
        tokenizer = bpe.TRAINED[data.tokenizer](whole, vocab_size)
    else:
        tokenizer = bpe.load(data.tokenizer, vocab_size)
    (directory / "tokenizer.json").write_text(serialized := tokenizer.to_str(pretty=True))
    hashed = hashlib.sha256()
    of_heldout, of_train = [], []
    for i, found in enumerate(heldout):
        path = directory / f"{i}.heldout.tokens"
        of_heldout.append(_encode(path, tokenizer, (document for _, document in found), 1, hashed, where))
        if not of_heldout[i].pairs:
            tokens = np.memmap(path, _dtype(bpe.size(tokenizer)), "r")
            ends = np.flatnonzero(tokens == bpe.eos_id(tokenizer)) + 1
            _, of_id = np.unique(np.array([key for key, _ in found], np.uint64), return_index=True)
            np.concatenate([[0], ends[:-1]])[of_id].astype("<i8").tofile(directory / f"{i}.heldout.starts")
    for i, names in enumerate(texts):
        path = directory / f"{i}.train.tokens"
        of_train.append(_encode(path, tokenizer, training("tokenizing", names), 64, hashed, where))
    total = lambda of, name: sum(getattr(encoded, name) for encoded in of)
    weights = data.weights if len(of_heldout) > 1 else (1.0,)
    a_place = lambda name: sum(w * getattr(e, name) / e.tokens for w, e in zip(weights, of_heldout))
    statistics = Statistics(
        vocab_size=bpe.size(tokenizer),
        train_documents=total(of_train, "documents"),
        heldout_ids=len({key for found in heldout for key, _ in found}),
        train_tokens=total(of_train, "tokens"),
        heldout_tokens=total(of_heldout, "tokens"),
        bytes_per_token=a_place("bytes") / a_place("targets"),
        lost_share=_check(*(total(of_heldout, name) + total(of_train, name) for name in ("lost", "characters")), where),
        content_hash=content.hexdigest(),
        tokenizer_hash=_sha256(serialized.encode()),
        tokens_hash=hashed.hexdigest(),
    )
    files = {"train": [(e.tokens, e.pairs) for e in of_train], "heldout": [(e.tokens, e.pairs) for e in of_heldout]}
    write_atomically(directory / "corpus.json", json.dumps(dataclasses.asdict(statistics) | files, indent=1))


_KINDS = {str: "texts", Units: "units", TextPair: "pairs"}


def _check_kinds(kinds: dict[str, set[str]], data: DataConfig, trained: bool) -> None:
    """Of what is one text, by name. Raises InputError for several kinds, and for units of a tokenizer of text."""
    for name, found in kinds.items():
        if len(found) > 1:
            raise InputError(f"corpus {name} has lines of {' and of '.join(sorted(found))}: a file has one kind")
    if len(found := set().union(*kinds.values())) > 1:
        todo = "give data.weights, the share of each in training" if trained else "data.heldout takes one kind"
        raise InputError(f"corpus {', '.join(kinds)} has {' and '.join(sorted(found))}: {todo}")
    if found == {"units"} and data.tokenizer == "bpe":
        raise InputError(f"corpus {', '.join(kinds)} has units: give data.tokenizer = 'words', or a tokenizer.json")


def _parts(document: str | TextPair) -> tuple[str, ...]:
    return (document,) if isinstance(document, str) else document


class _Encoded(NamedTuple):
    pairs: bool
    documents: int
    tokens: int
    targets: int  # of these, the ones that are learnt
    bytes: int  # of what is learnt
    lost: int  # of these, of the documents that were decoded again
    characters: int


def _encode(
    path: Path,
    tokenizer: Tokenizer,
    found: Iterator[str | TextPair],
    every: int,
    hashed: "hashlib._Hash",
    where: str,
) -> _Encoded:
    """Writes the tokens of texts, or of pairs, an end of text after each; decodes the first 1024 again, and then one of
    `every`."""
    eos, unk, entries = bpe.eos_id(tokenizer), bpe.unk_id(tokenizer), bpe.size(tokenizer)
    first = next(found, "")
    pairs = isinstance(first, TextPair)
    found = itertools.chain([first] if first else [], found)
    counts_6 = np.zeros(6, np.int64)
    with path.open("wb") as f:
        for n, block in enumerate(iter(lambda: list(itertools.islice(found, 64)), [])):
            if pairs:
                whole, learnt = [pair.whole for pair in block], [pair.target for pair in block]
                split = encode_pairs(tokenizer, [(p.source, whole[i][len(p.source) :]) for i, p in enumerate(block)])
                ids = [context + target for context, target in split]
                marked = [[*(~i for i in context), *target, eos] for context, target in split]
                if empty := [pair for pair, (_, target) in zip(block, split) if not target]:
                    raise InputError(
                        f"{where}: after {empty[0].source!r:.40} the target {empty[0].target!r:.40} adds no token"
                    )
            else:
                whole = learnt = block
                ids = [encoding.ids for encoding in bpe.encode(tokenizer, block)]
                marked = [[*ids_T, eos] for ids_T in ids]
            tokens = np.fromiter(itertools.chain.from_iterable(marked), _dtype(entries, pairs))
            if np.count_nonzero(tokens == eos) != len(block):
                token = tokenizer.id_to_token(eos)
                raise InputError(
                    f"{where}: a text has {token} written out, and the tokenizer takes it for an end of text"
                )
            f.write(tokens.tobytes())
            hashed.update(tokens)
            again = list(zip(whole, ids, strict=True))[:: every if n >= 16 else 1]
            lost_2 = np.sum([bpe.lost(tokenizer, unk, text, ids_T) for text, ids_T in again], axis=0)
            n_targets, n_bytes = np.count_nonzero(tokens >= 0), sum(len(text.encode()) for text in learnt)
            counts_6 += (len(block), len(tokens), n_targets, n_bytes, *lost_2)
            if n == 15:  # here a share of 1 % is no accident, and most of a large corpus is still to come
                _check(*counts_6[4:], where)
    return _Encoded(pairs, *counts_6.tolist())


def _check(lost: int, characters: int, where: str) -> float:
    """The share of these characters that was lost. Raises InputError above MAX_LOST."""
    share = lost / max(1, characters)
    if share > MAX_LOST:
        raise InputError(
            f"{where}: {share:.1%} of the characters are unknown or do not come back from the tokens, "
            f"{MAX_LOST:.0%} at most may; give a tokenizer of this text, or the text that it reads"
        )
    return share


def _dtype(entries: int, pairs: bool = False) -> np.dtype:
    """Of tokens; of those of pairs, which may be negative."""
    small, large = (np.int16, np.int32) if pairs else (np.uint16, np.uint32)
    return np.dtype(small if entries <= 2 ** (16 - pairs) else large).newbyteorder("<")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(directory: Path, data: DataConfig, context: int) -> Corpus:
    found = read_json(directory / "corpus.json", _Kept, "what we keep of a corpus", f"remove {directory}")
    train, heldout = found["train"], found["heldout"]
    statistics = Statistics(**{f.name: found[f.name] for f in dataclasses.fields(Statistics)})
    rows = lambda split, files: [
        _rows(directory, f"{i}.{split}", n, pairs, statistics, data, context) for i, (n, pairs) in enumerate(files)
    ]
    if data.heldout_fraction == 1:
        trained = [np.empty((0, context + 1), np.uint16)]
    else:
        trained = [rows_RxT1 for rows_RxT1, _ in rows("train", train)]
    held = rows("heldout", heldout)
    weights = data.weights or (1.0,)
    slices, documents_, order, n_documents = [], [], [], 0
    wanted = np.maximum(1, shares(weights[: len(held)], -(-data.heldout_tokens // context)))
    there = min(1.0, *(len(rows_HxT1) / n for (rows_HxT1, _), n in zip(held, wanted)))  # all by weight, or less of all
    for (rows_HxT1, document_HxT), n in zip(held, wanted):
        H = len(rows_HxT1)
        M = max(1, round(n * there))
        row_M = np.arange(M) * H // M
        slices.append(rows_HxT1[row_M].astype(np.int32))
        order.append((np.arange(M) + 0.5) / M)
        held_MxT = document_HxT(row_M)
        known, number = np.unique(held_MxT[held_MxT >= 0], return_inverse=True)
        documents_.append(np.full(held_MxT.shape, -1, np.int32))
        documents_[-1][held_MxT >= 0] = number + n_documents
        n_documents += len(known)
    order_M = np.argsort(np.concatenate(order), kind="stable")  # the texts in turn, so that any part has its share
    files = [f"{i}.{split}" for split, of in (("heldout", heldout), ("train", train)) for i in range(len(of))]
    _verify(directory, files, statistics)
    return Corpus(
        **dataclasses.asdict(statistics),
        corpus=tuple(label(name) for name in data.corpus),
        weights=weights,
        tokenizer=directory / "tokenizer.json",
        marked=any(pairs for _, pairs in train),
        heldout_marked=any(pairs for _, pairs in heldout),
        train=tuple(trained),
        heldout_MxT1=np.concatenate(slices)[order_M],
        heldout_document_MxT=np.concatenate(documents_)[order_M],
        heldout_documents=n_documents,
    )


def _verify(directory: Path, files: list[str], statistics: Statistics) -> None:
    """Raises InputError where token files or the tokenizer are not as `_write` left them. 1.5 GB/s, once a process."""
    hashed = hashlib.sha256()
    for name in files:
        with (directory / f"{name}.tokens").open("rb") as f:
            while block := f.read(2**20):
                hashed.update(block)
    of_tokenizer = _sha256((directory / "tokenizer.json").read_bytes())
    if (hashed.hexdigest(), of_tokenizer) != (statistics.tokens_hash, statistics.tokenizer_hash):
        raise InputError(
            f"token rows or tokenizer in {directory} are not as they were written: remove it, and they are made again"
        )


def _rows(
    directory: Path, name: str, size: int, pairs: bool, statistics: Statistics, data: DataConfig, context: int
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """(rows_RxT1; document_MxT of the targets of some of them) of a token file of so many tokens; see `Corpus`."""
    split = name.rpartition(".")[2]
    if size <= (0 if pairs else context):
        raise InputError(
            f"corpus {', '.join(data.corpus)} has {size} {split} tokens in {statistics.train_documents} train and "
            f"{statistics.heldout_ids} heldout documents: a row takes model.context + 1 = {context + 1}"
        )
    path, dtype = directory / f"{name}.tokens", _dtype(statistics.vocab_size, pairs)
    if (found := os.path.getsize(path)) != size * dtype.itemsize:
        raise InputError(f"{path} has {found} bytes and should have {size * dtype.itemsize}: remove {directory}")
    tokens = np.asarray(np.memmap(path, dtype, "r"))
    if not pairs:
        starts = lambda: np.fromfile(directory / f"{name}.starts", "<i8")
        place = lambda row_M: row_M[:, None] * context + np.arange(1, context + 1)[None]
        document = lambda row_M: np.searchsorted(starts(), place(row_M), side="right") - 1
        return np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[::context], document
    lengths_P = lengths_of(tokens)
    if (longest := lengths_P.max()) > context + 1:
        at = lengths_P[: lengths_P.argmax()].sum()
        start = [i for i in (~tokens[at : at + longest]).tolist() if i >= 0]
        text = Tokenizer.from_file(str(directory / "tokenizer.json")).decode(start)
        raise InputError(
            f"corpus {', '.join(data.corpus)}: the pair of {text!r:.60} takes {longest} tokens with its end, and a row "
            f"model.context + 1 = {context + 1}: raise model.context to {longest - 1}, or leave longer pairs out"
        )
    rows_RxT1, pair_RxT1 = pack(tokens, context + 1)
    return rows_RxT1, lambda row_M: np.where(rows_RxT1[row_M] >= 0, pair_RxT1[row_M], -1)[:, 1:]
