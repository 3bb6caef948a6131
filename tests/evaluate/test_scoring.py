import numpy as np
import pandas as pd
import pytest
from scipy import stats
from tokenizers import Tokenizer, models

from jaxsat.config import InputError
from jaxsat.corpus import encode_pairs
from jaxsat.evaluate import items_of, score
from jaxsat.evaluate.scoring import student, summary, wilson

RNG = np.random.default_rng(0)
WORDS = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
text = lambda n: " ".join(RNG.choice(WORDS, n))
PAIRS = [{"good": text(4), "bad": text(RNG.integers(2, 8)), "group": "ab"[i % 2]} for i in range(12)]
CHOICES = [
    {"context": text(3), "options": [text(n) for n in RNG.integers(1, 6, 3)], "answer": i % 3} for i in range(12)
]


def by_hand(tokenizer, log_p, context, texts):
    """nats, tokens and bytes of each text, from the float64 oracle."""
    joint = " " if context else ""
    pairs = encode_pairs(tokenizer, [(context, joint + t) for t in texts])
    return np.array([(log_p(*pair).sum(), len(pair.continuation), len(t.encode())) for pair, t in zip(pairs, texts)]).T


def wide(scores) -> pd.DataFrame:
    """A row an item, a column a metric."""
    table = scores.table[~scores.table["metric"].str.startswith("option_")]
    return table.pivot(index="id", columns="metric", values="value")


@pytest.mark.parametrize("records", [PAIRS, CHOICES], ids=["pairs", "choices"])
def test_pairs_and_choices_are_won_by_the_likeliest_in_three_conventions(small, tokenizer, log_p, records):
    scores = score(*small, tokenizer, items_of("x", records))
    found = wide(scores)
    for i, record in enumerate(records, start=1):
        texts, answer = record.get("options") or [record["good"], record["bad"]], record.get("answer", 0)
        nats_O, tokens_O, bytes_O = by_hand(tokenizer, log_p, record.get("context", ""), texts)
        for suffix, values_O in (("", nats_O), ("_token", nats_O / tokens_O), ("_byte", nats_O / bytes_O)):
            assert found.loc[str(i), f"accuracy{suffix}"] == (values_O.argmax() == answer)
            assert found.loc[str(i), f"loglikelihood{suffix}"] == pytest.approx(values_O[answer], rel=1e-5)
        options = scores.table[scores.table["id"] == str(i)].pivot(index="index", columns="metric", values="value")
        np.testing.assert_allclose(options["option_loglikelihood"], nats_O, rtol=1e-5)
        assert options["option_tokens"].tolist() == tokens_O.tolist()
        assert options["option_bytes"].tolist() == bytes_O.tolist()
    accuracies = found[["accuracy", "accuracy_token", "accuracy_byte"]]
    assert 0 < accuracies.mean().min() and len(accuracies.T.drop_duplicates()) > 1, "the conventions differ here"


def test_what_a_model_cannot_tell_apart_is_no_pair_won_and_of_equal_options_the_first_counts(small, tokenizer):
    pair = {"good": "the sun \u00e9", "bad": "the sun \u00e8"}  # bytes that the tokenizer does not know
    choices = [{"context": "the sun", "options": ["moon", "moon"], "answer": i} for i in (0, 1)]
    found = wide(score(*small, tokenizer, items_of("x", [pair, *choices])))["accuracy"]
    assert found.tolist() == [0.0, 1.0, 0.0]


def test_a_cloze_is_won_where_greedy_decoding_writes_the_word(small, tokenizer, logits_of):
    records = [{"context": text(5), "last": word} for _ in range(20) for word in WORDS]
    found = wide(score(*small, tokenizer, items_of("x", records)))
    pairs = encode_pairs(tokenizer, [(record["context"], f" {record['last']}") for record in records])
    for i, (context, last) in enumerate(pairs, start=1):
        likeliest_T = logits_of([*context, *last][:-1])[len(context) - 1 :].argmax(-1)
        assert found.loc[str(i), "accuracy"] == (likeliest_T.tolist() == last)
    assert 0 < found["accuracy"].mean() < 0.2


def test_exact_match_is_of_what_greedy_decoding_writes_up_to_an_end(small, tokenizer, logits_of):
    """As many sources as it takes to have some after which the model ends by itself."""
    line_break, records = tokenizer.encode("\n").ids, []
    assert len(line_break) == 1
    for _ in range(60):
        source, ids = text(2), []
        (pair,) = encode_pairs(tokenizer, [(source, " sun")])
        while len(ids) < 20 and (not ids or ids[-1] not in (0, *line_break)):
            ids.append(int(logits_of([*pair.context, *ids])[-1].argmax()))
        written = tokenizer.decode(ids[:-1], skip_special_tokens=False).strip()
        if ids[-1] in (0, *line_break) and written and 1 not in ids:
            records.append({"source": source, "target": written})
    assert records
    other = [record | {"target": f"{record['target']} sun"} for record in records]
    longer = [record | {"target": f"{record['target']}\nsun"} for record in records]
    scores = score(*small, tokenizer, items_of("x", records + other + longer))
    found, n = wide(scores)["exact_match"], len(records)
    assert [found[str(i)] for i in range(1, 3 * n + 1)] == [1.0] * n + [0.0] * 2 * n
    assert [scores.written[str(i)] for i in range(1, n + 1)] == [record["target"] for record in records]


def test_groups_and_the_whole_are_summed_up_with_intervals(small, tokenizer):
    scores = score(*small, tokenizer, items_of("mine", PAIRS + CHOICES[:3]))
    found = scores.summary.set_index(["group", "metric"])
    assert list(scores.summary.columns) == ["items", "group", "n", "metric", "value", "low", "high"]
    assert set(scores.summary["items"]) == {"mine"} and scores.summary["group"].unique().tolist() == ["", "a", "b"]
    table = scores.table
    for group in ("", "a", "b"):
        for metric in ("accuracy", "accuracy_byte", "loglikelihood_token"):
            mine = table[(table["metric"] == metric) & ((group == "") | (table["group"] == group))]["value"]
            row = found.loc[group, metric]
            assert row["n"] == len(mine) == {"": 15, "a": 6, "b": 6}[group]
            assert row["value"] == pytest.approx(mine.mean()) and row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize("right, n", [(0, 3), (1, 1), (7, 10), (50, 50), (3, 1000)])
def test_the_interval_of_a_share_is_wilsons(right, n):
    interval = stats.binomtest(right, n).proportion_ci(0.9, method="wilson")
    np.testing.assert_allclose(wilson(np.arange(n) < right), interval, atol=1e-12)


def test_the_interval_of_a_mean_is_students():
    values = RNG.normal(size=9)
    np.testing.assert_allclose(student(values), stats.ttest_1samp(values, 0).confidence_interval(0.9))
    assert student(values[:1]) == (-np.inf, np.inf)


@pytest.mark.parametrize("metric, truth", [("accuracy", 0.8), ("loglikelihood", -3.0)])
def test_nine_in_ten_intervals_hold_the_truth(metric, truth):
    rng, held = np.random.default_rng(1), 0
    for _ in range(400):
        values = (rng.random(60) < truth) if metric == "accuracy" else truth + rng.normal(size=60)
        table = pd.DataFrame({"id": map(str, range(60)), "group": "", "metric": metric, "index": 0, "value": values})
        (row,) = summary("x", table.astype({"value": float})).to_dict("records")
        held += row["low"] <= truth <= row["high"]
    assert 0.86 < held / 400 < 0.95


def test_what_is_too_long_is_refused_by_name_or_cut_on_its_left(small, tokenizer, log_p):
    long = {"id": "long", "context": text(60), "options": ["sun", "the moon"], "answer": 1}
    short = {"context": text(3), "options": ["sun", "the moon"], "answer": 1}
    with pytest.raises(
        InputError, match="x, line 2: item 'long', option 0: context of .* tokens and 1 that are scored"
    ):
        score(*small, tokenizer, items_of("x", [short, long]))
    cut = score(*small, tokenizer, items_of("x", [short, long]), cut=True)
    assert cut.cut == 1 and score(*small, tokenizer, items_of("x", [short])).cut == 0
    for i, option in enumerate(long["options"]):
        (pair,) = encode_pairs(tokenizer, [(long["context"], f" {option}")])
        kept = log_p(pair.context[len(pair.continuation) - 41 :], pair.continuation).sum()
        rows = cut.table[(cut.table["id"] == "long") & (cut.table["metric"] == "option_loglikelihood")]
        assert rows["value"].iloc[i] == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize(
    "record, said",
    [
        ({"good": text(60), "bad": "sun"}, "option 0: context of 1 tokens and .*context = 40 is too short for it"),
        ({"context": "sun", "last": text(60)}, "is too short for it"),
        ({"source": "sun", "target": text(40)}, "is too short for it"),
    ],
)  # fmt: skip
def test_what_is_scored_is_never_cut(small, tokenizer, record, said):
    with pytest.raises(InputError, match=said):
        score(*small, tokenizer, items_of("x", [record]), cut=True)


def test_a_text_that_no_token_is_of_is_refused(small, tokenizer):
    silent = Tokenizer(models.BPE({"s": 0, "u": 1, "n": 2}, []))  # drops what it does not know
    with pytest.raises(InputError, match="item '1', option 1: 'x' adds no token to its context"):
        score(*small, silent, items_of("x", [{"good": "sun", "bad": "x"}]))
