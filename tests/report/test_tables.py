import numpy as np
import pandas as pd
import pytest

from jaxsat.report import tables as T


@pytest.fixture(scope="module")
def points(tables):
    measurements, runs = tables
    return T.final_losses(measurements, runs[runs["part"].isin(["main", "budget"])])


def test_joined_keeps_the_chosen_runs_and_the_finite_values(tables):
    measurements, runs = tables
    broken = measurements.assign(value=measurements["value"].where(measurements["step"] != 8, np.nan))
    rows = T.joined(broken, runs[runs["part"] == "probe"], "heldout_loss")
    assert set(rows["run"]) == set(runs.index[runs["part"] == "probe"])
    assert set(rows["metric"]) == {"heldout_loss"} and 8 not in set(rows["step"])


def test_rank_is_the_largest_the_head_can_have(tables):
    measurements, runs = tables
    rows = T.joined(measurements, runs.assign(**{"model.vocab_size": 48}), "heldout_loss").groupby("run").first()
    full = rows[rows["model.head_rank"].isna()]
    assert (full["rank"] == np.minimum(full["model.width"], 48)).all()
    factored = rows[rows["model.head_rank"].notna()]
    assert (factored["rank"] == factored["model.head_rank"]).all()


def test_size_names_the_depth_only_where_it_varies(tables):
    measurements, runs = tables
    assert set(T.joined(measurements, runs)["size"]) == {"d = 8", "d = 16", "d = 32", "d = 64"}
    deeper = runs.assign(**{"model.depth": np.where(runs["model.width"] == 8, 4, 2)})
    assert "L = 4, d = 8" in set(T.joined(measurements, deeper)["size"])


def test_final_losses_are_the_last_checkpoints(tables, points):
    measurements, _ = tables
    for run, row in points.sample(5, random_state=0).iterrows():
        rows = measurements[(measurements["run"] == run) & (measurements["metric"] == "heldout_loss")]
        last = rows.loc[rows["step"].idxmax()]
        assert (row["loss"], row["tokens"], row["lowest"]) == (last["value"], last["tokens"], rows["value"].min())


def test_rise_is_above_the_lowest_checkpoint():
    runs = pd.DataFrame({"model.width": [8]}, index=["a"])
    rows = [("a", s, 1024 * s, -1, 0, "heldout_loss", v) for s, v in ((1, 5.0), (2, 4.0), (3, 4.1))]
    columns = ["run", "step", "tokens", "layer", "index", "metric", "value"]
    table = T.final_losses(pd.DataFrame(rows, columns=columns), runs)
    assert table.loc["a", "rise_percent"] == pytest.approx(2.5)


def test_over_seeds_shows_mean_and_range():
    table = T.over_seeds(pd.DataFrame({"model.width": [8, 8, 16], "rank": [2, 2, 4], "loss": [4.9, 5.0, 4.4]}))
    assert table.to_dict("records") == [
        {"model.width": 8, "r = 2": "4.950 ± 0.050", "r = 4": ""},
        {"model.width": 16, "r = 2": "", "r = 4": "4.400"},
    ]


def test_constants_say_which_were_held(law):
    fit, _, _ = law
    table = T.constants({"small models": fit}).set_index("constant")
    assert table["value"].to_dict() == {name: c.value for name, c in fit.constants.items()}
    held = {name for name, status in table["status"].items() if status == "held"}
    assert held == {"E", "B", "beta"}


def test_gap_is_the_percentage_above_the_law(law):
    fit, points, held_out = law
    expected = np.asarray(fit.predict(N=points["params.total"].to_numpy(), D=points["tokens"].to_numpy()).value)
    gaps = T.gaps(fit, points.assign(loss=1.08 * expected), held_out)
    assert gaps["gap_percent"].to_numpy() == pytest.approx(8)
    assert set(gaps.index[~gaps["in_fit"]]) == set(held_out) and not gaps["inside"].any()
    assert T.gaps(fit, points.assign(loss=expected), held_out)["inside"].all()


def test_quality_counts_rows_and_measures_what_was_held_out(law):
    fit, points, held_out = law
    expected = np.asarray(fit.predict(N=points["params.total"].to_numpy(), D=points["tokens"].to_numpy()).value)
    factor = np.where(points.index.isin(held_out), 1.03, np.where(np.arange(len(points)) % 2, 1.01, 0.99))
    gaps = T.gaps(fit, points.assign(loss=factor * expected), held_out)
    row = T.quality({"law": fit}, {"law": gaps}).iloc[0]
    assert row["rows"] == fit.rows == len(points) - 2 and row["fitted"] == 2 and row["objective"] == fit.objective
    assert row["residual_percent"] == pytest.approx(1) and row["held_out_percent"] == pytest.approx(3)
    assert row["held_out"] == 2 and row["held_out_inside"] == gaps.loc[held_out, "inside_new"].sum()


def test_a_new_loss_has_the_wider_interval(law):
    fit, points, held_out = law
    gaps = T.gaps(fit, points, held_out)
    assert (gaps["inside_new"] | ~gaps["inside"]).all() and gaps["inside_new"].sum() > gaps["inside"].sum()
