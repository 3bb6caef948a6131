import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsat.config import DataConfig, InputError, Run, override, validate
from jaxsat.corpus import batch_at, documents, prepare
from jaxsat.corpus.documents import TextPair
from jaxsat.corpus.pairs import encode_pairs, lengths_of, pack
from jaxsat.corpus.tokenizer import load

NAMES, VERBS = ["ada", "ben", "cleo", "dan"], ["saw", "met", "heard"]
PAIRS = [(f"{a} {v} {b} .", f"{v} ( {a} , {b} )") for a in NAMES for b in NAMES for v in VERBS]


def write(path, rows, **data) -> DataConfig:
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return DataConfig(corpus=(str(path),), tokenizer="words", **data)


def decoded(corpus, rows):
    """(source, target) of every pair in the rows, in their order."""
    tokenizer, found = load(str(corpus.tokenizer), corpus.vocab_size), []
    for row in rows.astype(int):
        tokens = row[: len(row) - (row[::-1] >= 0).argmax()]  # without what is empty
        for pair in np.split(tokens, np.cumsum(lengths_of(tokens))[:-1]):
            text = lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=False)
            found.append((text(~pair[pair < 0]), text(pair[pair >= 0])))
    return found


def test_every_pair_is_learnt_once_with_its_end(tmp_path):
    corpus = prepare(write(tmp_path / "p.tsv", [(*pair, "kind") for pair in PAIRS]), 20, 40)
    assert corpus.marked and corpus.train[0].dtype == np.int16 and corpus.train[0].shape[1] == 41
    train, heldout = decoded(corpus, corpus.train[0]), decoded(corpus, corpus.heldout_MxT1)
    assert sorted(train + heldout) == sorted((source, f"{target} <eos>") for source, target in PAIRS)
    assert len(heldout) == corpus.heldout_ids == 1 and corpus.train_documents == len(PAIRS) - 1
    targets = [target for _, target in heldout]
    assert corpus.bytes_per_token == len(heldout[0][1].removesuffix(" <eos>")) / len(targets[0].split())
    assert ((corpus.heldout_document_MxT >= 0) == (corpus.heldout_MxT1[:, 1:] >= 0)).all()


@given(lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=60))
def test_packed_rows_hold_every_pair_whole(lengths: list[tuple[int, int]]):
    pairs = [[*(~i for i in range(5, 5 + s)), *range(5, 5 + t)] for s, t in lengths]
    tokens_N = np.array([token for pair in pairs for token in pair], np.int16)
    assert lengths_of(tokens_N).tolist() == [s + t for s, t in lengths]
    rows_RxW, pair_RxW = pack(tokens_N, 18)
    assert rows_RxW.dtype == np.int16 and ((rows_RxW == -1) == (pair_RxW == -1)).all()
    for i, pair in enumerate(pairs):
        row, at = np.argwhere(pair_RxW == i)[0]
        assert rows_RxW[row, at : at + len(pair)].tolist() == pair and (pair_RxW == i).sum() == len(pair)
    filled = (rows_RxW != -1).sum(axis=1)
    assert sorted(filled)[:2] == sorted(filled)[:1] or sum(sorted(filled)[:2]) > 18  # no two rows fit in one


def test_packing_wastes_little(shared_data):
    path = str(shared_data / "cogs_vf" / "train.tsv.gz")
    corpus = prepare(DataConfig(corpus=(path,), tokenizer="words", heldout_tokens=2000), 1000, 72)
    (rows_RxT1,) = corpus.train
    n_pairs = corpus.train_documents
    assert (rows_RxT1 == -1).mean() < 0.05 and n_pairs / len(rows_RxT1) > 3
    found = dict(decoded(corpus, rows_RxT1[:500]))
    texts = {" ".join(p.source.split()): " ".join(p.target.split()) for _, p in documents(path)}
    assert all(texts[source] == target.removesuffix(" <eos>") for source, target in found.items())


def test_a_pair_is_encoded_as_it_is_scored(tmp_path):
    """So that what was learnt is what is asked: with a space between where neither side has one."""
    data = write(tmp_path / "p.tsv", PAIRS)
    corpus = prepare(override(Run(data=data), {"data.tokenizer": "bpe"}).data, 200, 40)
    tokenizer = load(str(corpus.tokenizer), 200)
    (scored,) = encode_pairs(tokenizer, [(PAIRS[0][0], " " + PAIRS[0][1])])
    expected = [*(~i for i in scored.context), *scored.continuation, tokenizer.token_to_id("<eos>")]
    rows = np.concatenate([corpus.train[0], corpus.heldout_MxT1])
    assert any(expected == row[i : i + len(expected)].tolist() for row in rows for i in range(41))


def test_lines_say_what_they_are(tmp_path):
    path = tmp_path / "all.jsonl"
    records = [{"text": "a b"}, {"units": [3, 0, 17]}, {"source": "x", "target": "y", "id": 7}]
    path.write_text("\n".join(map(json.dumps, records)))
    assert [document for _, document in documents(str(path))] == ["a b", "3 0 17", TextPair("x", "y")]
    assert [key for key, _ in documents(str(path))][2] == "7"
    with gzip.open(tmp_path / "p.tsv.gz", "wt") as f:
        f.write("a b\tc d\n\nx\ty\tz\n")
    assert [document for _, document in documents(str(tmp_path / "p.tsv.gz"))] == [("a b", "c d"), ("x", "y")]


@pytest.mark.parametrize(
    "name, line, message",
    [
        ("p.tsv", "one column", "line 1: needs two columns with a tab between them, source and target"),
        ("p.tsv", "\ttarget", "line 1: needs two columns"),
        ("p.tsv", "source\t \tkind", "line 1: needs two columns"),
        ("p.jsonl", '{"source": "a"}', r'line 1: has source; a line is {"text": ...}, {"units": \[...\]} or {"source"'),
        ("p.jsonl", '{"source": "a", "target": 3}', 'line 1: "target" must be a text, not 3'),
        ("p.jsonl", '{"source": "a", "target": " "}', 'line 1: "target" must be a text'),
        ("p.jsonl", '{"text": "a", "units": [1]}', "line 1: has text, units; a line is"),
        ("p.jsonl", '{"units": [1, -2]}', 'line 1: "units" must be a list of integers from 0 on, not -2'),
        ("p.jsonl", '{"units": [1, true]}', "not True"),
        ("p.jsonl", '{"units": 5}', '"units" must be a list of integers from 0 on, not 5'),
        ("p.jsonl", '{"source": "\\ud800", "target": "b"}', 'line 1: "source" has half a character'),
        ("p.jsonl", "[1]", 'line 1: no "text"; a line is'),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, line, message):
    (tmp_path / name).write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        list(documents(str(tmp_path / name)))


def test_a_pair_longer_than_a_row_is_named(tmp_path):
    data = write(tmp_path / "p.tsv", [*PAIRS, ("ada saw ben and cleo .", "saw ( ada , ben and cleo )")])
    with pytest.raises(
        InputError, match=r"pair of 'ada saw ben and cleo .' takes 15 tokens with its end, .* = 14: rai"
    ):
        prepare(data, 30, 13)
    assert prepare(data, 30, 14).train[0].shape[1] == 15


def test_texts_and_pairs_together_need_weights(tmp_path):
    data = write(tmp_path / "p.tsv", PAIRS)
    (tmp_path / "t.txt").write_text("\n".join(f"{a} {b}" for a, b in PAIRS))
    both = override(Run(data=data), {"data.corpus": (*data.corpus, str(tmp_path / "t.txt"))})
    with pytest.raises(InputError, match="p.tsv, .*t.txt has pairs and texts: give data.weights"):
        prepare(both.data, 40, 20)
    mixed = validate(override(both, {"data.weights": (1, 3), "data.heldout_tokens": 100})).data
    corpus = prepare(mixed, 40, 20)
    assert corpus.marked and len(corpus.train) == 2 and corpus.train[1].dtype == np.uint16
    rows = np.concatenate([batch_at(corpus, 0, i, 10) for i in range(100)])
    of_pairs = (rows < 0).any(axis=1)
    assert of_pairs.sum() == 250 and rows[~of_pairs].min() >= 0
    documents_MxT = corpus.heldout_document_MxT
    assert set(np.unique(documents_MxT)) == {-1, *range(corpus.heldout_documents)}
    n_texts = (corpus.heldout_MxT1 >= 0).all(axis=1).sum()
    assert 0 < n_texts < len(documents_MxT)


@pytest.mark.parametrize(
    "weights, message",
    [
        ((1.0,), "as many as there are corpora"),
        ((1.0, 0.0), "at least 1 / 1000 of their sum"),
        ((5000.0, 1.0), "1 / 10"),
    ],
)
def test_weights_that_cannot_be(weights, message):
    with pytest.raises(InputError, match=message):
        validate(override(Run(), {"data.weights": weights}))


def test_a_small_text_takes_nothing_from_a_large_one(tmp_path):
    """Beside it, as without it, 2 % of the large one are held out; the slice has rows of both by weight."""
    (tmp_path / "large.txt").write_text("\n".join(f"{a} {i} {b}" for i in range(40) for a, b in PAIRS))
    large = DataConfig((str(tmp_path / "large.txt"),), "words")
    alone = prepare(large, 100, 8)
    for n in (2, 5):
        small = write(tmp_path / "small.tsv", PAIRS[:n])
        both = DataConfig((*large.corpus, *small.corpus), "words", weights=(9.0, 1.0))
        mixed = prepare(both, 100, 20)
        assert alone.train_documents <= mixed.train_documents <= alone.train_documents + n - 1
        of_pairs = (mixed.heldout_MxT1 < 0).any(axis=1)
        assert of_pairs.sum() == 1 and len(of_pairs) == 10


@pytest.mark.parametrize("heldout", [True, False])
def test_what_leaves_nothing_to_train_on_is_said(tmp_path, heldout):
    data = write(tmp_path / "p.tsv", PAIRS if heldout else [("same", str(i)) for i in range(40)])
    data = override(Run(data=data), {"data.heldout": data.corpus if heldout else ()}).data
    with pytest.raises(InputError, match="p.tsv has nothing left to train on: all its texts, or sources of pairs"):
        prepare(data, 100, 20)


def test_an_empty_part_is_named(tmp_path):
    data, empty = write(tmp_path / "p.tsv", PAIRS), write(tmp_path / "empty.tsv", [])
    for change in ({"data.heldout": empty.corpus}, {"data.corpus": data.corpus + empty.corpus, "data.weights": (1, 1)}):
        with pytest.raises(InputError, match=r"corpus [^,]*empty.tsv has 0 documents: needs 1 at least"):
            prepare(override(Run(data=data), change).data, 20, 20)


def test_lines_of_several_kinds_are_named(tmp_path):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text('{"text": "a b", "source": "a book"}\n{"units": [1, 2]}\n')
    with pytest.raises(InputError, match="a.jsonl has lines of texts and of units: a file has one kind"):
        prepare(DataConfig((str(path),), "words"), 20, 8)
    path.write_text('{"units": [1, 2]}\n{"units": [2, 1]}\n')
    other.write_text('{"text": "a b"}\n{"text": "b a"}\n')
    with pytest.raises(InputError, match="a.jsonl has units: give data.tokenizer = 'words', or a tokenizer.json"):
        prepare(DataConfig((str(path),)), 20, 8)
    with pytest.raises(InputError, match="a.jsonl, .*b.jsonl has texts and units: give data.weights"):
        prepare(DataConfig((str(path), str(other)), "words"), 20, 8)
    with pytest.raises(InputError, match="a.jsonl, .*b.jsonl has texts and units: data.heldout takes one kind"):
        prepare(DataConfig((str(path),), "words", heldout=(str(path), str(other))), 20, 8)


def test_what_is_held_out_can_be_named(tmp_path):
    """A text of its own: nothing of the corpus is lost but what is in it too."""
    data = write(tmp_path / "train.tsv", PAIRS)
    new = ("ada saw ben ben .", "saw ( ada , ben ben )")
    other = write(tmp_path / "dev.tsv", [PAIRS[3], new])
    corpus = prepare(override(Run(data=data), {"data.heldout": other.corpus}).data, 30, 40)
    assert corpus.train_documents == len(PAIRS) - 1 and corpus.heldout_ids == 2
    expected = sorted((source, f"{target} <eos>") for source, target in (PAIRS[3], new))
    assert sorted(decoded(corpus, corpus.heldout_MxT1)) == expected
    again = write(tmp_path / "dev.tsv", PAIRS[:1])
    changed = prepare(override(Run(data=data), {"data.heldout": again.corpus}).data, 30, 40)
    assert changed.identity()["content_hash"] != corpus.identity()["content_hash"]


def test_units_are_words(tmp_path):
    path = tmp_path / "units.jsonl"
    rng = np.random.default_rng(0)
    path.write_text("\n".join(json.dumps({"units": rng.integers(0, 50, 30).tolist()}) for _ in range(60)))
    data = DataConfig(corpus=(str(path),), tokenizer="words")
    corpus = prepare(data, 52, 16)
    assert corpus.vocab_size == 52 and not corpus.marked
    assert len(corpus.train[0]) == (corpus.train_tokens - 1) // 16 and corpus.train_tokens == 31 * 59
    with pytest.raises(InputError, match="model.vocab_size = 51: must be at least 52, the words and 2"):
        prepare(data, 51, 16)
