from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from jaxsat.laws.law import Law
from jaxsat.report import tables as T
from jaxsat.results import NotMeasured, Results


def test_final_losses_are_the_last_checkpoints(results):
    table = T.final_losses(results, ("main", "budget"))
    for series, row in table.sample(5, random_state=0).iterrows():  # noqa: B007 (the rule names it)
        rows = results.rows("heldout_loss").query("series == @series")
        last = rows.loc[rows["step"].idxmax()]
        assert (row["loss"], row["tokens"], row["lowest"]) == (last["value"], last["tokens"], rows["value"].min())
    assert set(table.index) == {*results.parts["main"], *results.parts["budget"]}


def test_over_seeds_shows_mean_and_range(results):
    table = T.over_seeds(results, "main").set_index("size")
    assert list(table) == [f"r = {2**k}" for k in range(1, 7)] and list(table.index) == [
        "d = 8",
        "d = 16",
        "d = 32",
        "d = 64",
    ]
    ends = results.last("heldout_loss", part="main").query("`model.width` == 16 and rank == 4")["value"]
    assert table.loc["d = 16", "r = 4"] == f"{ends.mean():.3f} ± {(ends.max() - ends.min()) / 2:.3f}"
    assert table.loc["d = 8", "r = 64"] == "" and "±" not in table.loc["d = 32", "r = 2"]


def test_over_seeds_is_over_seeds_alone(results):
    """Weight decay and learning rate are no seeds."""
    table = T.over_seeds(results, "probe")
    assert len(table) == 4 and {"train.learning_rate", "train.weight_decay"} <= {*table}
    assert not table["r = 8"].str.contains("±").any()


def test_over_seeds_of_what_has_no_rank():
    rows = [("a", s, s, -1, 0, "heldout_loss", 3.0 / s) for s in (1, 2)]
    measured = pd.DataFrame(rows, columns=["series", "step", "tokens", "layer", "index", "metric", "value"])
    table = T.over_seeds(Results("laptop", pd.DataFrame(), measured))
    assert table.to_dict("records") == [{"size": "a", "loss": "1.500"}]


def test_what_has_not_ended_is_not_at_its_end(results):
    rows, ends = results.measurements, results.runs["train.steps"]
    begun = replace(results, measurements=rows[rows["step"] < rows["series"].map(ends)])
    with pytest.raises(NotMeasured, match="at the end of a run"):
        T.over_seeds(begun)
    assert len(T.final_losses(begun)) == len(results.runs)


def test_differing_names_the_fewest_columns():
    rows = pd.DataFrame({"width": [8, 8, 16, 16], "rate": [1, 1, 2, 2], "decay": [0, 1, 0, 1], "copy": [5, 6, 5, 6]})
    assert T.differing(rows, ["width"], ["rate", "decay", "copy", "absent"]) == ["decay"]
    assert T.differing(rows, ["width", "decay"], ["rate", "copy"]) == []


def test_constants_say_which_were_held(fitted):
    fit = fitted.laws["L(N, D)"]
    table = T.constants({"small models": fit}).set_index("constant")
    assert table["value"].to_dict() == {name: c.value for name, c in fit.constants.items()}
    assert {name for name, status in table["status"].items() if status == "held"} == {"E", "B", "beta"}


def shifted(law: Law, fitted: Results, factor: float) -> Law:
    """The same law, of losses that are `factor` times what it says."""

    def rows(results: Results) -> pd.DataFrame:
        found = law.rows(results)
        return found.assign(loss=factor * fitted.laws["L(N, D)"].predict(N=found["N"], D=found["D"]).value)

    return replace(law, rows=rows)


def test_gap_is_the_percentage_above_the_law(law, fitted):
    fit = fitted.laws["L(N, D)"]
    worse = T.residuals(shifted(law, fitted, 1.08), fit, fitted)
    assert worse["gap_percent"].to_numpy() == pytest.approx(8) and not worse["inside"].any()
    assert set(worse.loc[~worse["in_fit"], "model.width"]) == {64} and worse["in_fit"].sum() == fit.rows
    assert T.residuals(shifted(law, fitted, 1.0), fit, fitted)["inside"].all()


def test_a_new_row_has_the_wider_interval(law, fitted):
    table = T.residuals(law, fitted.laws["L(N, D)"], fitted)
    assert (table["inside_new"] | ~table["inside"]).all() and table["inside_new"].sum() > table["inside"].sum()


def test_quality_counts_rows_and_measures_what_was_held_out(law, fitted):
    fit = fitted.laws["L(N, D)"]
    table = T.residuals(law, fit, fitted)
    table = table.assign(gap_percent=np.where(table["in_fit"], 1.0, [3.0, -3.0] * (len(table) // 2)))
    row = T.quality({"law": fit}, {"law": table}).iloc[0]
    assert row["rows"] == fit.rows and row["fitted"] == 2 and row["objective"] == fit.objective and row["unit"] == "%"
    assert row["residual"] == pytest.approx(1) and row["held_out_error"] == pytest.approx(3)
    assert row["held_out_gap"] == pytest.approx(0) and row["held_out"] == 2
    assert row["held_out_inside"] == table.loc[~table["in_fit"], "inside_new"].sum()
