import dataclasses
import itertools
import threading
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from jaxsat.corpus import Corpus, batch_at, batches, prepare
from jaxsat.corpus.order import shuffled
from jaxsat.corpus.rows import shares

WORDS = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]


@pytest.fixture
def corpus(lines) -> Corpus:
    return prepare(lines(*(" ".join(np.random.default_rng(i).choice(WORDS, 12)) for i in range(60))), 60, 8)


def rows_seen(corpus: Corpus, seed: int, batch_size: int, first: int, count: int) -> np.ndarray:
    """The row numbers that consecutive batches hold, found by content."""
    number = {row.tobytes(): i for i, row in enumerate(corpus.train[0].astype(np.int32))}
    assert len(number) == len(corpus.train[0])
    rows = np.concatenate([batch_at(corpus, seed, i, batch_size) for i in range(first, first + count)])
    return np.array([number[row.tobytes()] for row in rows])


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_an_epoch_is_every_row_once_in_an_order_of_its_own(corpus: Corpus, batch_size: int):
    R = len(corpus.train[0])
    seen = rows_seen(corpus, 3, batch_size, 0, -(-3 * R // batch_size))[: 3 * R].reshape(3, R)
    assert (np.sort(seen, axis=1) == np.arange(R)).all()
    orders = [*seen, rows_seen(corpus, 4, 1, 0, R), np.arange(R)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).mean() < 0.1
            assert (a[1:] == b[:-1]).mean() < 0.1  # nor one shifted


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_a_batch_does_not_depend_on_the_number_of_hosts(corpus: Corpus, hosts: int):
    whole = batch_at(corpus, 5, 9, 16)
    assert whole.shape == (16, 9) and whole.dtype == np.int32
    parts = [batch_at(corpus, 5, 9, 16, slice(h * 16 // hosts, (h + 1) * 16 // hosts)) for h in range(hosts)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_batches_start_anywhere_and_stop(corpus: Corpus):
    before = threading.active_count()
    from_0 = batches(corpus, 1, 16)
    from_7 = batches(corpus, 1, 16, start=7, rows=slice(4, 12))
    expected = [next(from_0) for _ in range(30)]
    for i in range(7, 30):
        assert np.array_equal(next(from_7), expected[i][4:12])
        assert np.array_equal(batch_at(corpus, 1, i, 16), expected[i])
    far = batches(corpus, 1, 16, start=10**9)
    assert np.array_equal(next(far), batch_at(corpus, 1, 10**9, 16))
    from_0.close(), from_7.close()
    del far  # forgotten, not closed
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


@settings(deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 10**9), data=st.data())
@example(size=1, seed=0, epoch=0, data=None)
@example(size=2, seed=0, epoch=0, data=None)
def test_shuffled_is_a_permutation_that_can_be_asked_in_any_parts(size: int, seed: int, epoch: int, data):
    whole = shuffled(np.arange(size), size, seed, epoch)
    assert whole.dtype == np.int64 and np.array_equal(np.sort(whole), np.arange(size))
    places = np.arange(size)[::-1] if data is None else np.array(data.draw(st.lists(st.integers(0, size - 1))), int)
    assert np.array_equal(shuffled(places, size, seed, epoch), whole[places])


def test_shuffled_is_uniform():
    """Over seeds: every order of 4; where each place goes, and how far its successor goes, of 37."""
    orders = Counter(tuple(shuffled(np.arange(4), 4, seed, 0)) for seed in range(6000))
    assert chisquare([orders[order] for order in itertools.permutations(range(4))]).pvalue > 0.01
    rows_SxR = np.stack([shuffled(np.arange(37), 37, seed, 1) for seed in range(4000)])
    places = [chisquare(np.bincount(column, minlength=37)).pvalue for column in rows_SxR.T]
    steps = [chisquare(np.bincount(step % 37, minlength=37)[1:]).pvalue for step in np.diff(rows_SxR).T]
    assert min(places) > 0.01 / 37 and min(steps) > 0.01 / 36
    rows_ExR = np.stack([shuffled(np.arange(1000), 1000, 5, epoch) for epoch in range(50)])  # epochs of one seed
    assert np.abs(np.corrcoef(rows_ExR) - np.eye(50)).max() < 0.15
    assert np.abs(np.corrcoef(rows_ExR[:, 1:].ravel(), rows_ExR[:, :-1].ravel())[0, 1]) < 0.02


def test_shuffled_holds_no_permutation():
    """32 seeds of the 76 million rows of c4: less than a byte for every 4 rows, where each permutation was 0.3 GB."""
    tracemalloc.start()
    rows = np.stack([shuffled(np.arange(10**7, 10**7 + 4096), 76_000_003, seed, 0) for seed in range(32)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24e6 and rows.min() >= 0 and rows.max() < 76_000_003
    assert all(len(set(row)) == 4096 for row in rows.tolist())
    assert abs(rows.mean() / 76_000_003 - 0.5) < 0.005


def test_the_order_is_golden(bibles: Corpus):
    """A resumed run must see the batches it would have seen: an upgrade that changes them shows here."""
    rows = [int(np.flatnonzero((bibles.train[0] == row).all(axis=1))[0]) for row in batch_at(bibles, 0, 0, 4)]
    assert rows == [33077, 89, 41045, 8457]


@dataclasses.dataclass
class Numbered:
    """Rows that are their numbers: text t has sizes[t] rows of 1000 t + i."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def train(self):
        return tuple(1000 * t + np.arange(n, dtype=np.uint16)[:, None] + [[0, 0]] for t, n in enumerate(self.sizes))


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5), n=st.integers(0, 5000))
def test_shares_are_whole_and_near(weights: list[float], n: int):
    found = shares(tuple(weights), n)
    assert found.sum() == n and (found >= 0).all()
    assert np.abs(found - np.array(weights) / sum(weights) * n).max() < 1 + 1e-6


def test_of_each_thousand_rows_every_text_has_its_share():
    mixed = Numbered((40, 700, 3), (0.25, 0.7, 0.05))
    for seed in (0, 1):
        rows = np.concatenate([batch_at(mixed, seed, i, 50) for i in range(60)])[:, 0]
        of_block = [np.bincount(block // 1000, minlength=3) for block in np.split(rows, 3)]
        assert np.array_equal(of_block, [[250, 700, 50]] * 3)
        for t, size in enumerate(mixed.sizes):
            own = rows[rows // 1000 == t] % 1000
            epochs = own[: len(own) // size * size].reshape(-1, size)
            assert (np.sort(epochs, axis=1) == np.arange(size)).all()  # every row once before any comes again
    texts = rows // 1000
    assert 0.5 < (texts[1:] != texts[:-1]).sum() / (2 * 0.25 * 0.7 + 2 * 0.05 * 0.95) / len(texts) < 1.5  # no runs
    assert not np.array_equal(texts[:1000], texts[1000:2000])


def test_a_mixed_batch_is_a_function_of_its_place():
    mixed = Numbered((40, 700), (1.0, 3.0))
    whole = np.concatenate([batch_at(mixed, 3, i, 7) for i in range(300)])
    assert np.array_equal(batch_at(mixed, 3, 290, 7, slice(2, 5)), whole[290 * 7 + 2 : 290 * 7 + 5])
    assert np.array_equal(batch_at(mixed, 3, 2, 500), whole[1000:1500])
    assert not np.array_equal(batch_at(mixed, 4, 0, 50), whole[:50])
