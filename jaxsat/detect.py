"""`jaxsat detect TABLE`: which runs of a table get worse late in training."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxsat import tables
from jaxsat.claims.saturation import FEWEST, Saturation, saturation
from jaxsat.config import InputError


def detect(
    path: str, run: str | None, step: str, value: str, higher_is_better: bool = False, where: Sequence[str] = ()
) -> tuple[dict[str, Saturation], list[str]]:
    """Of each run of the table in a file, in the order in which they stand there, what `saturation` says; and what was
    taken of rows that are out of order, or of one step, in lines. `run`: None where all rows are of one. Raises
    InputError for what is wrong with the table, its columns or the rules `where`."""
    table, left_out = tables.where(tables.read(path), where)
    notes = [f"left out: {rows} rows, which are not {rule!r}" for rule, rows in left_out.items() if rows]
    names = tables.labels(table, run, "--run") if run else pd.Series(Path(path).name, table.index)
    points = pd.DataFrame(
        {
            "run": names.to_numpy(),
            "step": tables.numbers(table, step, positive=False, flag="--step"),
            "value": tables.numbers(table, value, positive=False, flag="--value"),
        }
    )
    curves = {str(name): of.drop(columns="run") for name, of in points.groupby("run", sort=False)}
    if unordered := [name for name, of in curves.items() if not of["step"].is_monotonic_increasing]:
        notes.append(f"rows of {len(unordered)} runs ({unordered[0]}) are out of order: they are taken by their steps")
    again = points[points.duplicated(["run", "step"])]
    if len(again):
        first = again.iloc[0]
        notes.append(f"{len(again)} rows are of a step that is there before (run {first['run']}, step "
                     f"{first['step']:g}): the mean of their values is taken")  # fmt: skip
    means = {name: of.groupby("step")["value"].mean() for name, of in curves.items()}
    if all(len(curve) < 2 for curve in means.values()):
        how = "" if run else ", and --run COL tells runs apart"
        raise InputError(f"{path}: no run has two steps; a curve has a row a checkpoint{how}")
    found = {name: saturation(c.index.to_numpy(), c.to_numpy(), higher_is_better) for name, c in means.items()}
    if short := [name for name, s in found.items() if np.isnan(s.low)]:
        notes.append(f"{len(short)} runs ({short[0]}) have fewer than {FEWEST} checkpoints after the first tenth of "
                     "training, which decide nothing")  # fmt: skip
    saturated = [name for name, s in found.items() if s.verdict == "saturated"]
    if saturated and all(found[name].best_step == means[name].index[0] for name in saturated):
        flag = "leave out --higher-is-better" if higher_is_better else "give --higher-is-better"
        notes.append(f"{value} is best at the first step of all that are called saturated: if it should be, {flag}")
    return found, notes


def records(found: Mapping[str, Saturation]) -> list[dict[str, Any]]:
    """For JSON; what is not known is None."""
    number = lambda x: None if np.isnan(x) else int(x) if x == int(x) and abs(x) < 2**53 else x
    keys = ("last_over_best", "low", "high")
    return [
        {"run": name, "best_step": number(s.best_step)}
        | {key: None if np.isnan(x := getattr(s, key)) else x for key in keys}
        | {"verdict": s.verdict}
        for name, s in found.items()
    ]


def frame(found: Mapping[str, Saturation]) -> pd.DataFrame:
    rows = pd.DataFrame(records(found)).astype({"best_step": str})
    return rows.assign(noise=[s.noise for s in found.values()])[[*rows.columns[:-1], "noise", "verdict"]]


def summary(found: Mapping[str, Saturation]) -> str:
    counted = Counter(s.verdict for s in found.values())
    said = ", ".join(f"{counted[word]} {word}" for word in ("saturated", "not saturated", "undecided") if counted[word])
    return f"{len(found)} runs: {said}"
