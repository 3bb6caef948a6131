import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jaxsat.config import DataConfig, InputError
from jaxsat.corpus import Corpus, batch_at, batches, documents, prepare

WORDS = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]


def story(i: int) -> str:
    return " ".join(np.random.default_rng(i).choice(WORDS, 12))


def stream(rows_RxT1: np.ndarray) -> np.ndarray:
    """The tokens that rows cover, each once."""
    return np.concatenate([rows_RxT1[:1, 0], rows_RxT1[:, 1:].ravel()])


def decoded(corpus: Corpus, tokens: np.ndarray) -> list[str]:
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer))
    return [text for text in tokenizer.decode(tokens.tolist(), skip_special_tokens=False).split("<eos>") if text]


def test_the_bibles(bibles: Corpus):
    assert bibles.vocab_size == 512
    assert (bibles.train_documents, bibles.heldout_documents) == (2330, 48)  # 24 of 1189 chapters, in both
    assert (bibles.train_tokens, bibles.heldout_tokens) == (2913101, 73288)
    assert bibles.bytes_per_token == pytest.approx(2.7, rel=0.02)
    assert bibles.train_RxT1.shape == ((bibles.train_tokens - 1) // 64, 65)
    assert bibles.heldout_MxT1.shape == (782, 65) and bibles.heldout_MxT1.dtype == np.int32  # 50 048 targets
    assert bibles.train_RxT1.max() == 511 and not (bibles.train_RxT1 == 1).any()  # no <unk>


def test_the_same_chapters_are_held_out_of_both_bibles(bibles: Corpus):
    texts = {name: {text: key for key, text in documents(name)} for name in ("bible_web", "bible_basic")}
    read = decoded(bibles, stream(bibles.heldout_MxT1))[:-1]  # the last is cut
    modern = {texts["bible_web"][text] for text in read if text in texts["bible_web"]}
    basic = {texts["bible_basic"][text] for text in read if text in texts["bible_basic"]}
    assert len(modern) + len(basic) == len(read) and len(modern ^ basic) <= 1 and len(modern) > 12
    train = set(decoded(bibles, stream(bibles.train_RxT1)))
    assert not train & set(read) and len(train) > 2300


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(12, 60), context=st.integers(1, 12), fraction=st.floats(0.01, 0.4))
def test_every_token_is_predicted_once_and_every_document_is_on_one_side(lines, n: int, context: int, fraction: float):
    texts = [story(i) for i in range(n)]
    corpus = prepare(lines(*texts, heldout_fraction=fraction), 60, context)
    train, heldout = stream(corpus.train_RxT1), stream(corpus.heldout_MxT1)
    assert 0 <= corpus.train_tokens - len(train) < context and 0 <= corpus.heldout_tokens - len(heldout) < context
    assert corpus.heldout_documents == max(1, round(fraction * n))
    assert corpus.train_documents + corpus.heldout_documents == n
    whole_train, whole_heldout = decoded(corpus, train)[:-1], decoded(corpus, heldout)[:-1]
    assert set(whole_train) | set(whole_heldout) <= set(texts)
    assert not set(whole_train) & set(whole_heldout) and len(set(whole_train)) == len(whole_train)


def test_equal_texts_are_on_one_side(tmp_path: Path):
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "text": story(i % 50)}) for i in range(100)))
    corpus = prepare(DataConfig(corpus=(str(path),), heldout_fraction=0.1), 60, 8)
    assert corpus.heldout_documents == 10 and corpus.train_documents == 80  # the ten others of those texts are left out
    read, heldout = decoded(corpus, stream(corpus.train_RxT1)), decoded(corpus, stream(corpus.heldout_MxT1))
    assert not set(read) & set(heldout)


def test_bytes_per_token(lines):
    corpus = prepare(lines(*map(story, range(40))), 60, 8)
    heldout = np.fromfile(corpus.tokenizer.parent / "heldout.tokens", "<u2")
    text = decoded(corpus, heldout)
    assert corpus.bytes_per_token == sum(len(t.encode()) for t in text) / len(heldout)


def test_prepared_once_for_every_context(lines):
    data, seen = lines(*map(story, range(100, 140))), []
    first = prepare(data, 60, 8, lambda done, total, what: seen.append((done, total, what)))
    assert {what for *_, what in seen} == {"reading", "splitting", "training the tokenizer", "tokenizing"}
    assert (39, 40, "tokenizing") in seen
    seen.clear()
    again = prepare(data, 60, 5, lambda *args: seen.append(args))
    assert not seen and again.content_hash == first.content_hash
    assert np.array_equal(stream(again.train_RxT1)[:100], stream(first.train_RxT1)[:100])
    for other in (lines(*map(story, range(100, 141))), lines(*map(story, range(100, 140)), heldout_fraction=0.3)):
        assert prepare(other, 60, 8).tokenizer != first.tokenizer
    assert prepare(data, 50, 8).vocab_size == 50


def test_a_tokenizer_of_ones_own(lines, tmp_path: Path):
    trained = prepare(lines(*map(story, range(40))), 60, 8)
    data = lines(*map(story, range(40)), tokenizer=str(trained.tokenizer))
    given = prepare(data, 64, 8)
    assert given.vocab_size == trained.vocab_size and np.array_equal(given.train_RxT1, trained.train_RxT1)
    assert np.array_equal(given.heldout_MxT1, trained.heldout_MxT1)


def test_nothing_is_left_of_an_interrupted_preparation(lines, cache: Path):
    data = lines(*map(story, range(45)))

    def interrupt(done: int, total: int, what: str) -> None:
        if what == "tokenizing":
            raise KeyboardInterrupt

    before = set((cache / "rows").iterdir())
    with pytest.raises(KeyboardInterrupt):
        prepare(data, 60, 8, interrupt)
    assert set((cache / "rows").iterdir()) == before
    assert prepare(data, 60, 8).train_documents == 44


def test_two_preparing_at_once(lines, cache: Path):
    """The second starts when the first is nearly done, and finishes before it."""
    data = lines(*map(story, range(46)))
    inner = []

    def overtake(done: int, total: int, what: str) -> None:
        if what == "tokenizing" and not inner:
            inner.append(prepare(data, 60, 8))

    outer = prepare(data, 60, 8, overtake)
    assert np.array_equal(outer.train_RxT1, inner[0].train_RxT1) and outer.tokenizer == inner[0].tokenizer
    assert not list((cache / "rows").glob(".*"))


def test_too_small(lines):
    with pytest.raises(InputError, match="has 1 documents: needs 2 at least, one held out"):
        prepare(lines(story(0)), 60, 8)
    with pytest.raises(InputError, match="has 0 documents"):
        prepare(lines(""), 60, 8)
    with pytest.raises(InputError, match=r"train tokens in 11 train and 1 heldout documents: .*context \+ 1 = 301"):
        prepare(lines(*map(story, range(12))), 60, 300)
    corpus = prepare(lines(*map(story, range(12))), 60, 8)
    with pytest.raises(InputError, match=rf"has {len(corpus.train_RxT1)} training rows of 8 .* train.batch_size = 99"):
        batches(corpus, seed=0, batch_size=99)


@pytest.fixture
def corpus(lines) -> Corpus:
    return prepare(lines(*map(story, range(60))), 60, 8)


def rows_seen(corpus: Corpus, seed: int, batch_size: int, first: int, count: int) -> np.ndarray:
    """The row numbers that consecutive batches hold, found by content."""
    number = {row.tobytes(): i for i, row in enumerate(corpus.train_RxT1.astype(np.int32))}
    assert len(number) == len(corpus.train_RxT1)
    rows = np.concatenate([batch_at(corpus, seed, i, batch_size) for i in range(first, first + count)])
    return np.array([number[row.tobytes()] for row in rows])


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_an_epoch_is_every_row_once_in_an_order_of_its_own(corpus: Corpus, batch_size: int):
    R = len(corpus.train_RxT1)
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


def test_the_order_is_golden(bibles: Corpus):
    """A resumed run must see the batches it would have seen: an upgrade that changes them shows here."""
    rows = [int(np.flatnonzero((bibles.train_RxT1 == row).all(axis=1))[0]) for row in batch_at(bibles, 0, 0, 4)]
    assert rows == [5722, 39142, 32306, 24133]
