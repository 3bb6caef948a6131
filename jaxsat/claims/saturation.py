"""Whether one number along training, a loss or an accuracy, gets worse late: of each curve alone, from its own noise.

After the first tenth of training, every stretch of checkpoints is parted in two at every place, and its later part (its
level, or a ramp that begins at the parting) is held against its earlier part. Where the curve only falls none of these
differences is above zero but by noise; where it falls and then rises none is above the rise. So the largest of them,
less what noise makes of the largest of all, is a lower bound of the rise: the quantile comes of flat curves that are
drawn at the same steps, and whose noise is estimated alike.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from jaxsat.config import InputError

FEWEST = 6  # checkpoints after the first tenth of training
MOST = 64  # of more, neighbours are averaged: the contrasts grow with the square of their number
MATERIAL = 3.0  # times the noise of a checkpoint: a rise that is surely below it is none
LEVEL = 0.95  # of either bound
QUANTILE = 0.96  # of the largest contrast: 5 % of false alarms with room for the error of the draws
DRAWS = 4000
Word = Literal["saturated", "not saturated", "undecided"]


@dataclass(frozen=True)
class Saturation:
    """Of one curve. last_over_best: the level at the end over the best level, 1 where that is the end; its bounds hold
    with 95 % each, and are NaN where there are fewer than six checkpoints after the first tenth of training. noise: of
    a checkpoint, as a share of the level."""

    best_step: float
    last_over_best: float
    low: float
    high: float
    noise: float
    verdict: Word


def saturation(steps_C: Sequence[float], values_C: Sequence[float], higher_is_better: bool = False) -> Saturation:
    """Raises InputError where the steps do not rise, or a value is not finite."""
    steps_C, values_C = np.asarray(steps_C, float), np.asarray(values_C, float)
    if not len(steps_C) or (np.diff(steps_C) <= 0).any() or not np.isfinite(values_C).all():
        raise InputError("a curve needs finite values, at steps that rise")
    sign = -1.0 if higher_is_better else 1.0
    best = int((sign * values_C).argmin())
    late_C = steps_C > 0.1 * steps_C[-1]
    steps_P, values_P = _fewer(steps_C[late_C]), _fewer(values_C[late_C])
    if len(steps_P) < FEWEST:
        raw = float(values_C[-1] / values_C[best]) if values_C[best] else np.nan
        return Saturation(float(steps_C[best]), raw, np.nan, np.nan, np.nan, "undecided")
    # Perplexities and losses move by shares of themselves; what may be zero or less does not.
    as_logs = bool((values_P > 0).all())
    worse_P = sign * (np.log(values_P) if as_logs else values_P)
    rise, low, high, noise = _rise(steps_P, worse_P)
    scale = 1.0 if as_logs else abs(float(worse_P.min())) or np.nan
    share = lambda x: float(np.exp(sign * x)) if as_logs else float(1 + sign * x / scale)
    bounds = sorted([share(low), share(high)])
    word = "saturated" if low > 0 else "not saturated" if high <= MATERIAL * noise else "undecided"
    return Saturation(float(steps_C[best]), share(rise), *bounds, noise / scale, word)


def _rise(steps_P: np.ndarray, worse_P: np.ndarray) -> tuple[float, float, float, float]:
    """The rise to the end, its bounds, none below zero, and the noise of a point."""
    weights_WxP, sizes_W = _contrasts(len(steps_P))
    noise = float(_noise(steps_P, worse_P[None])[0])
    low = max(0.0, float((weights_WxP @ worse_P - _largest(tuple(steps_P)) * noise * sizes_W).max()))
    width = max(2, len(steps_P) // 16)
    means_K = np.lib.stride_tricks.sliding_window_view(worse_P, width).mean(axis=-1)
    # The window whose neighbours are best: chosen by itself it would be good by its noise.
    best = width + int((means_K[: -2 * width] + means_K[2 * width :]).argmin())
    rise = float(means_K[-1] - means_K[best])
    high = rise + special.stdtrit(len(steps_P) - 2, LEVEL) * noise * (2 / width) ** 0.5
    return max(rise, low, 0.0), low, max(high, low, 0.0), noise


@functools.cache
def _contrasts(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of two weighted means, of two points or more each, the later less the earlier; and the deviation that
    each has of points of deviation 1."""
    found = []
    for start in range(n - 3):
        for parting in range(start + 2, n - 1):
            for later in (np.ones(n - parting), np.arange(1.0, n - parting + 1)):
                weights = np.zeros(n)
                weights[start:parting] = -1 / (parting - start)
                weights[parting:] = later / later.sum()
                found.append(weights)
    weights_WxP = np.array(found)
    return weights_WxP, np.linalg.norm(weights_WxP, axis=1)


@functools.cache
def _largest(steps_P: tuple[float, ...]) -> float:
    """The quantile of the largest contrast of a flat curve, in deviations by its estimated noise."""
    weights_WxP, sizes_W = _contrasts(len(steps_P))
    rng, found = np.random.default_rng(0), []
    for _ in range(DRAWS // 200):
        flat_DxP = rng.standard_normal((200, len(steps_P)))
        largest_D = (flat_DxP @ (weights_WxP / sizes_W[:, None]).T).max(axis=1)
        found.append(largest_D / _noise(np.array(steps_P), flat_DxP))
    return float(np.quantile(np.concatenate(found), QUANTILE))


def _noise(steps_P: np.ndarray, worse_DxP: np.ndarray) -> np.ndarray:
    """The deviation of a point from the line, in log steps, between two others: its neighbours, or theirs, whichever
    is more, for neighbours may move as one."""
    x, found = np.log(steps_P), []
    for apart in (1, 2):
        before, at, after = slice(None, -2 * apart), slice(apart, -apart), slice(2 * apart, None)
        share = (x[at] - x[before]) / (x[after] - x[before])
        off = worse_DxP[:, at] - (1 - share) * worse_DxP[:, before] - share * worse_DxP[:, after]
        found.append((off**2 / (1 + share**2 + (1 - share) ** 2)).mean(axis=1))
    return np.sqrt(np.max(found, axis=0))


def _fewer(values: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for part in np.array_split(values, min(MOST, len(values)))])
