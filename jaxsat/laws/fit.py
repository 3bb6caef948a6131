"""Fits a law to a table: the robust optimum, and intervals that say when the data cannot tell.

The objective is minimised from every point of the form's grid of starts, then for every bootstrap resample.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from jaxsat.config import InputError
from jaxsat.laws.bfgs import Minima
from jaxsat.laws.forms import Form
from jaxsat.laws.noise import Noise
from jaxsat.laws.objective import checked, objective, predictions

_RUNGS, _STARTS = 24, 6  # of a profile's ladder, and at each rung; of the 4500 of Chinchilla 1 in 4 finds the optimum
_ROUGH = 10  # residuals above those of a smooth curve, from which a law is no law of these rows
_FEW = 5  # degrees of freedom: resampled groups are too sure below it (of three widths 47 % held, at level 0.9)


class Interval(NamedTuple):
    """A value, or an array, and its interval. An end of inf, -inf, or 0 if the constant is positive, is no bound."""

    value: float | np.ndarray
    low: float | np.ndarray
    high: float | np.ndarray


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law. Losses and predictions are in the unit of the loss that was fitted."""

    form: Form
    scale: str  # "log" or "linear": what residuals are of
    constants: dict[str, Interval]  # held ones too, with low = value = high
    held: tuple[str, ...]  # the constants that were not fitted
    objective: float  # sum of Huber terms
    rows: int
    finished: bool  # the search ended in a minimum, as did those of 99 % of the resamples
    roughness: float  # median residual over that of a smooth curve through the rows, or over delta where that is more
    residuals: np.ndarray  # R: log loss - log prediction, or loss - prediction
    drawn: bool  # too few groups to be resampled: losses were drawn about the law
    samples: dict[str, np.ndarray]  # name -> B: the constants of each resample, or draw
    noise: np.ndarray  # B: standard deviation of the residual of one row, or group, drawn as well as the rows tell it
    extremes: dict[str, np.ndarray]  # name -> M: fits with one constant held that the data do not reject
    level: float  # of every interval
    quantiles: tuple[float, float]  # of the resamples: the ends of every interval

    @property
    def converged(self) -> bool:
        """The search ended in minima, and not in one whose residuals are far above what a smooth curve leaves."""
        return self.finished and self.roughness <= _ROUGH

    @property
    def unidentified(self) -> tuple[str, ...]:
        """The constants with an end that is no bound, and the positive ones not known to a factor of 100."""
        return tuple(
            name
            for name, c in self.constants.items()
            if math.isinf(c.low) or math.isinf(c.high) or (self.form.positive(name) and c.high > 100 * c.low)
        )

    def status(self, name: str) -> str:
        """Of a constant: "held", "fitted", or "unidentified"."""
        return "held" if name in self.held else "unidentified" if name in self.unidentified else "fitted"

    @property
    def leans(self) -> bool:
        """Whether intervals must hold the mirror image of the draws too. Where few groups leave a constant unbounded,
        such as a floor that may be 0, draws lean away from the truth: three widths held the next in 75 %, not 90 %."""
        free = [(name, self.constants[name]) for name in self.constants if name not in self.held]
        return self.drawn and any(
            math.isinf(c.low) or math.isinf(c.high) or (self.form.positive(name) and c.low == 0) for name, c in free
        )

    @property
    def covariance(self) -> pd.DataFrame:
        """P x P, of the fitted constants over the bootstrap's resamples; of positive constants, of their logarithms."""
        free = {name: x for name, x in self.samples.items() if name not in self.held}
        return pd.DataFrame({name: np.log(x) if self.form.positive(name) else x for name, x in free.items()}).cov()

    def curves(self, **inputs: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The law at `inputs` (scalars or arrays that broadcast to S): fitted, S; resampled, B x S; extreme, M x S."""
        shape = np.broadcast_shapes(*(np.shape(v) for v in inputs.values()))
        columns = checked(self.form, {name: np.broadcast_to(v, shape) for name, v in inputs.items()})
        best = {name: np.array([c.value]) for name, c in self.constants.items()}
        curve, *others = (predictions(self.form, c, columns) for c in (best, self.samples, self.extremes))
        return curve.reshape(shape), *(c.reshape(-1, *shape) for c in others)

    def interval(self, value: ArrayLike, samples: np.ndarray, extremes: np.ndarray) -> Interval:
        """Of anything computed from `curves` or constants: the bootstrap's, widened to hold every extreme.

        Without bounds where the groups tell nothing of the noise.
        """
        if np.isinf(self.noise).any():
            ends = (np.full(np.shape(value), end) for end in (-np.inf, np.inf))
            return Interval(*(v if np.ndim(v) else float(v) for v in (value, *ends)))
        low, high = np.quantile(samples, self.quantiles, axis=0)
        if self.leans:
            low, high = np.minimum(low, 2 * value - high), np.maximum(high, 2 * value - low)
        low = np.concatenate([low[None], extremes]).min(axis=0)
        high = np.concatenate([high[None], extremes]).max(axis=0)
        return Interval(*(v if np.ndim(v) else float(v) for v in (value, low, high)))

    def predict(self, **inputs: ArrayLike) -> Interval:
        """The law at `inputs` (scalars or arrays that broadcast), with the interval of the curve, not of a new loss."""
        curves = self.curves(**inputs)
        if not self.leans:
            return self.interval(*curves)
        ends = self.interval(*map(np.log, curves))  # a mirror image of positive losses is positive
        return Interval(*(v if np.ndim(v) else float(v) for v in map(np.exp, ends)))

    def predict_new(self, **inputs: ArrayLike) -> Interval:
        """The law at `inputs` with the interval of a new loss: the curve's and the residuals', added in quadrature.

        Residuals of the rows fitted are too small by sqrt((R - P) / R). Of R the k-th smallest has k / (R + 1) of new
        ones below it.
        """
        curve, to, back = self.predict(**inputs), *((np.log, np.exp) if self.scale == "log" else (np.asarray,) * 2)
        with np.errstate(divide="ignore"):  # no bound below is a loss of 0
            value, low, high = (to(np.maximum(end, 0) if self.scale == "log" else end) for end in curve)
        tail, fitted = (1 - self.level) / 2, len(self.constants) - len(self.held)
        ends = np.quantile(self.residuals, (tail, 1 - tail), method="weibull")
        below, above = ends * math.sqrt(self.rows / (self.rows - fitted))
        low, high = value - np.hypot(value - low, below), value + np.hypot(high - value, above)
        return Interval(curve.value, *(v if np.ndim(v) else float(v) for v in (back(low), back(high))))

    def document(self, predict: Iterable[Mapping[str, float]] = ()) -> dict[str, Any]:
        """{"form", "constants": {name: {"value", "low", "high"}}, "objective", "rows", "converged", "predictions"}.

        `predict`: points, each {input: number}. An unbounded end is None.
        """
        return {
            "form": self.form.name,
            "constants": {name: _finite(c) for name, c in self.constants.items()},
            "objective": self.objective,
            "rows": self.rows,
            "converged": self.converged,
            "predictions": [{**point, **_finite(self.predict(**point))} for point in predict],
        }

    def to_json(self, predict: Iterable[Mapping[str, float]] = ()) -> str:
        return json.dumps(self.document(predict), allow_nan=False)


def fit(
    form: Form,
    inputs: Mapping[str, ArrayLike],
    loss: ArrayLike,
    *,
    hold: Mapping[str, float] | None = None,
    weights: ArrayLike | None = None,
    bootstrap: int = 1000,
    groups: ArrayLike | None = None,
    misfit: float | None = None,
    delta: float = 1e-3,
    residuals: str | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Fit:
    """Fits `form` to R rows: inputs {name: x_R} and loss_R, all positive; with linear residuals losses of any sign.

    hold: constants that are not fitted, {name: value}. weights: w_R, positive, of the rows' terms; their unit does not
    matter. groups: labels_R of what shares its misfit (the seeds and budgets of a width), so that the bootstrap draws
    whole groups, not rows. misfit: the relative standard deviation of the loss of a group, or a row, about the law,
    for tables too small to tell it; terms are then squares up to twice that. delta: where Huber terms turn linear.
    residuals: "log", of log losses, or "linear"; None: the form's own. level: of every interval. Constants that are
    shared by several families of models, or not: `by_family`.

    An interval is the bootstrap's, its percentiles expanded for few rows, widened to hold every constant's profile: it
    is held at a ladder of values, the others refitted, and the values stay whose objective rises by no more than chance
    would have it at `level` (`Noise.admits`). This finds the valleys of the objective that a bootstrap from one optimum
    cannot. A side has no bound where the interval reaches the ladder's end, a width of the grid of starts beyond it.

    Coverage measured at level 0.9, of constants and predictions beyond the rows: Chinchilla 0.90 to 0.93 with 60 rows
    and 0.95 to 1.0 with 18; E + A/x^alpha 0.91 to 0.97 with 30 and 60 and 0.96 to 0.99 with 5 and 12; A/x^alpha 0.92
    to 0.96 with 4 and 12. Noise was 0.5 %, with 18 rows 1 %.

    Too few to be resampled are groups, and rows with a `misfit`, that leave fewer than 5 degrees of freedom. Losses are
    then drawn about the law, with a size that is `misfit`, or drawn itself from what the residuals tell of it; where
    groups are no more than the constants that tell them apart, and there is no `misfit`, nothing is bounded.

    Raises InputError: an unknown constant or column, fewer rows than free constants + 1, a value that is not positive.
    """
    o = objective(form, inputs, loss, hold, delta, residuals)
    rows, n_free = len(o.target_R), len(o.free)
    weights_R = row_weights(weights, rows)
    unit = weights_R.mean()
    weights_R = weights_R / unit
    if not 0 < level < 1:
        raise InputError(f"level = {level}: must be between 0 and 1, such as 0.9")
    if misfit is not None and not 0 < misfit < 1:
        raise InputError(f"misfit = {misfit}: must be between 0 and 1, such as 0.003 for 0.3 %")
    fewest = math.ceil(round(2 / (1 - level), 6))
    if bootstrap < fewest:
        raise InputError(f"bootstrap = {bootstrap}: an interval of level {level} needs at least {fewest}")
    rng, unit_R = np.random.default_rng(seed), _units(rows, groups)
    n_units = unit_R.max() + 1
    few = n_units - n_free < _FEW and not (groups is None and misfit is None)
    if few and misfit is not None:
        size_of_one = 1.0 if o.scale == "log" else float(np.median(np.abs(o.target_R)))
        o = replace(o, delta=max(delta, 2 * misfit * size_of_one))
    counts_BxU = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=bootstrap)
    drawn_BxR = np.ones((bootstrap, rows)) if few else counts_BxU[:, unit_R].astype(float)
    weights_TxR = weights_R * np.vstack([np.ones(rows), drawn_BxR])
    size = max(len(o.grid_SxP), bootstrap + 1, n_free * _RUNGS * _STARTS)
    fine = o.minima_from_grid(weights_TxR, size)
    every, problems = np.ones(n_free, bool), np.arange(bootstrap + 1)
    for _ in range(_RUNGS):
        best_P, least = fine.x_KxP[0], float(fine.f_K[0])
        noise = Noise(o, best_P, weights_R, unit_R, misfit if few else None)
        noise_B = noise.sizes(rng, bootstrap)
        target_TxR = noise.targets(rng, noise_B) if few else None
        solve = partial(o.minima, weights_TxR, size, target_TxR=target_TxR)
        tried = _profile(solve, partial(noise.admits, least=least, level=level), best_P, o.grid_SxP, rng)
        if tried.least >= least * (1 - 1e-6) - 1e-12 * rows * o.delta**2:
            break
        fine = solve(tried.best_P, every, problems)
    if few:
        fine = solve(best_P, every, problems, h_PxP=fine.h_KxPxP[0])
    tail = (1 - level) / 2
    quantiles = (tail, 1 - tail) if few else expanded_quantiles(level, n_units, n_units - noise.freedom)
    theta_BxP = np.clip(fine.x_KxP[1:], *tried.edges_2xP)
    ends_2xP = np.quantile(theta_BxP, quantiles, axis=0)
    low_P = np.vstack([ends_2xP[:1], tried.admitted_MxP]).min(axis=0)
    high_P = np.vstack([ends_2xP[1:], tried.admitted_MxP]).max(axis=0)
    low_P = np.where(low_P <= tried.edges_2xP[0], -np.inf, low_P)
    high_P = np.where(high_P >= tried.edges_2xP[1], np.inf, high_P)
    value, low, high = (o.constants(theta_P) for theta_P in (best_P, low_P, high_P))
    return Fit(
        form=form,
        scale=o.scale,
        constants={name: Interval(float(value[name]), float(low[name]), float(high[name])) for name in form.names},
        held=tuple(o.hold),
        objective=unit * least,
        rows=rows,
        finished=bool(fine.converged_K[0] and fine.converged_K[1:].mean() >= 0.99),
        roughness=noise.roughness,
        residuals=noise.residuals_R,
        drawn=few,
        samples=o.constants(theta_BxP),
        noise=noise_B,
        extremes=o.constants(tried.admitted_MxP),
        level=level,
        quantiles=quantiles,
    )


class _Profile(NamedTuple):
    edges_2xP: np.ndarray  # the ends of the ladders
    admitted_MxP: np.ndarray  # fits that are admitted by their objectives
    best_P: np.ndarray
    least: float


def _profile(
    solve: Callable[..., Minima],
    admits: Callable[[np.ndarray], np.ndarray],
    best_P: np.ndarray,
    grid_SxP: np.ndarray,
    rng: np.random.Generator,
) -> _Profile:
    """Each constant held at a ladder of values, the others refitted, to find what `admits` takes by its objective.

    A ladder goes from one width of the grid below the grid to one above, with the optimum and one width either side
    of it; the others start at the optimum and at points of the grid. Then the steps in which the admitted values end
    are cut in 17, twice, starting from the fits at both ends of the step: ends are good to 1/289 of a step.
    """
    n_free, low_P, high_P = len(best_P), grid_SxP.min(axis=0), grid_SxP.max(axis=0)
    width_P = np.maximum(high_P - low_P, 1.0)
    ladder_LxP = np.linspace(low_P - width_P, high_P + width_P, _RUNGS - 3)
    ladder_LxP = np.vstack([ladder_LxP, best_P - width_P, best_P, best_P + width_P])
    start_SxP = np.vstack([best_P, grid_SxP[rng.permutation(len(grid_SxP))[: _STARTS - 1]]])
    problems = [(i, rung, start_SxP) for i in range(n_free) for rung in ladder_LxP[:, i]]
    held, x, f = np.zeros(0, int), np.zeros((0, n_free)), np.zeros(0)
    for _ in range(3):
        if not problems:
            break
        held_K, rung_K, x_KxSxP = (np.array(a) for a in zip(*problems))
        x_KxSxP[np.arange(len(problems)), :, held_K] = rung_K[:, None]
        moving = np.broadcast_to((np.arange(n_free) != held_K[:, None])[:, None], x_KxSxP.shape)
        found = solve(x_KxSxP.reshape(-1, n_free), moving.reshape(-1, n_free), 0)
        f_KxS = found.f_K.reshape(len(problems), -1)
        best_K = np.arange(len(problems)) * f_KxS.shape[1] + f_KxS.argmin(axis=1)
        held, x, f = np.append(held, held_K), np.vstack([x, found.x_KxP[best_K]]), np.append(f, found.f_K[best_K])
        problems = []
        for i in range(n_free):
            order = np.flatnonzero(held == i)
            order = order[x[order, i].argsort()]
            first, last = np.flatnonzero(admits(f[order]))[[0, -1]]
            for step in (order[: first + 1][-2:], order[last:][:2]):
                cuts = np.linspace(*x[step[[0, -1]], i], 18)[1:-1] if len(step) == 2 else ()
                problems += [(i, rung, x[step]) for rung in cuts]
    edges_2xP = np.stack([ladder_LxP.min(axis=0), ladder_LxP.max(axis=0)])
    return _Profile(edges_2xP, x[admits(f)], x[f.argmin()], float(f.min()))


def row_weights(weights: ArrayLike | None, rows: int) -> np.ndarray:
    weights_R = np.ones(rows) if weights is None else np.asarray(weights, np.float64)
    if weights_R.shape != (rows,):
        raise InputError(f"weights of shape {weights_R.shape} for {rows} rows")
    bad_R = ~(np.isfinite(weights_R) & (weights_R > 0))
    if bad_R.any():
        row = int(bad_R.argmax())
        raise InputError(f"weights, row {row}: {weights_R[row]} must be a positive finite number")
    return weights_R


def _units(rows: int, groups: ArrayLike | None) -> np.ndarray:
    """Of each row the number of what was drawn independently: itself, or its group."""
    labels, unit_R = np.unique(np.arange(rows) if groups is None else np.asarray(groups), return_inverse=True)
    if len(unit_R) != rows:
        raise InputError(f"groups has {len(unit_R)} labels for {rows} rows")
    if len(labels) < 2:
        raise InputError(f"groups are all {labels[0]}: a bootstrap over groups needs at least 2")
    return unit_R


def expanded_quantiles(level: float, units: int, fitted: float) -> tuple[float, float]:
    """Of the expanded percentile interval (Hesterberg 2015): resamples of few units vary too little.
    The estimate has `units` - `fitted` degrees of freedom."""
    freedom = units - fitted
    tail = stats.norm.cdf(-stats.t.ppf((1 + level) / 2, freedom) * math.sqrt(units / freedom))
    return tail, 1 - tail


def _finite(interval: Interval) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in interval._asdict().items()}
