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
    # A small model a row: series, N, then D, loss, predicted, gap, low, high for `final_` and `best_`.
    series: pd.DataFrame
    final: Interval  # mean over the small models, at their last checkpoint
    best: Interval  # mean over the small models, each at its best checkpoint


def gaps(
    curves: pd.DataFrame,
    fitted_from: float,
    *,
    hold: Mapping[str, float] | None = None,
    groups: str = "series",
    misfit: float | None = None,
    bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> Gaps:
    """Gaps of the models with N < `fitted_from` to L(N, D) = E + A/N^alpha + B/D^beta fitted on the others.

    curves: a checkpoint a row, columns series, N (parameters), D (tokens so far), loss, and perhaps chosen_by: the loss
    on other documents, by which the best checkpoint is chosen, as the least of many noisy losses is too low. The law is
    fitted on the last checkpoint of each larger model, where its learning rate has decayed. hold: constants not fitted;
    `HOFFMANN` if None. groups: the column of what shares its misfit (the width of several seeds and budgets). misfit:
    the relative standard deviation of the loss of a group, or a model, about the law, such as 0.003: three larger
    models leave one degree of freedom, too few to tell it.

    Intervals are over the noise of the law and that of the small models, drawn alike: a size whose loss is off the law
    by no more than the larger ones' is no gap. The small models are those that there are, no sample of sizes.

    Raises InputError: a missing column, no model below `fitted_from`, or too few above it.
    """
    missing = [c for c in ("series", "N", "D", "loss", groups) if c not in curves]
    if missing:
        raise InputError(f"curves have no column {missing[0]!r}; they have {', '.join(map(str, curves.columns))}")
    chosen_by = "chosen_by" if "chosen_by" in curves else "loss"
    for column in ("N", "loss", chosen_by):
        bad = curves[~(np.isfinite(curves[column]) & (curves[column] > 0))]
        if len(bad):
            series, tokens, value = bad[["series", "D", column]].iloc[0]
            raise InputError(f"series {series!r} at D = {tokens:g} has {column} {value}: must be positive and finite")
    curves = curves.sort_values(["N", "series", "D"], ignore_index=True)
    by_series = curves.groupby("series", sort=False)
    final = by_series.tail(1).set_index("series", drop=False)
    best = curves.loc[by_series[chosen_by].idxmin()].set_index("series", drop=False)
    large = final[final["N"] >= fitted_from]
    small = final.index[final["N"] < fitted_from]
    if small.empty:
        raise InputError(f"no series has N < {fitted_from:g}: the smallest has {final['N'].min():g}")
    law = fit(
        chinchilla,
        {"N": large["N"].to_numpy(), "D": large["D"].to_numpy()},
        large["loss"].to_numpy(),
        hold=HOFFMANN if hold is None else hold,
        groups=None if groups == "series" else large[groups].to_numpy(),
        misfit=misfit,
        bootstrap=bootstrap,
        level=level,
        seed=seed,
    )

    # A stream of its own: the fit draws from `seed` itself.
    rng, (_, unit_S) = np.random.default_rng([seed, 1]), np.unique(final.loc[small, groups], return_inverse=True)
    noise_BxS = law.noise[:, None] * rng.normal(size=(bootstrap, unit_S.max() + 1))[:, unit_S]
    table, means = {"N": final.loc[small, "N"]}, {}
    for when, rows in (("final", final.loc[small]), ("best", best.loc[small])):
        loss_S = rows["loss"].to_numpy()
        curve_S, curve_BxS, curve_MxS = law.curves(N=rows["N"].to_numpy(), D=rows["D"].to_numpy())
        with np.errstate(over="ignore"):  # noise of any size: no bound
            drawn_BxS = loss_S * np.exp(noise_BxS)
        curves_ = ((loss_S, curve_S), (drawn_BxS, curve_BxS), (loss_S, curve_MxS))
        gap_S, gap_BxS, gap_MxS = (100 * (loss - curve) / curve for loss, curve in curves_)
        gap = law.interval(gap_S, gap_BxS, gap_MxS)
        columns = {"D": rows["D"], "loss": loss_S, "predicted": curve_S, "gap": gap_S, "low": gap.low, "high": gap.high}
        table |= {f"{when}_{name}": values for name, values in columns.items()}
        means[when] = law.interval(gap_S.mean(), gap_BxS.mean(axis=1), gap_MxS.mean(axis=1))
    return Gaps(law, pd.DataFrame(table, index=small).reset_index(), **means)
