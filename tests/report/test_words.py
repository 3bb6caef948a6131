import math

import numpy as np
import pandas as pd
import pytest

from jaxsat.claims import Estimate
from jaxsat.report import words

INF = math.inf


@pytest.mark.parametrize(
    "value, low, high, unit, text",
    [
        (3.33412, 3.3241, 3.3441, "nats", "3.334 [3.324, 3.344] nats"),
        (0.15, 0.02579, 0.2742, "%", "0.15 [0.03, 0.27] %"),
        (-1.4, -2.8, 1.3, "", "−1.4 [−2.8, 1.3]"),
        (12345.6, 11000.0, 14000.0, "", "12,346 [11,000, 14,000]"),
        (2.3e-7, 1.1e-7, 4e-7, "", "2.3e−7 [1.1e−7, 4e−7]"),
        (2.0, 2.0, 2.0, "", "2 [2, 2]"),
        (1.69, 0.5, INF, "nats", "1.69 [0.5, no bound] nats"),
        (1.69, -INF, 2.5, "", "1.69 [no bound, 2.5]"),
        (0.3, -INF, INF, "%", "0.3 %, without a bound on either side"),
    ],
)
def test_an_estimate_prints_the_digits_that_mean_something(value, low, high, unit, text):
    assert words.estimate(Estimate(value, low, high, unit, "mean over runs", 5)) == text


@pytest.mark.parametrize(
    "value, text",
    [(3.33412, "3.334"), (1540096, "1,540,096"), (2.3e-7, "2.3e−7"), (None, "–"), (-INF, "−∞"), (1234.5, "1,234")],
)
def test_number(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    "values, texts",
    [
        ([True, False], ["yes", "no"]),
        ([1540096, 8], ["1,540,096", "8"]),
        ([4.75, 4.7481, np.nan], ["4.750", "4.748", "–"]),
        ([-0.07768, 0.3723, 0.0], ["−0.0777", "0.3723", "0.0000"]),
        ([0.048, 0.006], ["0.048", "0.006"]),
        ([9125.4, 0.4932], ["9,125", "0.4932"]),
        ([0.5, np.inf], ["0.5", "∞"]),
        (["done", None], ["done", "–"]),
        ([0.25, "none"], ["0.25", "none"]),
    ],
)
def test_cells_of_a_column_line_up(values, texts):
    assert words.cells(pd.Series(values)) == texts


@pytest.mark.parametrize("name", ["low", "high"])
def test_an_end_that_is_no_bound_reads_as_such(name):
    assert words.cells(pd.Series([0.5, np.inf, -np.inf], name=name)) == ["0.5", "no bound", "no bound"]


@pytest.mark.parametrize(
    "column, value, text",
    [
        ("rank", 4.0, "r = 4"),
        ("train.weight_decay", 0.1, "decay 0.1"),
        ("train.warmup_steps", 30, "warmup steps 30"),
        ("tokens", 1540096, "1.54M tokens"),
        ("metric", "heldout_loss", "held-out loss"),
        ("metric", "exact_match/cogs", "exact match/cogs"),
        ("size", "d = 64", "d = 64"),
        ("model.tied_head", np.True_, "tied head: yes"),
        ("model.head_rank", "none", "rank r of the head none"),
        ("data.corpus", ("bible_web", "docs"), "bible_web + docs"),
    ],
)
def test_a_value_of_a_column_has_a_name(column, value, text):
    assert words.called(column, value) == text
