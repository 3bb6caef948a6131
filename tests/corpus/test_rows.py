import contextlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxsat.config import DataConfig, InputError
from jaxsat.corpus import Corpus, batch_at, batches, documents, prepare
from jaxsat.corpus.tokenizer import load

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
    assert (bibles.train_documents, bibles.heldout_ids) == (2278, 50)  # of 1189 chapters, in both
    assert (bibles.train_tokens, bibles.heldout_tokens) == (2926346, 131124)
    assert bibles.bytes_per_token == pytest.approx(2.64, rel=0.01) and bibles.lost_share == 0
    assert bibles.train[0].shape == ((bibles.train_tokens - 1) // 64, 65)
    assert bibles.heldout_MxT1.shape == (782, 65) and bibles.heldout_MxT1.dtype == np.int32  # 50 048 targets
    assert bibles.train[0].max() == 511 and not (bibles.train[0] == 1).any()  # no <unk>


def test_the_same_chapters_are_held_out_of_both_bibles(bibles: Corpus):
    texts = {name: {text: key for key, text in documents(name)} for name in ("bible_web", "bible_basic")}
    read = decoded(bibles, np.fromfile(bibles.tokenizer.parent / "0.heldout.tokens", "<u2"))
    modern = {texts["bible_web"][text] for text in read if text in texts["bible_web"]}
    basic = {texts["bible_basic"][text] for text in read if text in texts["bible_basic"]}
    assert modern == basic and len(modern) == bibles.heldout_ids == 50 and len(read) == 100
    train = set(decoded(bibles, stream(bibles.train[0])))
    assert not train & set(read) and len(train) > 2250


@pytest.mark.parametrize(
    ("n", "fraction", "heldout"), [(40, 0.1, 4), (499, 0.02, 10), (500, 0.02, 50), (600, 0.1, 60), (20, 0.01, 1)]
)
def test_fifty_documents_are_held_out_of_500_or_more(lines, n: int, fraction: float, heldout: int):
    corpus = prepare(lines(*(f"{story(i)} {i}" for i in range(n)), heldout_fraction=fraction), 60, 8)
    assert corpus.heldout_ids == heldout and corpus.train_documents == n - heldout


def test_the_slice_is_spread_over_all_held_out_documents(bibles: Corpus):
    assert bibles.heldout_documents == 50
    tokens = np.fromfile(bibles.tokenizer.parent / "0.heldout.tokens", "<u2")
    rows_HxT1 = np.lib.stride_tricks.sliding_window_view(tokens, 65)[::64]
    number = {row.tobytes(): i for i, row in enumerate(rows_HxT1.astype(np.int32))}
    taken = np.array([number[row.tobytes()] for row in bibles.heldout_MxT1])
    assert set(np.diff(taken)) == {2, 3} and taken[0] == 0 and len(rows_HxT1) - taken[-1] <= 3


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(20, 60), context=st.integers(1, 30), size=st.integers(1, 200), translations=st.integers(1, 3))
def test_each_target_of_the_slice_knows_its_document(tmp_path: Path, n: int, context: int, size: int, translations):
    """Against the ids themselves: each document's text is its id, over and over, and translations share an id."""
    path = tmp_path / "ids.jsonl"
    records = [{"id": i, "text": f" {i}" * (3 + i % 7 + k)} for k in range(translations) for i in range(n)]
    path.write_text("\n".join(map(json.dumps, records)))
    data = DataConfig(corpus=(str(path),), heldout_fraction=0.4, heldout_tokens=size)
    corpus = prepare(data, 120, context)
    words = Tokenizer.from_file(str(corpus.tokenizer))
    assert corpus.heldout_document_MxT.shape == (len(corpus.heldout_MxT1), context)
    assert corpus.heldout_document_MxT.dtype == np.int32
    assert 0 < len(corpus.heldout_MxT1) <= -(-size // context)
    assert set(corpus.heldout_document_MxT.flat) == set(range(corpus.heldout_documents))
    tokens = np.fromfile(corpus.tokenizer.parent / "0.heldout.tokens", "<u2")
    ends = np.flatnonzero(tokens == 0)
    said = [words.decode(part.tolist()).split() for part in np.split(tokens, ends + 1)[:-1]]
    number_N = np.repeat([int(text[0]) for text in said], np.diff(ends, prepend=-1))  # the id of each token
    rows_HxT1 = np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[::context]
    ids_HxT = np.lib.stride_tricks.sliding_window_view(number_N, context + 1)[::context, 1:]
    taken = np.arange(len(corpus.heldout_MxT1)) * len(rows_HxT1) // len(corpus.heldout_MxT1)
    assert np.array_equal(corpus.heldout_MxT1, rows_HxT1[taken])
    pairs = set(zip(ids_HxT[taken].flat, corpus.heldout_document_MxT.flat, strict=True))
    assert len(pairs) == len({i for i, _ in pairs}) == len({d for _, d in pairs}) == corpus.heldout_documents


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(12, 60), context=st.integers(1, 12), fraction=st.floats(0.01, 0.4))
def test_every_token_is_predicted_once_and_every_document_is_on_one_side(lines, n: int, context: int, fraction: float):
    texts = [story(i) for i in range(n)]
    corpus = prepare(lines(*texts, heldout_fraction=fraction), 60, context)
    train, heldout = stream(corpus.train[0]), stream(corpus.heldout_MxT1)
    assert 0 <= corpus.train_tokens - len(train) < context and 0 <= corpus.heldout_tokens - len(heldout) < context
    assert corpus.heldout_ids == max(1, round(fraction * n))
    assert corpus.train_documents + corpus.heldout_ids == n
    whole_train, whole_heldout = decoded(corpus, train)[:-1], decoded(corpus, heldout)[:-1]
    assert set(whole_train) | set(whole_heldout) <= set(texts)
    assert not set(whole_train) & set(whole_heldout) and len(set(whole_train)) == len(whole_train)


def test_equal_texts_are_on_one_side(tmp_path: Path):
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "text": story(i % 50)}) for i in range(100)))
    corpus = prepare(DataConfig(corpus=(str(path),), heldout_fraction=0.1), 60, 8)
    assert corpus.heldout_ids == 10 and corpus.train_documents == 80  # the ten others of those texts are left out
    read, heldout = decoded(corpus, stream(corpus.train[0])), decoded(corpus, stream(corpus.heldout_MxT1))
    assert not set(read) & set(heldout)


def test_bytes_per_token(lines):
    corpus = prepare(lines(*map(story, range(40))), 60, 8)
    heldout = np.fromfile(corpus.tokenizer.parent / "0.heldout.tokens", "<u2")
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
    assert np.array_equal(stream(again.train[0])[:100], stream(first.train[0])[:100])
    for other in (lines(*map(story, range(100, 141))), lines(*map(story, range(100, 140)), heldout_fraction=0.3)):
        assert prepare(other, 60, 8).tokenizer != first.tokenizer
    assert prepare(data, 50, 8).vocab_size == 50


def test_a_tokenizer_of_ones_own(lines, tmp_path: Path):
    trained = prepare(lines(*map(story, range(40))), 60, 8)
    data = lines(*map(story, range(40)), tokenizer=str(trained.tokenizer))
    given = prepare(data, 64, 8)
    assert given.vocab_size == trained.vocab_size and np.array_equal(given.train[0], trained.train[0])
    assert np.array_equal(given.heldout_MxT1, trained.heldout_MxT1)


def test_how_a_file_is_read_is_part_of_the_key(tmp_path: Path):
    """JSON lines in a .txt, by a slip: renamed, they are another corpus."""
    text = "\n".join(json.dumps({"text": story(i)}) for i in range(40))
    (tmp_path / "a.txt").write_text(text), (tmp_path / "a.jsonl").write_text(text)
    as_text, as_json = (prepare(DataConfig(corpus=(str(tmp_path / f"a.{kind}"),)), 60, 8) for kind in ("txt", "jsonl"))
    assert all(text.startswith('{"text"') for text in decoded(as_text, stream(as_text.train[0])))
    assert not any("{" in text for text in decoded(as_json, stream(as_json.train[0])))


def test_identity_is_of_the_rows_alone(lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [*map(story, range(40))]
    data = lines(*texts)
    ours = prepare(data, 60, 8).identity()
    assert json.loads(json.dumps(ours)) == ours
    assert not any(str(tmp_path) in str(value) for value in ours.values())
    assert prepare(lines(*texts, heldout_tokens=40), 60, 5).identity() | {"corpus": ours["corpus"]} == ours
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(data.corpus[0], tmp_path / "elsewhere")
    monkeypatch.setenv("JAXSAT_CACHE", str(tmp_path / "another cache"))
    assert prepare(DataConfig(corpus=(moved,)), 60, 8).identity() == ours
    others = [lines(*texts[:-1], "sun"), lines(*texts[::-1]), lines(*texts, heldout_fraction=0.2)]
    for other, vocab_size in [*((other, 60) for other in others), (data, 50)]:
        theirs = prepare(other, vocab_size, 8).identity()
        assert theirs["tokens_hash"] != ours["tokens_hash"]
    assert prepare(others[1], 60, 8).content_hash != ours["content_hash"]
    assert prepare(data, 50, 8).tokenizer_hash != ours["tokenizer_hash"]


def words(*known: str) -> Tokenizer:
    """A word-level tokenizer: <eos>, [UNK], and the words."""
    vocab = {word: i for i, word in enumerate(("<eos>", "[UNK]", *known))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_a_tokenizer_of_another_text_is_refused(lines, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    texts = [*map(story, range(40))]
    words(*WORDS).save(str(path))
    assert prepare(lines(*texts, tokenizer=str(path)), 60, 8).lost_share == 0
    words(*WORDS[1:]).save(str(path))
    with pytest.raises(InputError, match=r"\.txt, tokenizer .*tokenizer\.json: \d+\.\d% of the characters are unknown"):
        prepare(lines(*texts, tokenizer=str(path)), 60, 8)
    dropping = Tokenizer(models.BPE({"<eos>": 0, "s": 1, "t": 2, "e": 3}, []))  # no unk_token: it skips all others
    dropping.save(str(path))
    with pytest.raises(
        InputError, match=r"\d\d\.\d% of the characters are unknown or do not come back.* 1% at most may"
    ):
        prepare(lines(*texts, tokenizer=str(path)), 60, 8)


def test_the_lost_share_is_that_of_the_text(lines, tmp_path: Path):
    """Recounted: of all held-out texts, 1024 training texts, and of the others the first of 64."""
    path = tmp_path / "tokenizer.json"
    words(*WORDS).save(str(path))
    texts = [f"{story(i)} {'star' if i % 17 == 0 else 'moon'} and {story(i + 1)}" for i in range(2000)]
    corpus = prepare(lines(*texts, tokenizer=str(path), heldout_fraction=0.1), 60, 8)
    train, held = (
        decoded(corpus, np.fromfile(corpus.tokenizer.parent / f"0.{split}.tokens", "<u2"))
        for split in ("train", "heldout")
    )
    assert len(train) == corpus.train_documents == 1800 and len(held) == 200
    read = [*held, *train[:1024], *train[1024::64]]
    characters = sum(len(text.replace(" ", "").replace("[UNK]", "star")) for text in read)
    assert corpus.lost_share == 4 * sum("[UNK]" in text for text in read) / characters
    assert 0.001 < corpus.lost_share < 0.01


def test_one_strange_word_in_a_short_corpus_is_no_other_text(lines, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    words(*WORDS).save(str(path))
    texts = [*map(story, range(40))]
    texts[7] += " star"
    data = lines(*texts, tokenizer=str(path))
    assert 0 < prepare(data, 60, 8).lost_share == 4 / len("".join(texts).replace(" ", ""))


def test_a_tokenizer_of_another_text_is_refused_early(lines, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    words(*WORDS[1:]).save(str(path))
    seen = []
    with pytest.raises(InputError, match="of the characters are unknown"):
        prepare(lines(*map(story, range(3000)), tokenizer=str(path)), 60, 8, lambda *at: seen.append(at))
    assert max(done for done, _, what in seen if what == "tokenizing") < 1200


def test_a_tokenizer_that_truncates_pads_and_samples(lines, tmp_path: Path):
    plain, unsteady = tmp_path / "plain.json", tmp_path / "unsteady.json"
    texts = [*map(story, range(40))]
    shutil.copy(prepare(lines(*texts), 60, 8).tokenizer, plain)
    tokenizer = Tokenizer.from_file(str(plain))
    tokenizer.enable_truncation(4), tokenizer.enable_padding(length=50, pad_id=3)
    tokenizer.model.dropout = 0.5
    tokenizer.save(str(unsteady))
    a, b = (prepare(lines(*texts, tokenizer=str(path)), 60, 8) for path in (plain, unsteady))
    assert a.identity() | {"corpus": []} == b.identity() | {"corpus": []} and a.train_tokens > 500


@pytest.mark.parametrize("literal", ["<eos>", "<unk>", "<|endoftext|>"])
def test_markers_within_a_text_are_text(lines, literal: str):
    texts = [f"{story(i)} {literal} {story(i + 100)}" for i in range(40)]
    corpus = prepare(lines(*texts, heldout_fraction=0.25), 90, 8)
    for split, documents_ in (("train", 30), ("heldout", 10)):
        tokens = np.fromfile(corpus.tokenizer.parent / f"0.{split}.tokens", "<u2")
        assert (tokens == 0).sum() == documents_ and not (tokens == 1).any()
        tokenizer = Tokenizer.from_file(str(corpus.tokenizer))
        ends = np.flatnonzero(tokens == 0)
        found = {tokenizer.decode(part[:-1].tolist()) for part in np.split(tokens, ends + 1)[:-1]}
        assert found <= set(texts) and len(found) == documents_


def test_a_marker_that_the_tokenizer_has_as_a_word(lines, tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    words(*WORDS).save(str(path))
    texts = [*map(story, range(40)), "sun <eos> moon"]
    with pytest.raises(InputError, match="a text has <eos> written out, and the tokenizer takes it for an end of text"):
        prepare(lines(*texts, tokenizer=str(path)), 60, 8)


def test_ids_above_the_vocabulary(lines, tmp_path: Path):
    path, texts = tmp_path / "tokenizer.json", [*map(story, range(40))]
    spec = json.loads(words(*WORDS).to_str())
    spec["model"]["vocab"]["sun"] = 1000
    path.write_text(json.dumps(spec))
    with pytest.raises(InputError, match="largest id 1000: model.vocab_size must be at least 1001, and is 512"):
        prepare(lines(*texts, tokenizer=str(path)), 512, 8)
    corpus = prepare(lines(*texts, tokenizer=str(path)), 1001, 8)
    assert corpus.vocab_size == 1001 and corpus.train[0].max() == 1000
    spec["model"]["vocab"]["sun"] = 70_000
    path.write_text(json.dumps(spec))
    assert prepare(lines(*texts, tokenizer=str(path)), 70_001, 8).train[0].max() == 70_000  # no 16 bits


def test_a_cache_that_cannot_be_written(lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = lines(*map(story, range(2000)))
    monkeypatch.setenv("JAXSAT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "rows").touch()
    with pytest.raises(InputError, match=r"cannot use the cache .*/cache: Not a directory.*; set JAXSAT_CACHE to"):
        prepare(data, 60, 8)
    (tmp_path / "cache" / "rows").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # as a disk that is full
    try:
        with pytest.raises(InputError, match=r"cannot use the cache .*/cache: File too large; set JAXSAT_CACHE to"):
            prepare(data, 60, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "cache" / "rows").iterdir())


def test_a_cache_that_lost_a_part(lines):
    data = lines(*map(story, range(300, 340)))
    path = prepare(data, 60, 8).tokenizer.parent / "0.train.tokens"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"train.tokens has \d+ bytes and should have \d+: remove"):
        prepare(data, 60, 8)


@contextlib.contextmanager
def changed(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    content = path.read_bytes()
    path.write_bytes(change(content))
    try:
        yield
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["0.train.tokens", "0.heldout.tokens", "tokenizer.json"])
def test_a_cache_in_which_a_byte_is_another(lines, name):
    data = lines(*map(story, range(340, 380)))
    path = prepare(data, 60, 8).tokenizer.parent / name
    middle = path.stat().length // 2
    flipped = lambda content: content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    said = r"rows/\w+ are not as they were written: remove it, and they are made again"
    with changed(path, flipped), pytest.raises(InputError, match=said):
        prepare(data, 60, 8)


@pytest.mark.parametrize(
    "change", [lambda text: text.replace(b": 0.", b": 1."), lambda text: text[:99], lambda _: b"["]
)
def test_what_a_cache_says_of_its_rows_is_checked(lines, change):
    data = lines(*map(story, range(340, 380)))
    path = prepare(data, 60, 8).tokenizer.parent / "corpus.json"
    said = r"corpus.json is not what we keep of a corpus \(.*\): remove .*/rows/\w+$"
    with changed(path, change), pytest.raises(InputError, match=said):
        prepare(data, 60, 8)


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
    assert np.array_equal(outer.train[0], inner[0].train[0]) and outer.tokenizer == inner[0].tokenizer
    assert not list((cache / "rows").glob(".*"))


def test_all_of_a_text_may_be_held_out(lines, tmp_path):
    """By the tokenizer of another one; a document is enough."""
    tokenizer = str(prepare(lines(*map(story, range(100))), 60, 8).tokenizer)
    for texts in ([story(200)], [*map(story, range(200, 240))]):
        corpus = prepare(lines(*texts, tokenizer=tokenizer, heldout_fraction=1.0), 60, 8)
        assert len(corpus.train[0]) == corpus.train_tokens == 0 and corpus.heldout_ids == len(texts)
        ids = [load(tokenizer, 60).encode(text).ids for text in texts]
        assert corpus.heldout_tokens == sum(map(len, ids)) + len(texts)
        assert corpus.bytes_per_token == sum(map(len, texts)) / corpus.heldout_tokens
        assert len(corpus.heldout_MxT1) == (corpus.heldout_tokens - 1) // 8
        with pytest.raises(InputError, match="has 0 training rows"):
            batch_at(corpus, 0, 0, 1)
    with pytest.raises(InputError, match="has 0 documents: needs 1 at least"):
        prepare(lines("", tokenizer=tokenizer, heldout_fraction=1.0), 60, 8)


def test_too_small(lines):
    with pytest.raises(InputError, match="has 1 documents: needs 2 at least, one held out"):
        prepare(lines(story(0)), 60, 8)
    with pytest.raises(InputError, match="has 0 documents"):
        prepare(lines(""), 60, 8)
    with pytest.raises(InputError, match=r"train tokens in 11 train and 1 heldout documents: .*context \+ 1 = 301"):
        prepare(lines(*map(story, range(12))), 60, 300)
    corpus = prepare(lines(*map(story, range(12))), 60, 8)
    with pytest.raises(InputError, match=rf"has {len(corpus.train[0])} training rows of 8 .* train.batch_size = 99"):
        batches(corpus, seed=0, batch_size=99)
