"""N-grams against a count by hand."""

from collections import Counter

import numpy as np
import pytest

from jaxsat.config import InputError
from jaxsat.corpus import ngrams

WORDS = ["sun", "moon", "sea", "and", "of"]


@pytest.fixture
def text(tmp_path):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, rng.integers(1, 40), p=[0.5, 0.2, 0.15, 0.1, 0.05])) for _ in range(300)]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    return str(path), [line.split() for line in lines]


@pytest.mark.parametrize("n, block", [(2, 1 << 22), (3, 100), (5, 7), (28, 1 << 22)])
def test_shares_are_those_of_a_count_by_hand(text, monkeypatch, n, block):
    """Of 28 tokens a context is known by its hash."""
    path, lines = text
    monkeypatch.setattr(ngrams, "BLOCK", block)
    tokenizer = ngrams.tokenizer_of("words", [path], 16)
    found = ngrams.count([path], tokenizer, n, 50)
    grams = Counter(tuple(line[i : i + n]) for line in lines for i in range(len(line) - n + 1))
    contexts = Counter()
    for gram, count in grams.items():
        contexts[gram[:-1]] += count
    assert found.contexts == len(contexts) and found.tokens == sum(map(len, lines))
    dense = found.shares_CxV.toarray()
    assert dense.shape == (min(50, len(contexts)), 7) and np.allclose(dense.sum(axis=1), 1)
    names = [tokenizer.id_to_token(i) for i in range(7)]
    for context, count in contexts.most_common(20):
        row_V = np.array([grams[*context, name] / count for name in names])
        assert np.abs(dense - row_V).max(axis=1).min() < 1e-6, context


def test_the_most_frequent_contexts_come_first(text):
    path, lines = text
    found = ngrams.count([path], ngrams.tokenizer_of("words", [path], 16), 2, 5)
    often = Counter(word for line in lines for word in line[:-1])
    more = ngrams.count([path], ngrams.tokenizer_of("words", [path], 16), 2, 2)
    np.testing.assert_array_equal(found.shares_CxV[:2].toarray(), more.shares_CxV.toarray())
    assert often.most_common(1)[0][0] == "sun"


def test_what_cannot_be_counted_is_said(text, tmp_path):
    path, _ = text
    tokenizer = ngrams.tokenizer_of("words", [path], 16)
    with pytest.raises(InputError, match="n = 1: an n-gram has from 2 to 32 tokens"):
        ngrams.count([path], tokenizer, 1, 5)
    (tmp_path / "short.txt").write_text("sun and moon")
    with pytest.raises(InputError, match="short.txt: no document has 5 tokens"):
        ngrams.count([str(tmp_path / "short.txt")], tokenizer, 5, 5)
    (tmp_path / "pairs.tsv").write_text("sun\tmoon\nsea\tsun\n")
    with pytest.raises(InputError, match="is of pairs: n-grams are of text"):
        ngrams.count([str(tmp_path / "pairs.tsv")], tokenizer, 2, 5)
