"""How to spend compute: the model size and tokens of least loss at C = 6 N D FLOPs, as power laws of C.

Two of the ways of Hoffmann et al. (2022), arXiv:2203.15556: parabolas through the losses of equal FLOPs (approach 2),
and the optimum of a fitted L(N, D) (approach 3): N = G (C/6)^a, D = (C/6)^b / G.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from jaxsat.config import InputError
from jaxsat.laws.fit import Fit, Interval, expanded_quantiles

_NEEDS = ("A", "B", "alpha", "beta")


def optimum(law: Fit) -> dict[str, Interval]:
    """a = beta / (alpha + beta), b = 1 - a and G = (alpha A / beta B)^(1/(alpha + beta)) of a fitted Chinchilla law.

    With the intervals of the fit, over its resamples and extremes; one without bounds when the data admit an exponent
    that is not positive, with which there is no optimum.
    """
    return {name: _interval(law, lambda c, name=name: _abg(c)[name]) for name in ("a", "b", "G")}


def allocate(law: Fit, flops: ArrayLike) -> pd.DataFrame:
    """A budget a row: flops, the optimal N and D with low and high, and the loss there."""
    flops_C = np.atleast_1d(np.asarray(flops, np.float64))
    n_C = _interval(law, lambda c: _abg(c)["G"][:, None] * (flops_C / 6) ** _abg(c)["a"][:, None])
    table = {"flops": flops_C, "N": n_C.value, "N_low": n_C.low, "N_high": n_C.high}
    with np.errstate(divide="ignore"):
        table |= {"D": flops_C / 6 / n_C.value, "D_low": flops_C / 6 / n_C.high, "D_high": flops_C / 6 / n_C.low}
    return pd.DataFrame(table | {"loss": law.predict(N=table["N"], D=table["D"]).value})


def _abg(c: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    alpha, beta = (np.where(c[name] > 0, c[name], np.nan) for name in ("alpha", "beta"))
    a = beta / (alpha + beta)
    return {"a": a, "b": 1 - a, "G": (alpha * c["A"] / (beta * c["B"])) ** (1 / (alpha + beta))}


def _interval(law: Fit, of) -> Interval:
    missing = [name for name in _NEEDS if name not in law.constants]
    if missing:
        raise InputError(
            f"{law.form.name} has no constant {missing[0]!r}: an optimum is of a law with A, B, alpha, beta"
        )
    best = {name: np.array([law.constants[name].value]) for name in _NEEDS}
    value, samples, extremes = (of({name: c[name] for name in _NEEDS}) for c in (best, law.samples, law.extremes))
    if not np.isfinite(value).all():
        raise InputError("the fitted alpha or beta is not positive: there is no optimum")
    if np.isfinite(samples).all() and np.isfinite(extremes).all():
        value, low, high = law.interval(value[0], samples, extremes)
        return Interval(value, np.maximum(low, 0.0), high)  # all of them are positive
    shape = np.shape(value[0])
    value = value[0] if shape else float(value[0])
    return Interval(value, np.full(shape, -np.inf) if shape else -np.inf, np.full(shape, np.inf) if shape else np.inf)


@dataclass(frozen=True, eq=False)
class IsoFlop:
    optima: pd.DataFrame  # a budget a row: flops, N, low, high, D, loss
    exponent: Interval  # a of N = k C^a
    coefficient: Interval  # k
    left_out: tuple[float, ...]  # budgets without a minimum within their points


def isoflop(
    flops: ArrayLike,
    n: ArrayLike,
    loss: ArrayLike,
    *,
    nearest: int = 5,
    bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> IsoFlop:
    """A parabola in log N through the losses at each FLOP budget, and the power law through their minima.

    flops_R, n_R and loss_R: rows of equal `flops` are one budget. A parabola is the least-squares one through the
    `nearest` points of the lowest: over more decades of N losses are no parabola. (On the 15 settings of Porian et al.
    (2024) exponents are then within 0.012 of theirs on average, with all points 0.12.) Losses at one N are averaged
    first. The bootstrap resamples the residuals of the parabolas, and the budgets. A budget is left out when its lowest
    point is at its smallest or largest N, or when the parabola has no minimum between its points.

    Raises InputError: a value that is not positive, fewer than three budgets that have a minimum.
    """
    table = pd.DataFrame({"flops": flops, "n": n, "loss": loss}, dtype=np.float64)
    if not (np.isfinite(table) & (table > 0)).all(axis=None) or nearest < 4:
        raise InputError("flops, n and loss must be positive finite numbers, and nearest at least 4")
    rng, rows, log_n_FxB, left_out = np.random.default_rng(seed), [], [], []
    for budget, points in table.groupby("flops"):
        points = points.groupby("n", as_index=False)["loss"].mean()
        low = int(points["loss"].argmin())
        x_R = np.log(points["n"].to_numpy() / points["n"][low])
        chosen = np.abs(x_R).argsort(kind="stable")[:nearest]
        x_K, y_K = x_R[chosen], points["loss"].to_numpy()[chosen]
        design_Kx3 = np.vander(x_K, 3)
        solve_3xK = np.linalg.pinv(design_Kx3)
        a, b, c = solve_3xK @ y_K
        if low in (0, len(x_R) - 1) or len(x_R) < nearest or a <= 0 or not x_K.min() <= -b / (2 * a) <= x_K.max():
            left_out.append(float(budget))
            continue
        fitted_K = design_Kx3 @ (a, b, c)
        noise_K = (y_K - fitted_K) * np.sqrt(nearest / (nearest - 3))
        a_B, b_B, _ = solve_3xK @ (fitted_K + rng.choice(noise_K - noise_K.mean(), (bootstrap, nearest))).T
        at_B = np.clip(-b_B / (2 * np.where(a_B > 0, a_B, 1)), x_K.min(), x_K.max())
        at_B = np.where(a_B > 0, at_B, rng.uniform(x_K.min(), x_K.max(), bootstrap))  # no minimum: it may be anywhere
        log_n_FxB.append(np.append(-b / (2 * a), at_B) + np.log(points["n"][low]))
        rows.append((budget, c - b**2 / (4 * a)))
    if len(rows) < 3:
        without = f" ({', '.join(f'{budget:g}' for budget in left_out)} have none)" if left_out else ""
        raise InputError(f"{len(rows)} budgets have a minimum within their points: a power law needs three{without}")
    log_c_F, log_n_FxB = np.log([budget for budget, _ in rows]), np.array(log_n_FxB)
    draws_BxF = rng.integers(len(rows), size=(bootstrap, len(rows)))
    draws_BxF[np.ptp(draws_BxF, axis=1) == 0] = np.arange(len(rows))  # one budget has no slope
    everything = np.vstack([np.arange(len(rows)), draws_BxF])
    x_BxF, y_BxF = log_c_F[everything], log_n_FxB[everything, np.arange(bootstrap + 1)[:, None]]
    x0_B, y0_B = x_BxF.mean(axis=1), y_BxF.mean(axis=1)
    xc_BxF = x_BxF - x0_B[:, None]
    slope_B = (xc_BxF * y_BxF).sum(axis=1) / (xc_BxF**2).sum(axis=1)
    low, high = expanded_quantiles(level, len(rows), 2)
    interval = lambda value_B: Interval(float(value_B[0]), *map(float, np.quantile(value_B[1:], (low, high))))
    tail = (1 - level) / 2
    n_low_F, n_high_F = np.exp(np.quantile(log_n_FxB[:, 1:], (tail, 1 - tail), axis=1))
    flops_F, n_F = np.exp(log_c_F), np.exp(log_n_FxB[:, 0])
    columns = {"flops": flops_F, "N": n_F, "low": n_low_F, "high": n_high_F, "D": flops_F / (6 * n_F)}
    optima = pd.DataFrame(columns | {"loss": [loss for _, loss in rows]})
    return IsoFlop(optima, interval(slope_B), interval(np.exp(y0_B - slope_B * x0_B)), tuple(left_out))
