"""What a law is worth beyond the rows it was fitted to: the largest rung held out, and the choice between forms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import erf

from jaxsat.config import InputError, unknown
from jaxsat.laws.fit import Fit, fit, row_weights
from jaxsat.laws.forms import Form
from jaxsat.laws.objective import objective

_APART = 4.0  # AICc: "considerably less support" (Burnham & Anderson 2002, section 2.6)


@dataclass(frozen=True, eq=False)
class HeldOut:
    law: Fit  # of the other rows
    # A row held out a row: the inputs, then loss, predicted, low, high (of a new loss), error_percent, inside.
    rows: pd.DataFrame

    @property
    def error_percent(self) -> float:
        """Root mean square of 100 (loss - predicted) / predicted."""
        return float(np.sqrt((self.rows["error_percent"] ** 2).mean()))

    @property
    def coverage(self) -> float:
        """The part of the rows that lie in the interval of a new loss."""
        return float(self.rows["inside"].mean())


def held_out(
    form: Form, inputs: Mapping[str, ArrayLike], loss: ArrayLike, held_R: ArrayLike, **options: Any
) -> HeldOut:
    """Fits `form` to the rows where not `held_R` (bool) and predicts the others: N >= N.max(), say, the largest rung.

    `options` are those of `fit`. Raises InputError: as `fit` does, and when no row is held out.
    """
    held_R = np.asarray(held_R, bool)
    if not held_R.any():
        raise InputError("no row is held out")
    for name in ("weights", "groups"):
        if options.get(name) is not None:
            options[name] = np.asarray(options[name])[~held_R]
    inputs, loss = {name: np.asarray(x) for name, x in inputs.items()}, np.asarray(loss, np.float64)
    law = fit(form, {name: x[~held_R] for name, x in inputs.items()}, loss[~held_R], **options)
    points = {name: x[held_R] for name, x in inputs.items()}
    predicted, low, high = law.predict_new(**points)
    rows = pd.DataFrame(points | {form.output: loss[held_R], "predicted": predicted, "low": low, "high": high})
    rows["error_percent"] = 100 * (loss[held_R] - predicted) / predicted
    rows["inside"] = (low <= loss[held_R]) & (loss[held_R] <= high)
    return HeldOut(law, rows)


@dataclass(frozen=True, eq=False)
class Choice:
    # A form a row, best first: form, constants (fitted), objective, aicc (above the least), cv_error (mean absolute
    # residual of rows not fitted), cv_above (its excess over the least) and cv_se (the standard error of that).
    table: pd.DataFrame
    winner: str | None  # None: the data cannot tell


def choose(
    forms: Sequence[Form],
    inputs: Mapping[str, ArrayLike],
    loss: ArrayLike,
    *,
    hold: Mapping[str, float] | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    delta: float = 1e-3,
    residuals: str | None = None,
    folds: int = 10,
    seed: int = 0,
) -> Choice:
    """Compares forms on the same rows, by AICc and by cross-validation; each takes its own of `inputs`, and of `hold`.

    AICc is of the likelihood whose maximum the fit is: independent residuals of density exp(-Huber(r) / s) / Z(s), with
    s fitted too. Cross-validation leaves out each of `folds` parts of the rows (whole groups, where given) in turn. A
    form wins when both say so: the AICc of every other is 4 or more above its own, and its cross-validated error is
    above the least by more than a standard error. (AICc alone is too sure: with normal noise this likelihood, near
    Laplace's, makes differences 1.6 times too large.) Raises InputError: as `fit` does; fewer than two forms or groups;
    a name in `hold` that none of the forms has.
    """
    if len({form.name for form in forms}) < 2:
        raise InputError("a choice needs two forms, at least")
    scales = {residuals or form.scale for form in forms}
    if len(scales) > 1:
        raise InputError("forms with log and with linear residuals cannot be compared: set residuals")
    names = {name for form in forms for name in form.names}
    for name in hold or {}:
        if name not in names:
            raise unknown("constant in hold", name, names)
    loss_R, rng = np.asarray(loss, np.float64), np.random.default_rng(seed)
    weights_R = row_weights(weights, len(loss_R))
    weights_R = weights_R / weights_R.mean()
    labels, group_R = np.unique(np.arange(len(loss_R)) if groups is None else np.asarray(groups), return_inverse=True)
    if len(labels) < 2:
        raise InputError("cross-validation needs two rows or groups, at least")
    fold_R = (rng.permutation(len(labels)) % min(folds, len(labels)))[group_R]
    weights_TxR = weights_R * np.vstack([np.ones(len(loss_R)), fold_R != np.arange(fold_R.max() + 1)[:, None]])
    rows, errors = [], []
    for form in forms:
        held = {name: value for name, value in (hold or {}).items() if name in form.names}
        o = objective(
            form, {name: inputs[name] for name in form.inputs if name in inputs}, loss, held, delta, residuals
        )
        found = o.minima_from_grid(weights_TxR)
        residuals_TxR = o.residuals(found.x_KxP)
        errors.append(np.abs(residuals_TxR[1 + fold_R, np.arange(len(loss_R))]))
        aicc = _aicc(float(found.f_K[0]), len(loss_R), len(o.free), delta)
        rows.append((form.name, len(o.free), float(found.f_K[0]), aicc, errors[-1].mean()))
    table = pd.DataFrame(rows, columns=["form", "constants", "objective", "aicc", "cv_error"])
    if np.isfinite(table["aicc"].min()):
        table["aicc"] -= table["aicc"].min()
    above = np.array(errors) - errors[int(table["cv_error"].argmin())]
    by_group = pd.DataFrame(above.T).groupby(group_R).mean()
    table["cv_above"], table["cv_se"] = above.mean(axis=1), by_group.sem().to_numpy()
    table = table.sort_values("aicc", ignore_index=True)
    first, others = table.iloc[0], table[1:]
    clear = (others["aicc"] >= _APART).all() and (others["cv_above"] > others["cv_se"]).all()
    return Choice(table, first["form"] if clear else None)


def _aicc(huber_sum: float, rows: int, n_free: int, delta: float) -> float:
    """-2 log L + 2 k + 2 k (k + 1) / (R - k - 1), k = P + 1; infinite with too few rows for it."""
    k = n_free + 1
    if rows <= k + 1:
        return np.inf

    def log_z(s: float) -> float:  # of the density: a normal within delta, exponential tails beyond it
        inner = 0.5 * np.log(2 * np.pi * s) + np.log(erf(delta / np.sqrt(2 * s)))
        return float(np.logaddexp(inner, np.log(2 * s / delta) - delta**2 / (2 * s)))

    huber_sum = max(huber_sum, 1e-12 * rows * delta**2)  # rounding is no precision
    cost = lambda log_s: rows * log_z(np.exp(log_s)) + huber_sum * np.exp(-log_s)
    around = np.log(huber_sum / rows)
    best = minimize_scalar(cost, bounds=(around - 5, around + 5), method="bounded", options={"xatol": 1e-9})
    return 2 * best.fun + 2 * k + 2 * k * (k + 1) / (rows - k - 1)
