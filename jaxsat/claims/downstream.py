"""What a model can do at its best checkpoint against its last, item by item (Godey et al. 2024, section 3)."""

import pandas as pd

from jaxsat.claims.estimates import mean_over
from jaxsat.results import NotMeasured, Results
from jaxsat.verdicts import Estimate

ITEM = r"^(?P<items>.+)\.item\.accuracy$"
HOW = "jaxsat evaluate DIR --items FILE... --every"


def best_and_final(results: Results, runs: pd.DataFrame) -> pd.DataFrame:
    """A row an item: series, items (the set's name), index, best and final, whether it was right at the checkpoint of
    the least held-out loss and at the last one at which items were scored. Raises NotMeasured."""
    rows = results.measurements[results.measurements["series"].isin(runs.index)]
    scores = rows.assign(items=rows["metric"].str.extract(ITEM)["items"]).dropna(subset="items")
    losses = rows[rows["metric"] == "heldout_loss"]
    if scores.empty or losses.empty:
        raise NotMeasured(f"items along training, with the held-out loss: {HOW}")
    # Of the steps where both are: the best one must have been scored.
    losses = losses.merge(scores[["series", "step"]].drop_duplicates(), on=["series", "step"])
    steps = losses.loc[losses.groupby("series")["value"].idxmin()].set_index("series")["step"].rename("best").to_frame()
    steps["final"] = scores.groupby("series")["step"].max()
    steps = steps[steps["best"] < steps["final"]]
    if steps.empty:
        raise NotMeasured(f"items before the end: the best checkpoint that was scored is the last one; {HOW}")
    key, found = ["series", "items", "index"], []
    for at in ("best", "final"):
        rows_at = scores.merge(steps[at].rename("step").reset_index(), on=["series", "step"])
        found.append(rows_at.set_index(key)["value"].rename(at))
    return pd.concat(found, axis=1, join="inner").reset_index()


def downstream_loss(results: Results, runs: pd.DataFrame) -> Estimate:
    """By how many points of accuracy the last checkpoint is worse than the best; over models, or over the items where
    there are fewer than three."""
    items = best_and_final(results, runs)
    items["lost"] = 100 * (items["best"] - items["final"])
    models = items.groupby("series")["lost"].mean()
    how = "accuracy at the checkpoint of the least loss less that at the last"
    if len(models) >= 3:
        return mean_over(models, "points", f"{how}; over models")
    each = items.groupby(["items", "index"])["lost"].mean()
    return mean_over(each, "points", f"{how}; {len(models)} models, over items")


def table(results: Results, runs: pd.DataFrame) -> pd.DataFrame:
    """A row a model and set of items, in per cent, with the interval of the difference over the items."""
    found = []
    for (series, name), of in best_and_final(results, runs).groupby(["series", "items"]):
        lost = mean_over(100 * (of["best"] - of["final"]), "points", name)
        means = {at: 100 * of[at].mean() for at in ("best", "final")}
        interval = {"lost": lost.value, "low": lost.low, "high": lost.high}
        found.append({"series": series, "items": name, "n": len(of)} | means | interval)
    return pd.DataFrame(found)
