import numpy as np
import pandas as pd
import pytest

from jaxsat.config import InputError
from jaxsat.measure import Computed, Measure
from jaxsat.measure.measure import MAX_UNITS, blocks, heldout, values


@pytest.mark.parametrize(
    "found, problem",
    [
        (3.0, "measure 'm' returned float: must be {metric: numbers} or a table"),
        ({"a": "high"}, "measure 'm': 'a' is 'high', which is no number or array"),
        ({"a": np.zeros((2, 2, 2))}, r"measure 'm': 'a' has shape \(2, 2, 2\): a matrix, layer x index, at most"),
        (pd.DataFrame({"metric": ["a"]}), "without the column 'value'"),
        (pd.DataFrame({"metric": ["a"], "value": [1.0], "run": ["x"]}), "an unknown column 'run'"),
        (pd.DataFrame({"metric": "a", "value": [1.0, 2.0]}), "returned two rows of metric a, layer -1, index 0"),
        (pd.DataFrame({"metric": "a", "value": [1.0, 2.0], "step": [0.5, 1.5]}), "step = 0.5 must be a whole number"),
        (pd.DataFrame({"metric": "a", "value": ["high"]}), "value = high must be a number"),
    ],
)
def test_what_a_measure_must_not_return_is_named(found, problem):
    with pytest.raises(InputError, match=problem):
        values(found, "m")


@pytest.mark.parametrize(
    "make, problem",
    [
        (lambda: Measure("", len), "needs a name and a function"),
        (lambda: Measure("m", 3), "measure 'm' of 3: needs a name and a function"),
        (lambda: Measure("m", len, at="first"), "at = 'first' must be 'every', 'last', 'best' or a tuple of steps"),
        (lambda: Measure("m", len, at=[1, 2]), r"at = \[1, 2\] must be"),
        (lambda: Measure("m", len, at=("a", -3)), r"at = \('a', -3\) must be"),
        (lambda: Computed("c", len, version=0), "version = 0 must be 1 or more"),
    ],
)
def test_a_measure_that_cannot_be_is_refused(make, problem):
    with pytest.raises(InputError, match=problem):
        make()


def test_blocks_hold_every_row_once():
    rows = np.arange(37 * 18).reshape(37, 18)
    for n_devices in (1, 3):
        cut = blocks(rows, n_devices)
        assert cut.shape[1] % n_devices == 0
        flat = cut.reshape(-1, 18)
        assert (flat[:37] == rows).all() and (flat[37:] == -1).all()


def test_neighbouring_documents_are_joined_into_a_bounded_number_of_units(tiny_corpus):
    text = heldout(tiny_corpus)
    n = tiny_corpus.heldout_documents
    assert text.n_units == n <= MAX_UNITS
    unit_MxT = np.asarray(text.unit_NxBxT).reshape(-1, tiny_corpus.heldout_document_MxT.shape[1])
    M = len(tiny_corpus.heldout_MxT1)
    assert (unit_MxT[:M] == tiny_corpus.heldout_document_MxT).all() and (unit_MxT[M:] == -1).all()


def test_tokens_stand_for_steps_where_there_are_none():
    rows = values(pd.DataFrame({"metric": "loss", "tokens": [10, 20, 30], "value": [3.0, 2.0, 1.0]}), "c")
    assert rows["step"].tolist() == [10, 20, 30]
