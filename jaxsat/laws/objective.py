"""What a fit minimises: the **sum** of Huber terms of residuals, of one table, in one compiled program.

Hoffmann et al. (2022), appendix D.3; their mean of the terms stops quasi-Newton methods early. All of it is float64 on
the host's CPU, whatever the process computes with elsewhere: TPUs have no float64, and float32 cannot tell an objective
of 1e-3 from its neighbours.
"""

import itertools
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxsat.config import InputError, unknown
from jaxsat.laws.bfgs import Minima, minimise
from jaxsat.laws.forms import SCALES, Form
from jaxsat.machine import cores

_LANES = 64  # problems that a core has under way; with 256 the slowest of a few hundred keep too many idle lanes


@dataclass(frozen=True, eq=False)
class Objective:
    """The rows of a table as a form sees them. Theta: the free constants, positive ones as logarithms."""

    form: Form
    free: tuple[str, ...]  # constants that are fitted
    hold: dict[str, float]
    columns: dict[str, np.ndarray]  # input -> R
    target_R: np.ndarray
    delta: float
    scale: str  # "log": residuals are of logarithms; "linear"

    @property
    def grid_SxP(self) -> np.ndarray:
        """Every combination of the starts of the free constants. Constants alike start together."""
        free = [c for c in self.form.constants if c.name in self.free]
        alike = list(dict.fromkeys(c.like or c.name for c in free))
        table = {**self.columns, self.form.output: self.target_R}
        starts = {c.like or c.name: (c, c.starts_at(table)) for c in free}
        axes = {name: np.log(values) if c.positive else values for name, (c, values) in starts.items()}
        points = np.array(list(itertools.product(*(axes[name] for name in alike))))
        return points[:, [alike.index(c.like or c.name) for c in free]]

    def constants(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """{name: value} from the last axis of theta."""
        return _constants(self.form, self.free, self.hold, theta)

    def residuals(self, theta_TxP: np.ndarray) -> np.ndarray:
        """T x R."""
        fitted_TxR = predictions(self.form, self.constants(theta_TxP), self.columns)
        return np.log(self.target_R / fitted_TxR) if self.scale == "log" else self.target_R - fitted_TxR

    def minima_from_grid(self, weights_TxR: np.ndarray, size: int = 0, target_TxR: np.ndarray | None = None) -> Minima:
        """T minima: the first problem's from every point of the grid, then those of all from the best of these.

        Starts go as far as the next step promises a decrease above 1e-4 of the objective, an eighth of them to their
        minima. Of Chinchilla's 4500 on the published rows, 1100 end in the optimum when all go on, which takes 2.7
        times as long.
        Raises InputError: no start has a finite value.
        """
        grid_SxP, every_P = self.grid_SxP, np.ones(len(self.free), bool)
        problems = max(len(weights_TxR), 0 if target_TxR is None else len(target_TxR))
        solve = partial(self.minima, weights_TxR, max(size, len(grid_SxP), problems), target_TxR=target_TxR)
        coarse = solve(grid_SxP, every_P, 0, precision=1e-4)
        if not np.isfinite(coarse.f_K).any():
            why = "has no finite value on these rows from any of its starts"
            raise InputError(f"{self.form.name} {why}: {self.form.formula}")
        chosen = coarse.f_K.argsort()[: max(64, len(grid_SxP) // 8)]
        fine = solve(coarse.x_KxP[chosen], every_P, 0)
        best = fine.f_K.argmin()
        return solve(fine.x_KxP[best], every_P, np.arange(problems), h_PxP=fine.h_KxPxP[best])

    def minima(
        self,
        weights_TxR: np.ndarray,
        size: int,
        x_KxP: ArrayLike,
        free_KxP: ArrayLike,
        which_K: ArrayLike,
        *,
        h_PxP: np.ndarray | None = None,
        precision: float = 1e-10,
        target_TxR: np.ndarray | None = None,
    ) -> Minima:
        """Of problems that broadcast to K, each with row which_K of the weights and of the targets (the last row where
        there are fewer; None: the table's own): from x_KxP over the coordinates where free_KxP; see `minimise`. Spread
        over the cores, and padded as `size` is: one compilation for all of a fit."""
        (n,) = np.broadcast_shapes(np.shape(x_KxP)[:-1], np.shape(which_K))
        shapes = (n, len(self.free)), (n, len(self.free)), (n,)
        problems = [np.broadcast_to(a, shape) for a, shape in zip((x_KxP, free_KxP, which_K), shapes)]
        h_PxP = np.eye(len(self.free)) if h_PxP is None else h_PxP
        n_parts = max(1, min(cores(), size // _LANES))
        parts = [slice(i, None, n_parts) for i in range(n_parts)]
        size = -(-size // n_parts)

        static = self.form, self.free, self.scale, min(_LANES, size)
        with jax.enable_x64(True), jax.default_device(_cpu()):
            target_TxR = jnp.asarray(self.target_R[None] if target_TxR is None else target_TxR)
            rows = self.hold, self.columns, target_TxR, jnp.asarray(weights_TxR), self.delta

        def solve(part: slice, count: int) -> Minima:
            padded = (np.resize(a[part], (size, *a.shape[1:])) for a in problems)
            with jax.enable_x64(True), jax.default_device(_cpu()):
                minima = _minimise(*static, *rows, *padded, count, h_PxP, precision)
                return Minima(*(np.asarray(a)[:count] for a in minima))

        solve(parts[0], 0)  # compiles, once
        with ThreadPoolExecutor(n_parts) as pool:
            found = list(pool.map(solve, parts, [len(range(n)[part]) for part in parts]))
        minima = Minima(*(np.empty((n, *a.shape[1:]), a.dtype) for a in found[0]))
        for part, its in zip(parts, found):
            for whole, a in zip(minima, its):
                whole[part] = a
        return minima


def objective(
    form: Form,
    inputs: Mapping[str, ArrayLike],
    target: ArrayLike,
    hold: Mapping[str, float] | None,
    delta: float,
    residuals: str | None,
) -> Objective:
    """Checked: see `fit` for the arguments and the errors."""
    scale = residuals or form.scale
    if scale not in SCALES:
        raise unknown("residuals", scale, SCALES)
    if not (math.isfinite(delta) and delta > 0):
        raise InputError(f"delta = {delta}: must be a positive finite number")
    hold = {name: float(value) for name, value in (hold or {}).items()}
    free = _free(form, hold)
    columns = checked(form, inputs)
    target_R = _column(form.output, target, positive=scale == "log")
    lengths = {name: len(column) for name, column in {**columns, form.output: target_R}.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"columns have different lengths: {lengths}")
    if len(target_R) < len(free) + 1:
        many = f"{len(free)} constants ({', '.join(free)})"
        raise InputError(f"{len(target_R)} rows for {many}: needs at least {len(free) + 1}")
    return Objective(form, free, hold, columns, target_R, delta, scale)


@partial(jax.jit, static_argnames=("form", "free", "scale", "lanes"))
def _minimise(
    form,
    free,
    scale,
    lanes,
    hold,
    columns,
    target_TxR,
    weights_TxR,
    delta,
    x_KxP,
    free_KxP,
    which_K,
    n,
    h_PxP,
    precision,
) -> Minima:
    def value(theta_P, t):
        target_R, weights_R = (a_TxR[jnp.minimum(t, len(a_TxR) - 1)] for a_TxR in (target_TxR, weights_TxR))
        prediction_R = form.log_prediction(_constants(form, free, hold, theta_P), columns)
        r = jnp.abs(jnp.log(target_R) - prediction_R if scale == "log" else target_R - jnp.exp(prediction_R))
        return (weights_R * jnp.where(r <= delta, r * r / 2, delta * (r - delta / 2))).sum()

    tolerance = 1e-12 * target_TxR.shape[1] * delta**2  # residuals a millionth of delta are no residuals
    stop = {"precision": precision, "tolerance": tolerance}
    return minimise(value, x_KxP, free_KxP, which_K, n, h_PxP=h_PxP, lanes=lanes, **stop)


def predictions(form: Form, constants: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> np.ndarray:
    """Constants {name: c_B}, columns {name: x_n} -> B x n. Padded to powers of two, of which programs are few."""
    sizes = [len(next(iter(each.values()))) for each in (constants, columns)]
    padded = (
        {name: np.resize(x, 1 << max(size - 1, 0).bit_length()) for name, x in each.items()}
        for each, size in zip((constants, columns), sizes)
    )
    with jax.enable_x64(True), jax.default_device(_cpu()):
        log_BxN = np.asarray(_log_predictions(form, *padded))
    with np.errstate(over="ignore"):  # far ends of what no row bounds
        return np.exp(log_BxN[: sizes[0], : sizes[1]])


@partial(jax.jit, static_argnames="form")
def _log_predictions(form, constants, columns):
    return jax.vmap(form.log_prediction, in_axes=(0, None))(constants, columns)


def checked(form: Form, inputs: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """The inputs of `form` as float64 vectors. Raises InputError: a name, a word, a value that is not positive."""
    for name in inputs:
        if name not in form.inputs:
            raise unknown(f"input of {form.name}", name, form.inputs)
    for name in form.inputs:
        if name not in inputs:
            raise InputError(f"{form.name} needs the input {name!r}: {form.formula}")
    return {name: _column(name, values, positive=True) for name, values in inputs.items()}


def _column(name: str, values: ArrayLike, positive: bool) -> np.ndarray:
    try:
        column_R = np.atleast_1d(np.asarray(values, np.float64)).reshape(-1)
    except (TypeError, ValueError):
        raise InputError(f"column {name!r} holds something that is not a number") from None
    bad_R = ~(np.isfinite(column_R) & ((column_R > 0) | (not positive)))
    if bad_R.any():
        row, right = int(bad_R.argmax()), "a positive finite number" if positive else "a finite number"
        raise InputError(f"column {name!r}, row {row}: {column_R[row]} must be {right}")
    return column_R


def _free(form: Form, hold: Mapping[str, float]) -> tuple[str, ...]:
    for name, value in hold.items():
        if name not in form.names:
            raise unknown(f"constant of {form.name} in hold", name, form.names)
        if not math.isfinite(value) or (value < 0 and form.positive(name)):
            right = "a finite number, at least 0" if form.positive(name) else "a finite number"
            raise InputError(f"hold {name} = {value:g}: must be {right}")
    free = tuple(name for name in form.names if name not in hold)
    if not free:
        raise InputError(f"hold names every constant of {form.name}: leave at least one to fit")
    return free


def _constants(form: Form, free: tuple[str, ...], hold: Mapping[str, Any], theta: Any) -> dict[str, Any]:
    xp = jnp if isinstance(theta, jax.Array) else np
    values = {name: theta[..., i] for i, name in enumerate(free)}
    values = {name: xp.exp(v) if form.positive(name) else v for name, v in values.items()}
    return {name: values[name] if name in values else xp.full(theta.shape[:-1], hold[name]) for name in form.names}


def _cpu() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as e:
        platforms = jax.config.jax_platforms
        if not platforms or "cpu" in platforms.split(","):
            raise
        raise InputError(f"laws are fitted on the CPU: set JAX_PLATFORMS={platforms},cpu ({e})") from None
