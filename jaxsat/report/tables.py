"""Tidy tables out of the two tables between the halves: `measurements` and `runs`.

`measurements`: one row a value, columns run, step, tokens, layer, index, metric, value.
`runs`: indexed by run id, a column per dotted configuration key, and the parameter counts.
Every function keeps only the runs given, so a part of a sweep is chosen by passing `runs[runs["part"] == "main"]`.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from jaxsat.laws import Fit, Interval


def joined(measurements: pd.DataFrame, runs: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """The finite rows of `metrics` (all when none is named) of these runs, with the runs' columns beside them.

    Adds `rank`, the largest rank the head can have, and `size`, the model's label in figures: "d = 64", or
    "L = 2, d = 64" where depths differ. Ordered by size and rank, then run, metric, step, layer, index.
    """
    rows = measurements[np.isfinite(measurements["value"])]
    if metrics:
        rows = rows[rows["metric"].isin(metrics)]
    columns = runs.drop(columns="tokens", errors="ignore").rename_axis(None)
    rows = rows.merge(columns, left_on="run", right_index=True)
    width = rows["model.width"].astype(int)
    full = np.minimum(width, rows["model.vocab_size"]) if "model.vocab_size" in rows else width
    rank = pd.to_numeric(rows["model.head_rank"]).fillna(np.inf) if "model.head_rank" in rows else np.inf
    depth = rows["model.depth"] if "model.depth" in rows else pd.Series(1, index=rows.index)
    label = "d = " + width.astype(str)
    if depth.nunique() > 1:
        label = "L = " + depth.astype(str) + ", " + label
    rows = rows.assign(**{"rank": np.minimum(full, rank).astype(int), "size": label, "model.depth": depth})
    order = ["model.width", "model.depth", "rank", "run", "metric", "step", "layer", "index"]
    return rows.sort_values(order, kind="stable", ignore_index=True)


def final_losses(measurements: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """A row a run, indexed by id: what it is, and its held-out loss (nats/token) at the last checkpoint measured.

    `lowest` is the least loss of any checkpoint and `rise_percent` = 100 (loss - lowest) / lowest: above zero when
    the run has ended above its own minimum. `tokens` are those seen by the last checkpoint.
    """
    rows = joined(measurements, runs, "heldout_loss").sort_values("tokens", kind="stable")
    by_run = rows.groupby("run")
    out = by_run.last().assign(loss=by_run["value"].last(), lowest=by_run["value"].min())
    out["rise_percent"] = 100 * (out["loss"] - out["lowest"]) / out["lowest"]
    keys = ["part", "model.width", "model.depth", "rank", "seed"]
    measured = ["tokens", "loss", "lowest", "rise_percent", "state"]
    settings = ["train.learning_rate", "train.weight_decay", "params.total", "params.nonembedding", "params.head"]
    columns = [c for c in (*keys, *measured, *settings) if c in out]
    return out[columns].sort_values([c for c in columns if c in keys], kind="stable")


def over_seeds(points: pd.DataFrame, column: str = "loss") -> pd.DataFrame:
    """Widths in rows, head ranks in columns: the mean over seeds, ± the largest distance of a seed from it."""
    cells = points.groupby(["model.width", "rank"])[column].agg(["mean", "min", "max"])
    text = [f"{m:.3f}" + (f" ± {max(b - m, m - a):.3f}" if b > a else "") for m, a, b in cells.itertuples(index=False)]
    table = pd.Series(text, index=cells.index, dtype=object).unstack("rank").fillna("")
    return table.rename(columns="r = {}".format).rename_axis(columns=None).reset_index()


def constants(fits: Mapping[str, "Fit"]) -> pd.DataFrame:
    """A row a constant of each named fit: its value, its interval, and whether it was fitted and is identified."""
    rows = []
    for name, fit in fits.items():
        for key, (value, low, high) in fit.constants.items():
            status = "held" if low == high else "unidentified" if key in fit.unidentified else "fitted"
            rows.append((name, key, value, low, high, status, fit.form.formula))
    return pd.DataFrame(rows, columns=["fit", "constant", "value", "low", "high", "status", "law"])


def predict(fit: "Fit", N: ArrayLike, D: ArrayLike, new: bool = False) -> "Interval":
    """The law's loss at N parameters and D tokens, for a law of (N, D) or of one x, which is then N. The interval is
    the curve's, or that of a new loss."""
    inputs = {"N": N, "D": D, "x": N}
    inputs = {name: np.asarray(inputs[name], np.float64) for name in fit.form.inputs}
    return fit.predict_new(**inputs) if new else fit.predict(**inputs)


def gaps(fit: "Fit", points: pd.DataFrame, held_out: Collection[str], params: str = "params.total") -> pd.DataFrame:
    """Each run of `final_losses` beside the law: `predicted`, `low`, `high` (nats/token), `gap_percent`, `in_fit`.

    gap_percent = 100 (loss - predicted) / predicted: the gap of Godey et al. 2024 (their -8 % is +8 % here: worse).
    `inside`: whether the loss lies within the interval of the prediction; `inside_new`: within that of a new loss.
    """
    expected = predict(fit, points[params], points["tokens"])
    out = points.assign(predicted=expected.value, low=expected.low, high=expected.high)
    out["gap_percent"] = 100 * (out["loss"] - out["predicted"]) / out["predicted"]
    out["in_fit"] = ~out.index.isin(list(held_out))
    out["inside"] = out["loss"].between(out["low"], out["high"])
    new = predict(fit, points[params], points["tokens"], new=True)
    out["inside_new"] = out["loss"].between(new.low, new.high)
    keep = ["model.width", "rank", "seed", params, "tokens", "loss", "predicted", "low", "high", "gap_percent"]
    return out[[c for c in [*keep, "in_fit", "inside", "inside_new"] if c in out]]


def quality(fits: Mapping[str, "Fit"], points: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a named fit: its rows, fitted constants and objective, the root mean square of its residuals, and of the
    errors of the points held out of it, in per cent, with how many of those lie within the interval of a new loss.

    `points`: the `gaps` of each fit.
    """
    rows = []
    for name, fit in fits.items():
        seen, held = (points[name][points[name]["in_fit"] == seen] for seen in (True, False))
        free = sum(c.low < c.high for c in fit.constants.values())
        errors = (np.sqrt((part["gap_percent"] ** 2).mean()) for part in (seen, held))
        rows.append((name, fit.rows, free, fit.objective, *errors, len(held), int(held["inside_new"].sum())))
    errors = ["residual_percent", "held_out_percent"]
    return pd.DataFrame(rows, columns=["fit", "rows", "fitted", "objective", *errors, "held_out", "held_out_inside"])
