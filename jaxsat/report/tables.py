"""Tidy tables out of results and fitted laws."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxsat.results import NotMeasured, Results, at_end

if TYPE_CHECKING:
    from jaxsat.laws import Fit
    from jaxsat.laws.law import Law


def final_losses(results: Results, part: str | tuple[str, ...] = (), where: str = "") -> pd.DataFrame:
    """A row a series, indexed by its name: what it is, and its held-out loss (nats/token) at its last checkpoint.

    `lowest` is the least loss of any checkpoint. `tokens` are those seen by the last checkpoint. Raises NotMeasured.
    """
    rows = results.rows("heldout_loss", part=part, where=where).sort_values("tokens", kind="stable")
    by_series = rows.groupby("series")
    out = by_series.last().assign(loss=by_series["value"].last(), lowest=by_series["value"].min())
    keys = ["part", "model.width", "model.depth", "rank", "seed"]
    settings = ["train.learning_rate", "train.weight_decay", "params.total", "params.nonembedding", "params.head"]
    columns = [c for c in (*keys, "tokens", "epochs", "loss", "lowest", "state", *settings) if c in out]
    return out[columns].sort_values([c for c in columns if c in keys], kind="stable")


def over_seeds(results: Results, part: str | tuple[str, ...] = (), where: str = "") -> pd.DataFrame:
    """The held-out loss at the end of training: sizes in rows, head ranks in columns; the mean over seeds, ± the
    largest distance of a seed from it. Other settings that differ part the rows. Raises NotMeasured."""
    rows = at_end(with_sizes(results.rows("heldout_loss", part=part, where=where)))
    if rows.empty:
        raise NotMeasured("heldout_loss at the end of a run")
    told = ["size", "rank"] if "rank" in rows else ["size"]
    keys = [*told, *differing(rows, told, [c for c in settings(results) if c != "seed"])]
    cells = rows.groupby(keys, sort=False, dropna=False)["value"].agg(["mean", "min", "max"])
    text = [f"{m:.3f}" + (f" ± {max(b - m, m - a):.3f}" if b > a else "") for m, a, b in cells.itertuples(index=False)]
    table = pd.Series(text, index=cells.index, dtype=object, name="loss")
    if cells.index.get_level_values(told[-1]).hasnans or told == ["size"]:
        return table.reset_index()
    table = table.unstack("rank", sort=False).fillna("")
    return table[sorted(table)].rename(columns="r = {:g}".format).rename_axis(columns=None).reset_index()


def with_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Series that are no runs have their name as their `size`."""
    return rows.assign(size=rows.get("size", rows["series"]).fillna(rows["series"]))


def settings(results: Results) -> list[str]:
    """The columns of `Results.rows` that tell runs apart; and `source`, which a chart adds: the name of no run."""
    derived = {"tokens", "epochs", "state", "part", "size", "rank"}
    return ["rank", "source", *(c for c in results.runs if c not in derived and not c.startswith("params."))]


def differing(rows: pd.DataFrame, keys: list[str], columns: list[str]) -> list[str]:
    """The fewest of `columns`, in their order, that tell apart what has the same `keys`: other settings follow them."""
    found: list[str] = []
    for column in columns:
        if column in rows and column not in keys and rows[column].nunique(dropna=False) > 1:
            if rows.groupby([*keys, *found], sort=False, dropna=False)[column].nunique(dropna=False).max() > 1:
                found.append(column)
    return found


def constants(fits: Mapping[str, "Fit"]) -> pd.DataFrame:
    """A row a constant of each named fit: its value, its interval, and whether it was fitted and is identified."""
    rows = []
    for name, fit in fits.items():
        for key, (value, low, high) in fit.constants.items():
            rows.append((name, key, value, low, high, fit.status(key), fit.form.formula))
    return pd.DataFrame(rows, columns=["fit", "constant", "value", "low", "high", "status", "law"])


def residuals(law: "Law", fit: "Fit", results: Results) -> pd.DataFrame:
    """The rows of a law: what tells them apart, inputs and output, and beside them what the law says.

    That is `predicted`, `low`, `high`, `in_fit` (or held out of it), and `gap_percent` = 100 (loss - predicted) /
    predicted, the gap of Godey et al. 2024 (their -8 % is +8 % here: worse); where residuals are of the output itself,
    not of its logarithm, `gap`, the difference.
    `inside`: whether the row lies within the interval of the curve; `inside_new`: within that of a new row.
    """
    rows = law.rows(results)
    told = ("series", "size", "rank", "seed", law.groups, law.held_out, *fit.form.inputs, fit.form.output)
    told = [name for name in dict.fromkeys(told) if name in rows]
    inputs = {name: rows[name].to_numpy(np.float64) for name in fit.form.inputs}
    predicted, low, high = fit.predict(**inputs)
    _, low_new, high_new = fit.predict_new(**inputs)
    y = rows[fit.form.output]
    out = rows[told].assign(predicted=predicted, low=low, high=high, in_fit=rows.index.isin(law.seen(rows).index))
    gap = {"gap_percent": 100 * (y / predicted - 1)} if fit.scale == "log" else {"gap": y - predicted}
    return out.assign(**gap, inside=y.between(low, high), inside_new=y.between(low_new, high_new))


def quality(fits: Mapping[str, "Fit"], rows: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a named fit: its rows, fitted constants and objective, the root mean square of its residuals and of the
    errors of the rows held out of it, with their mean, and how many of those lie within the interval of a new row.

    rows: the `residuals` of each fit. Errors are in per cent, or in the output's unit for a law of the output itself.
    """
    table = []
    for name, fit in fits.items():
        gap = rows[name]["gap_percent" if fit.scale == "log" else "gap"]
        seen = rows[name]["in_fit"]
        free = len(fit.constants) - len(fit.held)
        errors = (np.sqrt((gap[seen] ** 2).mean()), np.sqrt((gap[~seen] ** 2).mean()), gap[~seen].mean())
        unit = "%" if fit.scale == "log" else fit.form.output
        inside = int(rows[name].loc[~seen, "inside_new"].sum())
        table.append((name, fit.rows, free, fit.objective, *errors, unit, int((~seen).sum()), inside))
    errors = ["residual", "held_out_error", "held_out_gap", "unit"]
    return pd.DataFrame(table, columns=["fit", "rows", "fitted", "objective", *errors, "held_out", "held_out_inside"])
