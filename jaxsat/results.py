"""What a study has found, read once and frozen: all that laws, claims and reports know.

`runs`: a row a run that the experiment asks for, indexed by its id (which is the name of its series): a column a dotted
configuration key, `params.total`, `params.nonembedding`, `params.head`, `tokens` and training `flops` of the whole run,
`epochs` of its text, `state` (done, training, waiting or diverged) and `part` (the names of its parts, with commas
between).
`measurements`: a row a number: series, step, tokens, layer, index, metric, value; finite values only.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxsat.config import InputError, unknown

if TYPE_CHECKING:
    from jaxsat.laws import Fit


class NotMeasured(Exception):
    """What a claim, a law or a chart asks for is not there (yet); the message says what."""


@dataclass(frozen=True, eq=False)
class Results:
    """The numbers of one experiment at one scale. `parts`: name -> the ids of its runs. `laws`: the fitted ones;
    `not_fitted`: of the others the reason."""

    scale: str
    runs: pd.DataFrame
    measurements: pd.DataFrame
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    laws: Mapping[str, "Fit"] = field(default_factory=dict)
    not_fitted: Mapping[str, str] = field(default_factory=dict)

    def select(self, part: str | Iterable[str] = (), where: str = "") -> pd.DataFrame:
        """The rows of `runs` that are in any of the parts (all when none is named) and satisfy `where`, a rule in the
        words of pandas' `query`, with dotted keys between backticks: "`model.width` < 64 and seed == 0". Adds `rank`,
        the largest rank that the head can have, and `size`, the model's label in figures: "d = 64", or "L = 2, d = 64"
        where depths differ.

        Raises NotMeasured for a part that the scale does not have, InputError for a column that does not exist.
        """
        parts = (part,) if isinstance(part, str) else tuple(part)
        for name in parts:
            if name not in self.parts:
                raise NotMeasured(f"part {name!r}; there are {', '.join(self.parts) or 'none'}")
        chosen = sized(self.runs)
        if parts:
            ids = {id for name in parts for id in self.parts[name]}
            chosen = chosen[chosen.index.isin(ids)]
        return satisfying(chosen, where)

    def count(self, where: str = "", part: str | Iterable[str] = ()) -> int:
        """How many runs are so, trained or not: what `needs` of a claim may ask before any training."""
        return len(self.select(part, where))

    def rows(self, *metrics: str, part: str | Iterable[str] = (), where: str = "") -> pd.DataFrame:
        """The measurements of `metrics`, with the columns of their runs beside them; `where` may name any of these. Of
        series that are no runs (`Computed`) the runs' columns are missing, and no part has them.

        Ordered by size and rank, then series, metric, step, layer, index. Raises NotMeasured when there are none.
        """
        rows = self.measurements
        if metrics:
            rows = rows[rows["metric"].isin(metrics)]
        what = ", ".join(metrics) + (f" of {part}" if part else "") + (f" where {where}" if where else "")
        if rows.empty:
            raise NotMeasured(what)
        columns = self.select(part).drop(columns="tokens", errors="ignore").rename_axis(None)
        rows = satisfying(
            rows.merge(columns, left_on="series", right_index=True, how="inner" if part else "left"), where
        )
        if rows.empty:
            raise NotMeasured(what)
        order = ["model.width", "model.depth", "rank", "series", "metric", "step", "layer", "index"]
        return rows.sort_values([key for key in order if key in rows], kind="stable", ignore_index=True)

    def last(self, metric: str, part: str | Iterable[str] = (), where: str = "") -> pd.DataFrame:
        """The rows of one metric at the last step of each run that was trained and measured to its end, and of each
        series that is no run."""
        rows = self.rows(metric, part=part, where=where)
        rows = at_end(rows)
        if rows.empty:
            raise NotMeasured(f"{metric} at the end of a run" + (f" of {part}" if part else ""))
        return rows.reset_index(drop=True)

    def curves(self, metric: str, runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Of each of `runs` that has it, the metric along training: tokens (above 0) down, `index` across."""
        rows = self.measurements
        rows = rows[rows["metric"].eq(metric) & rows["series"].isin(runs.index) & rows["tokens"].gt(0)]
        if rows.empty:
            raise NotMeasured(metric)
        if rows["layer"].nunique() > 1:
            raise InputError(f"curves of {metric!r}, which has layers: use rows")
        trained = rows.groupby("series")
        return {id: of.pivot(index="tokens", columns="index", values="value") for id, of in trained}

    def law(self, name: str) -> "Fit":
        """Raises NotMeasured when it was not fitted."""
        if name not in self.laws:
            raise NotMeasured(f"the law {name!r}")
        return self.laws[name]


def at_end(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows with their runs' columns those of the last step of each run that was trained and measured to its end, and
    of each series that is no run."""
    end = rows.groupby("series")["step"].transform("max")
    if "train.steps" in rows:
        end = rows["train.steps"].fillna(end).mask(rows["state"].eq("diverged"), -1)
    return rows[rows["step"] == end]


def satisfying(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The rows that satisfy a rule in the words of pandas' `query`; all for "". Raises InputError."""
    try:
        return table.query(rule) if rule else table
    except (pd.errors.UndefinedVariableError, SyntaxError, TypeError, ValueError) as e:
        quoted = [name for name in re.findall("`([^`]*)`", rule) if name not in table]
        names = quoted or re.findall("name '(.*)' is not defined", str(e))
        if names and any(column.startswith(f"{names[0]}.") for column in table):
            raise InputError(f"{rule!r}: dotted keys stand between backticks: `model.width` < 64") from None
        why = unknown("column", names[0], table) if names else e
        raise InputError(f"{rule!r}: {why}") from None


def sized(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with `rank` and `size` beside the configuration keys."""
    if "model.width" not in runs or "size" in runs:
        return runs
    full = runs[["model.width", "model.vocab_size"]].min(axis=1)
    if "model.head" in runs:
        full = full.mask(runs["model.head"] == "nonlinear", np.inf)
    rank = pd.to_numeric(runs["model.head_rank"]).fillna(np.inf)
    label = "d = " + runs["model.width"].astype(str)
    if runs["model.depth"].nunique() > 1:
        label = "L = " + runs["model.depth"].astype(str) + ", " + label
    return runs.assign(rank=np.minimum(full, rank).astype(int), size=label)
