import numpy as np
import pandas as pd
import pytest

from jaxsat.report import words


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
        ("metric", "query.effective_rank", "effective rank, query"),
        ("metric", "c4/en.bits_per_byte", "bits per byte, c4/en"),
        ("size", "d = 64", "d = 64"),
        ("model.tied_head", np.True_, "tied head: yes"),
        ("model.head_rank", "none", "rank r of the head none"),
        ("data.corpus", ("bible_web", "docs"), "bible_web + docs"),
    ],
)
def test_a_value_of_a_column_has_a_name(column, value, text):
    assert words.called(column, value) == text
