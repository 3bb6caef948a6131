import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxsat.config import InputError, ModelConfig
from jaxsat.corpus import Pair, encode_pairs
from jaxsat.corpus.tokenizer import begin_ids
from jaxsat.evaluate import likelihood, log_likelihoods
from tests.evaluate.conftest import SMALL, draw, uncached_logits

RNG = np.random.default_rng(0)


def drawn(n: int) -> list[Pair]:
    sizes = RNG.integers(1, 21, (n, 2))
    return [Pair(*(RNG.integers(0, 64, size).tolist() for size in both)) for both in sizes]


@pytest.fixture(scope="module")
def pairs(log_p) -> list[Pair]:
    """Of many lengths; some continuations are what greedy decoding writes, whole or but for the last token."""
    random = drawn(30)
    greedy = []
    for context, _ in random[:4]:
        written: list[int] = []
        for _ in range(3):
            written.append(max(range(64), key=lambda i: log_p(context, [*written, i])[-1]))
        greedy += [Pair(context, written), Pair(context, [*written[:-1], (written[-1] + 1) % 64])]
    return random + greedy + [Pair([5], list(range(39))), Pair([5], [6])]


def test_log_likelihoods_are_the_sums_of_the_softmaxes(small, pairs, log_p):
    found = log_likelihoods(*small, pairs)
    expected = [log_p(*pair).sum() for pair in pairs]
    assert np.std(expected) > 10
    np.testing.assert_allclose(found.nats_N, expected, rtol=1e-5, atol=1e-5)
    assert found.greedy_N.tolist() == [False] * 30 + [True, False] * 4 + [False, log_p([5], [6])[0] > -0.1]


def test_neither_order_nor_company_nor_the_size_of_blocks_changes_anything(small, pairs, monkeypatch):
    found = log_likelihoods(*small, pairs)
    order = RNG.permutation(len(pairs))
    for block_tokens in (1024, 70):
        monkeypatch.setattr(likelihood, "BLOCK_TOKENS", block_tokens)
        shuffled = log_likelihoods(*small, [pairs[n] for n in order])
        np.testing.assert_allclose(shuffled.nats_N, found.nats_N[order], rtol=1e-5)
        np.testing.assert_array_equal(shuffled.greedy_N, found.greedy_N[order])
    alone = log_likelihoods(*small, pairs[:1])
    np.testing.assert_allclose(alone.nats_N, found.nats_N[:1], rtol=1e-5)


ALIKE = [
    *(Pair([3, 1, 4, 1, 5], option) for option in ([2, 6], [2, 6, 5], [2], [7, 2], [2, 6])),  # one is two others' begin
    *(Pair([0], rest) for rest in ([1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4], [1])),  # minimal pairs after a begin
    *(Pair([9] * 36, option) for option in ([1, 2, 3, 4, 5], [1, 2, 3, 5, 4], [1], [9, 9, 9, 9, 9])),
    *(Pair([1], [9] * 39 + [last]) for last in (8, 9)),  # as long as the context
    Pair([9], [9] * 3),
    *(Pair(RNG.integers(0, 3, a).tolist(), RNG.integers(0, 3, b).tolist()) for a, b in RNG.integers(1, 20, (60, 2))),
]


@pytest.mark.parametrize("switches, width", [
    pytest.param({"positions": "rotary", "rotary_fraction": 0.5, "kv_heads": 1}, 128, marks=pytest.mark.slow),
    pytest.param(
        {"positions": "learned", "norm": "layer", "bias": True, "parallel_residual": True}, 128, marks=pytest.mark.slow
    ),
    ({"positions": "learned"}, 16),  # tries that are wider, and some that are split
    pytest.param({"positions": "rotary", "scan_layers": True}, 128, marks=pytest.mark.slow),
])  # fmt: skip
def test_beginnings_read_once_change_nothing(switches, width, monkeypatch):
    monkeypatch.setattr(likelihood, "WIDTH", width)
    config = ModelConfig(depth=2, width=16, heads=2, context=40, vocab_size=10, **switches)
    params = draw(config)
    logits_of = uncached_logits(config, params)

    def alone(context: list[int], continuation: list[int]) -> float:
        logits_TxV = logits_of([*context, *continuation][:-1])[len(context) - 1 :]
        return log_softmax(logits_TxV, axis=1)[range(len(continuation)), continuation].sum()

    expected = [alone(*pair) for pair in ALIKE]
    assert np.std(expected) > 5
    np.testing.assert_allclose(log_likelihoods(config, params, ALIKE).nats_N, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, int]]:
    """Of the blocks that are read."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(
        likelihood, "_hidden", lambda *args, f=likelihood._hidden: found.append(args[2].shape) or f(*args)
    )
    return found


def test_few_programs_serve_all_lengths(small, shapes):
    log_likelihoods(*small, [Pair([1], [2] * n) for n in range(1, 40) for _ in range(9)])
    assert shapes == [(1, 128)], "rows that begin another row are a part of it"
    log_likelihoods(*small, [Pair([1], RNG.integers(0, 64, n).tolist()) for n in range(1, 40) for _ in range(9)])
    assert set(shapes) == {(1, 128), (8, 128)}


def test_the_context_of_a_choice_is_read_once(small, shapes):
    contexts, options = RNG.integers(0, 64, (25, 30)).tolist(), RNG.integers(0, 64, (25, 4, 6)).tolist()
    log_likelihoods(*small, [Pair(context, option) for context, four in zip(contexts, options) for option in four])
    n_rows = sum(n for n, _ in shapes)
    assert {width for _, width in shapes} == {128} and n_rows <= 16  # two of 30 + 4 x 5 tokens a row; alone 28 rows


ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40).map(tuple), min_size=1)
NESTED = ROWS.map(lambda rows: [rows[0][: len(row)] + row for row in rows])  # many that share their beginnings


@given(ROWS | NESTED.map(lambda rows: [row[:40] for row in rows]), st.sampled_from([8, 16, 128]))
def test_tries_hold_every_row_and_every_beginning_once(rows, width):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "WIDTH", width)
        tries = likelihood._tries(SMALL, rows)
        lines = likelihood._lines(SMALL, tries)
    assert sorted(n for trie in tries for n, _ in trie.columns) == list(range(len(rows)))
    for trie in tries:
        assert len(trie.tokens) <= max(width, 80)
        assert len(trie.tokens) == len({rows[n][: i + 1] for n, _ in trie.columns for i in range(len(rows[n]))})
        for n, column_T in trie.columns:
            assert tuple(trie.tokens[column] for column in column_T) == rows[n]
            path: list[int] = []  # the last node of each depth, up to the row's last
            for column, depth in enumerate(trie.depths[: column_T[-1] + 1]):
                path[depth:] = [column]
            assert path == column_T.tolist()
    laid = [trie for _, of_width in lines for line in of_width for trie in line]
    assert sorted(map(id, laid)) == sorted(map(id, tries))
    for columns, of_width in lines:
        assert all(0 < sum(len(trie.tokens) for trie in line) <= columns for line in of_width)


@given(st.integers(1, 5000))
def test_padding_is_a_third_at_most(n):
    assert n <= likelihood.padded_length(n) <= max(16, 1.5 * n)


@pytest.mark.parametrize(
    "pair, said",
    [
        (([], [1]), "context of 0 and continuation of 1 tokens: one at least"),
        (([1], []), "context of 1 and continuation of 0 tokens"),
        (([1] * 21, [2] * 21), "a pair of 42 tokens: model.context = 40 takes one more at most"),
        (([1, 64], [2]), "token id 64: the model's are 0 to 63; is this its tokenizer"),
        (([1], [-1]), "token id -1"),
    ],
)
def test_pairs_that_are_not_the_models_are_refused(small, pair, said):
    with pytest.raises(InputError, match=said):
        log_likelihoods(*small, [Pair([1], [2]), Pair(*pair)])


def with_begin(tokenizer: Tokenizer, token: str) -> Tokenizer:
    """The same tokenizer, which puts a token of its own before every text."""
    other = Tokenizer.from_str(tokenizer.to_str())
    template = processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, other.token_to_id(token))])
    other.post_processor = template
    return other


def test_the_continuation_is_what_the_whole_has_more_tokens_than_the_context(tokenizer):
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    texts = [("the sun", " and the moon"), ("the sun ", "and the moon"), ("the sun\n \n", " moon"), ("", "the sun")]
    found = encode_pairs(tokenizer, texts)
    assert found[0] == found[1] == (encode("the sun"), encode("the sun and the moon")[len(encode("the sun")) :])
    assert found[2] == (encode("the sun"), encode("the sun\n \n moon")[len(encode("the sun")) :])
    assert found[3] == ([tokenizer.token_to_id("<eos>")], encode("the sun"))
    (across,) = encode_pairs(tokenizer, [("the s", "un")])  # "the sun" has other tokens than "the s" and "un"
    assert across == (encode("the s"), encode("the sun")[len(encode("the s")) :])


def test_the_tokenizers_own_begin_token_is_put_before_a_context(tokenizer):
    own = with_begin(tokenizer, "<unk>")
    plain = encode_pairs(tokenizer, [("the sun", " shines"), ("", "the sun")])
    found = encode_pairs(own, [("the sun", " shines"), ("", "the sun")])
    assert found == [([1, *plain[0].context], plain[0].continuation), ([1], plain[1].continuation)]


def of_vocabulary(*tokens: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_text_is_scored_after_begin_else_end_of_text_else_id_0(tokenizer):
    assert begin_ids(of_vocabulary("a", "</s>", "<s>")) == [2]
    assert begin_ids(of_vocabulary("a", "b", "</s>")) == [2]
    assert begin_ids(of_vocabulary("a", "b")) == [0]
    assert begin_ids(with_begin(of_vocabulary("a", "</s>", "<s>"), "</s>")) == [1]  # as OPT's
    assert begin_ids(tokenizer) == [0]


def test_pairs_are_split_as_by_lm_eval(tokenizer):
    api = pytest.importorskip("lm_eval.api.model", reason="lm-eval is not installed: pip install 'jaxsat[lm-eval]'")
    texts = [
        (a + space, b)
        for a, b in (("the sun", "and"), ("of", " tree sea"), ("st", "one"))
        for space in ("", " ", "\n ")
    ]

    class Splitter(api.TemplateLM):
        backend, eot_token_id = "causal", 0
        _loglikelihood_tokens = loglikelihood_rolling = generate_until = None

        def tok_encode(self, string, **_):
            return self.tokenizer.encode(string).ids

    splitter = Splitter()
    for splitter.tokenizer in (tokenizer, with_begin(tokenizer, "<unk>")):
        assert encode_pairs(splitter.tokenizer, texts) == [splitter._encode_pair(*text) for text in texts]
