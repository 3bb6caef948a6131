"""`jaxsat ngrams`: what it prints, and what it says of what cannot be."""

import json

import numpy as np
import pytest

from jaxsat import measure
from jaxsat.cli import main
from jaxsat.measure.measure import values

pytestmark = pytest.mark.usefixtures("home")


def test_the_rank_grows_with_the_contexts(capsys):
    argv = ["ngrams", "words.txt", "--tokenizer", "words", "--vocab-size", "16", "--n", "3", "--contexts", "5,50,1_000"]
    assert main([*argv, "--json", "--values", "3"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "--contexts 1000: the text has 100 different contexts, which are all taken" in captured.err
    assert [of["contexts"] for of in found["sizes"]] == [5, 50, 100] and found["n"] == 3 and found["tokens"] == 6000
    ranks = [of["ranks"]["5"]["value"] for of in found["sizes"]]
    assert ranks == sorted(ranks) and all(of["exact"] and len(of["singular_values"]) == 3 for of in found["sizes"])
    errors = [point["w_error"] for point in found["sizes"][-1]["w_error"]]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0
    assert main(argv) == 0
    assert "rank for 10 %" in (said := capsys.readouterr().out) and "6,000 tokens of 12 kinds" in said


def test_as_rows_of_an_experiment():
    rows = values(measure.ngrams(["words.txt"], "words", 16, 3, (5, 50)).of(), "ngrams")
    assert set(rows["step"]) == {5, 50} and set(rows["metric"]) == {
        "ngram_w_error", "ngram_rank_10", "ngram_rank_5", "ngram_rank_1",
    }  # fmt: skip
    assert np.isfinite(rows["value"]).all()


@pytest.mark.parametrize(
    "argv, problem",
    [
        ([], "name a corpus"),
        (["nowhere.txt"], "nowhere.txt"),
        (["words.txt", "--contexts", "10,many"], "--contexts 10,many: must be numbers above 0"),
        (["words.txt", "--contexts", "0"], "--contexts 0: must be numbers above 0"),
        (["words.txt", "--n", "1"], "n = 1: an n-gram has from 2 to 32 tokens"),
        (["words.txt", "--tokenizer", "nowhere.json"], "--tokenizer nowhere.json: no such file"),
        (["words.txt", "--tokenizer", "words.txt"], "is not a tokenizer.json"),
        (["words.txt", "--vocab-size", "3"], "model.vocab_size = 3"),
        (["words.txt", "--values", "-1"], "--values -1"),
    ],
)
def test_what_cannot_be_is_said(capsys, argv, problem):
    assert main(["ngrams", *argv]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1, error
