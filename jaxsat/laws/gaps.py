"""How far small models end above the law of the larger ones: the gap of Godey et al. (2024), arXiv:2404.07647.

    gap% = 100 (L_observed - L_fit(N, T)) / L_fit(N, T)

at the end of training and at the checkpoint of least loss, for each small model and on average over them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxsat.config import InputError
from jaxsat.laws.fit import Fit, Interval, fit
from jaxsat.laws.forms import chinchilla

# Held by Godey et al.: the constants of Hoffmann et al. (2022), which belong to that paper's text and tokenizer.
HOFFMANN = {"E": 1.69, "B": 410.7, "beta": 0.28}


@dataclass(frozen=True, eq=False)
class Gaps:
    """Gaps in per cent of the law's loss; positive: worse than the law."""

    law: Fit  # of the larger models
    runs: pd.DataFrame  # a small run a row: run, N, then D, loss, predicted, gap, low, high for `final_` and `best_`
    final: Interval  # mean over the small runs, at their last checkpoint
    best: Interval  # mean over the small runs, each at its checkpoint of least loss


def gaps(
    curves: pd.DataFrame,
    fitted_from: float,
    *,
    hold: Mapping[str, float] | None = None,
    bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> Gaps:
    """Gaps of the runs with N < `fitted_from` to L(N, D) = E + A/N^alpha + B/D^beta fitted on the others.

    curves: a checkpoint a row, columns run, N (parameters), D (tokens so far), loss. The law is fitted on the last
    checkpoint of each larger run, where its learning rate has decayed. hold: constants not fitted; `HOFFMANN` if None.
    Intervals are of a bootstrap over runs: of the larger ones (the law) and, for the means, of the small ones too.
    Coverage of the mean measured at level 0.9, noise 0.3 %: 0.96 to 0.97 with 6 larger models, 0.93 to 0.94 with 3.

    Raises InputError: a missing column, no run below `fitted_from`, or too few above it.
    """
    missing = [c for c in ("run", "N", "D", "loss") if c not in curves]
    if missing:
        raise InputError(f"curves have no column {missing[0]!r}; they have {', '.join(map(str, curves.columns))}")
    for column in ("N", "loss"):
        bad = curves[~(np.isfinite(curves[column]) & (curves[column] > 0))]
        if len(bad):
            run, tokens, value = bad[["run", "D", column]].iloc[0]
            raise InputError(f"run {run!r} at D = {tokens:g} has {column} {value}: must be positive and finite")
    curves = curves.sort_values(["N", "run", "D"], ignore_index=True)
    by_run = curves.groupby("run", sort=False)
    final, best = by_run.tail(1).set_index("run"), curves.loc[by_run["loss"].idxmin()].set_index("run")
    large = final[final["N"] >= fitted_from]
    small = final.index[final["N"] < fitted_from]
    if small.empty:
        raise InputError(f"no run has N < {fitted_from:g}: the smallest has {final['N'].min():g}")
    held = HOFFMANN if hold is None else hold
    inputs = {"N": large["N"].to_numpy(), "D": large["D"].to_numpy()}
    law = fit(chinchilla, inputs, large["loss"].to_numpy(), hold=held, bootstrap=bootstrap, level=level, seed=seed)

    # A stream of its own: the fit draws the larger runs from `seed` itself.
    rng = np.random.default_rng([seed, 1])
    draws_BxS = rng.multinomial(len(small), np.full(len(small), 1 / len(small)), size=bootstrap) / len(small)
    table, means = {"N": final.loc[small, "N"]}, {}
    for when, rows in (("final", final.loc[small]), ("best", best.loc[small])):
        loss_S = rows["loss"].to_numpy()
        curve_S, *_ = curves_ = law.curves(N=rows["N"].to_numpy(), D=rows["D"].to_numpy())
        gap_S, gap_BxS, gap_MxS = (100 * (loss_S - c) / c for c in curves_)
        gap = law.interval(gap_S, gap_BxS, gap_MxS)
        columns = {"D": rows["D"], "loss": loss_S, "predicted": curve_S, "gap": gap_S, "low": gap.low, "high": gap.high}
        table |= {f"{when}_{name}": values for name, values in columns.items()}
        means[when] = law.interval(gap_S.mean(), (draws_BxS * gap_BxS).sum(axis=1), gap_MxS.mean(axis=1))
    return Gaps(law, pd.DataFrame(table, index=small).reset_index(), **means)
