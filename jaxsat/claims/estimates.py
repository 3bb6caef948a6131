"""What claims are decided by: numbers in, an `Estimate` with its 90 % interval out.

Each is one rule, stated here and simulated in tests/claims/simulations.py with and without what it looks for; the share
of wrong verdicts is in docs/verdicts.md. Of a claim with one bound ("above 0") 90 % means 5 % wrong. Where the numbers
give no bound the interval is infinite; where there are no numbers they raise NotMeasured.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import optimize, special

from jaxsat.config import InputError
from jaxsat.results import NotMeasured
from jaxsat.verdicts import Estimate

LEVEL = 0.9
FEWEST_RUNS = 5  # of an association; each control takes one more
RESAMPLES = 500  # of a bootstrap
FEWEST_WINDOWS = 5  # of a curve after its first tenth: fewer tell nothing of its jitter


def mean_over(values: Sequence[float] | pd.Series, unit: str, how: str) -> Estimate:
    """The mean of one value a run (or other independent unit), with Student's t over them. unit: of the values.

    Raises NotMeasured when there are none.
    """
    values = _finite(values, how)
    if not values.size:
        raise NotMeasured(how)
    return _student(values.mean(), _variance(values) / values.size, values.size - 1, unit, how, values.size)


def contrast(a: pd.Series, b: pd.Series, unit: str, how: str) -> Estimate:
    """The mean of `a` less that of `b`, whose indexes say which unit each value is of.

    Paired over the common index where one index holds the other (the same seeds with and without weight decay), else
    of two samples of unequal variance (Welch); n is then the smaller of the two. Raises NotMeasured when one is empty.
    """
    for series in (a, b):
        _finite(series, how)
        if series.index.has_duplicates:
            raise InputError(f"{how}: two values of {series.index[series.index.duplicated()][0]!r}; a unit has one")
    if a.empty or b.empty:
        raise NotMeasured(how)
    common = a.index.intersection(b.index)
    if len(common) == min(len(a), len(b)):
        return mean_over(a[common] - b[common], unit, f"{how}; {len(common)} pairs")
    how = f"{how}; {len(a)} against {len(b)}"
    parts = [(_variance(series.to_numpy()) / len(series), len(series) - 1) for series in (a, b)]
    variance, dof = _sum_of_variances(parts)
    return _student(a.mean() - b.mean(), variance, dof, unit, how, min(len(a), len(b)))


def late_rise(nats_CxM: np.ndarray, tokens_C: Sequence[float] | None = None) -> Estimate:
    """How far the loss of one run ends above its own earlier level, in per cent; below zero while it still falls.

    nats_CxM: mean nats a token of each of M documents at C checkpoints in order; tokens_C: seen by then (None: evenly
    spaced). The last tenth of the tokens is compared with an earlier window of as many checkpoints, chosen by its two
    neighbours on one half of the documents and valued on the other half, both ways, so that neither the jitter of
    checkpoints nor the choice of documents makes a rise. The interval holds both: the spread over documents, and
    what jitter, which all documents share, does to the mean of a window.

    Raises NotMeasured for fewer than five such windows after the first tenth of training, or fewer than two documents.
    """
    how = "mean loss of the last tenth of training above the least earlier level; documents paired, jitter included"
    nats_CxM = np.asarray(nats_CxM, float)
    if nats_CxM.ndim != 2 or not np.isfinite(nats_CxM).all():
        raise InputError(f"{how}: needs a finite loss of each document at each checkpoint")
    n_documents = nats_CxM.shape[1]
    if n_documents < 2:
        raise NotMeasured(f"{how}: two documents at least, there are {n_documents}")
    means_KxM, width = _windows(nats_CxM, tokens_C, how)
    rise_M, early_M = np.empty(n_documents), np.empty(n_documents)
    for half in (0, 1):
        k = _least(means_KxM[:, 1 - half :: 2].mean(axis=1), width)
        early_M[half::2] = means_KxM[k, half::2]
        rise_M[half::2] = means_KxM[-1, half::2] - early_M[half::2]
    over_documents = _variance(rise_M) / n_documents, n_documents - 1
    variance, dof = _sum_of_variances([over_documents, _jitter(means_KxM.mean(axis=1), width)])
    percent = 100 / early_M.mean()
    return _student(rise_M.mean() * percent, variance * percent**2, dof, "%", how, n_documents)


def late_level(values_C: Sequence[float], tokens_C: Sequence[float] | None = None) -> float:
    """How far a metric without documents ends above its least level after the first tenth of training, where it spikes:
    the windows of `late_rise`. One number a run, for `mean_over` or `association`; jitter alone makes none on average.

    Raises NotMeasured for fewer than five windows of a tenth after the first tenth of training.
    """
    how = "mean of the last tenth of training above the least earlier level"
    means_K, width = _windows(_finite(values_C, how), tokens_C, how)
    return float(means_K[-1] - means_K[_least(means_K, width)])


def association(
    x: pd.Series | Sequence[float], y: pd.Series | Sequence[float], how: str, controls: pd.DataFrame | None = None
) -> Estimate:
    """Spearman's correlation over runs; with `controls`, what is left of it once their ranks are regressed out of both.

    Series are matched by their index; runs that lack a number are left out. The interval is Fisher's with the variance
    of Bonett & Wright (2000), a degree less for each control. Fewer than five runs and controls: no bound.
    """
    table = _matched(how, {"x": x, "y": y}, controls)
    n, n_controls = len(table), table.shape[1] - 2
    if n == 0:
        raise NotMeasured(how)
    r = _correlation(table.rank().to_numpy())
    if np.isnan(r) or n < FEWEST_RUNS + n_controls:
        return Estimate(np.nan_to_num(r), -np.inf, np.inf, "", how, n)
    # Ranks of few runs agree wholly by chance, so r = 1 is taken as a little less.
    most = 1 - 1 / n**2
    z = np.arctanh(np.clip(r, -most, most))
    half = special.ndtri((1 + LEVEL) / 2) * np.sqrt((1 + r**2 / 2) / (n - n_controls - 3))
    low, high = np.tanh([z - half, z + half])
    return Estimate(r, min(low, r), max(high, r), "", how, n)


def explained(x: pd.Series, y: pd.Series, controls: pd.DataFrame, how: str) -> Estimate:
    """How much smaller Spearman's correlation of x and y is with `controls` than without them, |raw| - |controlled|:
    what they explain of it. The interval is a bootstrap over runs. Raises NotMeasured as `association`.
    """
    table = _matched(how, {"x": x, "y": y}, controls)
    raw, left = (_size(table[names].rank().to_numpy()) for names in (["x", "y"], list(table)))
    n, rng = len(table), np.random.default_rng(0)
    if n < FEWEST_RUNS + table.shape[1] - 2:
        return Estimate(raw - left, -np.inf, np.inf, "", how, n)
    drawn = [table.iloc[rng.integers(0, n, n)].rank().to_numpy() for _ in range(RESAMPLES)]
    found = [_size(ranks[:, :2]) - _size(ranks) for ranks in drawn]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(raw - left, min(low, raw - left), max(high, raw - left), "", how, n)


def share(hits: pd.Series | Sequence[bool], how: str) -> Estimate:
    """The share of units that are so, with Jeffreys' interval, whose end is 0 or 1 where none or all are. Raises
    NotMeasured when there are none."""
    hits = np.asarray(hits, bool)
    n, k = hits.size, int(hits.sum())
    if not n:
        raise NotMeasured(how)
    low, high = (float(special.betaincinv(k + 0.5, n - k + 0.5, q)) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(k / n, low if k else 0.0, high if k < n else 1.0, "", f"{k} of {n} {how}", n)


def slope(
    x: pd.Series | Sequence[float],
    y: pd.Series | Sequence[float],
    unit: str,
    how: str,
    groups: pd.Series | Sequence | None = None,
) -> Estimate:
    """The least-squares slope of y on x. unit: of y a unit of x.

    With `groups`, what shares its misfit (the width of each point: its seeds and budgets move as one), the mean of each
    group's own slope, with Student's t over groups; a group at one x has none. Without, every point is a unit. Series
    are matched by index.
    Raises NotMeasured when there is no slope.
    """
    table = _matched(how, {"x": x, "y": y} | ({} if groups is None else {"group": groups}))
    if groups is not None:
        slopes = [_line(points)[0] for _, points in table.groupby("group") if points["x"].nunique() > 1]
        return mean_over(slopes, unit, f"{how}; mean of {len(slopes)} slopes")
    if table["x"].nunique() < 2:
        raise NotMeasured(how)
    return _student(*_line(table), len(table) - 2, unit, how, len(table))


def knee(ranks_K: Sequence[float], losses_K: Sequence[float], excess: float = 0.01) -> float:
    """The rank at which the loss comes within `excess` of the full head's, which is that of the largest rank.

    Interpolated in log rank on the nearest curve that never rises (isotonic), so that neither a step of the grid nor
    noise of a single rank decides. nan where the grid does not hold it: the first rank is within, or the last alone.
    """
    order = np.argsort(ranks_K)
    log_K = np.log(_finite(ranks_K, "ranks of the head")[order])
    k, above_K = _above(_finite(losses_K, "losses by rank")[order], excess)
    if k == 0 or k == len(above_K) - 1:
        return np.nan
    share = above_K[k - 1] / (above_K[k - 1] - above_K[k])
    return float(np.exp(log_K[k - 1] + share * (log_K[k] - log_K[k - 1])))


def knee_over_documents(
    ranks_K: Sequence[float], nats_MxK: np.ndarray, tokens_M: Sequence[float] | None = None, excess: float = 0.01
) -> Estimate:
    """The `knee` of one backbone, with an interval, where the curve is flat beyond it; the largest rank is the width.

    nats_MxK: mean nats a token of each of M documents at each rank; tokens_M: of each document (None: as many). The
    full head always comes within `excess` of itself, so that alone is no knee. It is one where its interval ends at
    half the width or below, and where from half the width to the width the loss falls by less than a tenth of
    `excess` (0.1 %), with 95 % confidence. A loss that falls by as much each doubling meets both below d / 1024 only.

    The interval is that of a bootstrap over documents, which are paired over ranks, widened to the ranks of the grid on
    both sides: between them the curve is not known. What the seed of a head does to its loss is not in it.

    Simulated in tests/claims/test_estimates.py, here 1000 draws at widths 256 and 1024, 120 documents, of which each
    has noise of its own at each rank. Without a knee, a power law up to the width (of exponent 0, .3, .6, 1; within
    1 % at a fourth or an eighth of the width; noise .3 %), 0, 0, 0 and 0.6 % have one; where the last doubling gives
    just .1 %, 6 %. Flat from an eighth of the width on, 100 % are found at noise .1 % and 74 % at .3 %; of these the
    interval, 1.5 to 1.9 times as high as low, holds the true knee in 99 %. A power law whose last doubling
    gives less than .1 % (one of exponent 1 that is within 1 % at d / 11, of .6 at d / 21) does have a knee by this
    rule: a wider backbone of that law would hardly move it.

    Raises NotMeasured where there is no knee within the width, with how far the loss still falls, where the first rank
    is within, and for fewer than two documents.
    """
    how = f"rank within {excess:.0%} of the full head; bootstrap over documents, a step of the grid at least"
    ranks_K, nats_MxK = _finite(ranks_K, how), np.asarray(nats_MxK, float)
    tokens_M = np.ones(len(nats_MxK)) if tokens_M is None else _finite(tokens_M, how)
    if nats_MxK.shape != (len(tokens_M), len(ranks_K)) or not np.isfinite(nats_MxK).all() or len(ranks_K) < 3:
        raise InputError(f"{how}: needs a finite loss of each document at each of three ranks or more")
    if len(tokens_M) < 2:
        raise NotMeasured(f"{how}: two documents at least, there is {len(tokens_M)}")
    order = np.argsort(ranks_K)
    ranks_K, nats_MxK = ranks_K[order], nats_MxK[:, order]
    drawn_SxM = np.random.default_rng(0).multinomial(
        len(tokens_M), np.full(len(tokens_M), 1 / len(tokens_M)), RESAMPLES
    )
    loss_SxK = (drawn_SxM * tokens_M) @ nats_MxK / (drawn_SxM @ tokens_M)[:, None]
    width = ranks_K[-1]
    half_S = np.array([np.interp(np.log(width / 2), np.log(ranks_K), loss_K) for loss_K in loss_SxK])
    falls = np.quantile(half_S / loss_SxK[:, -1] - 1, (1 + LEVEL) / 2)
    first_S = np.array([_above(loss_K, excess)[0] for loss_K in loss_SxK])  # rank of the grid that is within
    tail = (1 - LEVEL) / 2
    low, high = (int(np.quantile(first_S, q, method="nearest")) for q in (tail, 1 - tail))
    if low == 0:
        raise NotMeasured(f"{how}: the least rank, {ranks_K[0]:g}, is within, so heads of lower rank are needed")
    if ranks_K[high] > width / 2 or falls > excess / 10:
        raise NotMeasured(
            f"{how}: no knee within the width {width:g}, as it may come within at rank {ranks_K[high]:g} only, and "
            f"fall by {falls:.2%} from half the width on"
        )
    value = knee(ranks_K, tokens_M @ nats_MxK / tokens_M.sum(), excess)
    low, high = float(min(ranks_K[low - 1], value)), float(max(ranks_K[high], value))
    return Estimate(value, low, high, "", how, len(tokens_M))


def _above(loss_K: np.ndarray, excess: float) -> tuple[int, np.ndarray]:
    """(the first rank within, by how much each is above): on the nearest curve that never rises, by ascending rank."""
    loss_K = optimize.isotonic_regression(loss_K, increasing=False).x
    above_K = loss_K - (1 + excess) * loss_K[-1]
    return int((above_K > 0).sum()), above_K


def _finite(values: Sequence[float] | pd.Series, how: str) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"{how}: needs a list of finite numbers")
    return values


def _matched(how: str, columns: dict[str, object], controls: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a unit that has all numbers; Series are matched by their index."""
    try:
        table = pd.DataFrame(columns)
        if controls is not None:
            table = table.join(controls.add_prefix("control."), validate="one_to_one")
    except ValueError as e:
        raise InputError(f"{how}: {e}") from None
    return table.dropna()


def _correlation(ranks_NxC: np.ndarray) -> float:
    """Of the first two columns, what the others explain taken out of both; nan where nothing is left."""
    design = np.column_stack([np.ones(len(ranks_NxC)), ranks_NxC[:, 2:]])
    x_N, y_N = (ranks_NxC[:, :2] - design @ np.linalg.lstsq(design, ranks_NxC[:, :2])[0]).T
    # What the controls explain to the last digit has no rank left: no association, and no bound.
    if min(np.ptp(x_N), np.ptp(y_N)) <= 1e-9 * len(ranks_NxC):
        return np.nan
    return float(np.clip(x_N @ y_N / np.sqrt((x_N @ x_N) * (y_N @ y_N)), -1, 1))


def _size(ranks_NxC: np.ndarray) -> float:
    return abs(np.nan_to_num(_correlation(ranks_NxC)))


def _line(points: pd.DataFrame) -> tuple[float, float]:
    """The least-squares slope of y on x and its variance."""
    x, y = (points[name].to_numpy(float) - points[name].mean() for name in ("x", "y"))
    b = x @ y / (x @ x)
    return b, ((y - b * x) ** 2).sum() / max(len(x) - 2, 1) / (x @ x)


def _windows(values_CxM: np.ndarray, tokens_C: Sequence[float] | None, how: str) -> tuple[np.ndarray, int]:
    """After the first tenth of the tokens: means over every window of as many checkpoints as the last tenth has, in
    order (the last is the late one), and that number of checkpoints."""
    tokens_C = np.arange(1.0, len(values_CxM) + 1) if tokens_C is None else _finite(tokens_C, how)
    if len(tokens_C) != len(values_CxM) or (np.diff(tokens_C) <= 0).any():
        raise InputError(f"{how}: needs the tokens of each of the {len(values_CxM)} checkpoints, in rising order")
    width = int((tokens_C > 0.9 * tokens_C[-1]).sum())
    after = values_CxM[tokens_C > 0.1 * tokens_C[-1]]
    if len(after) < FEWEST_WINDOWS * width:
        raise NotMeasured(f"{how}: {FEWEST_WINDOWS * width} checkpoints after the first tenth, there are {len(after)}")
    return np.lib.stride_tricks.sliding_window_view(after, width, axis=0).mean(axis=-1), width


def _least(means_K: np.ndarray, width: int) -> int:
    """The window before the late one whose two neighbours are least. Chosen by itself it would be low by its jitter."""
    return width + int((means_K[: -2 * width] + means_K[2 * width :]).argmin())


def _jitter(means_K: np.ndarray, width: int) -> tuple[float, int]:
    """The variance that jitter gives to the difference of two windows, and its degrees of freedom: from the third
    differences of windows in a row, which the trend and the bend of a curve leave at zero; jitter alone gives them 20
    times the variance of one. Their median size, as where the curve turns they are no jitter."""
    a, b, c, d = (means_K[i * width : len(means_K) - (3 - i) * width] for i in range(4))
    deviation = np.median(np.abs(a - 3 * b + 3 * c - d)) / special.ndtri(0.75)
    n_windows = (len(means_K) + width - 1) // width
    return 2 * deviation**2 / 20, n_windows - 3


def _variance(values: np.ndarray) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else 0.0


def _sum_of_variances(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The sum, with the degrees of freedom of Welch and Satterthwaite."""
    total = sum(variance for variance, _ in parts)
    if min(dof for _, dof in parts) < 1 or total == 0:
        return total, min(dof for _, dof in parts)
    return total, total**2 / sum(variance**2 / dof for variance, dof in parts)


def _student(value: float, variance: float, dof: float, unit: str, how: str, n: int) -> Estimate:
    half = special.stdtrit(dof, (1 + LEVEL) / 2) * np.sqrt(variance) if dof > 0 else np.inf
    return Estimate(float(value), float(value - half), float(value + half), unit, how, n)
