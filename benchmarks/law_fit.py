"""The Chinchilla law on 240 published rows: the whole protocol, against the plain scipy loop it was published with.

    python -m benchmarks.law_fit

Protocol (Besiroglu et al. 2024): L-BFGS from the 4500 starts of the published grid, then 4000 bootstrap fits from the
optimum. The rival is `scipy.optimize.minimize` on the same objective in numpy, with its finite differences: L-BFGS-B over
the grid, BFGS for the resamples, as published. Timed on 10 + 10 of its fits, spread over the grid, and extrapolated.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from jaxsat.laws import chinchilla, fit

STARTS, RESAMPLES, TIMED = 4500, 4000, 10


def bench() -> list[dict]:
    """Entries {name, ours, rival, ratio, unit, detail}, times in seconds; skipped, with the reason, without the data."""
    root = Path(os.environ.get("JAXSAT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    source = root / "scaling_chinchilla" / "svg_extracted_data.csv"
    if not source.is_file():
        return [{"name": "law_fit_vs_scipy_loop", "skipped": f"no {source}: set JAXSAT_SHARED_DATA"}]
    table = pd.read_csv(source)
    table = table[table["loss"] < table["loss"].sort_values().iloc[-5]]
    n, loss = table["Model Size"].to_numpy(), table["loss"].to_numpy()
    d = table["Training FLOP"].to_numpy() / (6 * n)

    first, (warm, fitted) = ours(n, d, loss)[0], ours(n, d, loss)
    theirs = rival(n, d, loss, fitted)
    detail = (
        f"{len(loss)} rows, {STARTS} starts, {RESAMPLES} resamples; ours {first:.1f} s with compilation, objective "
        f"{fitted.objective:.8f}; rival {theirs['grid']:.0f} s of grid and {theirs['bootstrap']:.0f} s of bootstrap, "
        f"extrapolated from {2 * TIMED} fits"
    )
    total = theirs["grid"] + theirs["bootstrap"]
    entry = {"ours": warm, "rival": total, "ratio": total / warm, "unit": "s", "detail": detail}
    return [{"name": "law_fit_vs_scipy_loop", **entry}]


def ours(n, d, loss):
    begun = time.perf_counter()
    fitted = fit(chinchilla, {"N": n, "D": d}, loss, bootstrap=RESAMPLES)
    return time.perf_counter() - begun, fitted


def rival(n, d, loss, fitted) -> dict[str, float]:
    """Seconds that scipy would take for each half of the protocol."""
    log_n, log_d, log_loss, rng = np.log(n), np.log(d), np.log(loss), np.random.default_rng(0)

    def objective(theta, rows):
        e, a, b, alpha, beta = theta
        predicted = np.log(np.exp(e) + np.exp(a - alpha * log_n[rows]) + np.exp(b - beta * log_d[rows]))
        r = np.abs(log_loss[rows] - predicted)
        return np.where(r <= 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum()

    axes = [np.log(c.starts) if c.positive else c.starts for c in chinchilla.constants]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    best = [np.log(c.value) if f.positive else c.value for f, c in zip(chinchilla.constants, fitted.constants.values())]
    whole = np.arange(len(loss))
    halves = {
        "grid": ("L-BFGS-B", STARTS, [(grid[i], whole) for i in rng.choice(STARTS, TIMED, replace=False)]),
        "bootstrap": ("BFGS", RESAMPLES, [(best, rng.choice(whole, len(whole))) for _ in range(TIMED)]),
    }
    seconds = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for half, (method, fits, problems) in halves.items():
            begun = time.perf_counter()
            for start, rows in problems:
                minimize(objective, start, args=(rows,), method=method)
            seconds[half] = (time.perf_counter() - begun) / TIMED * fits
    return seconds


if __name__ == "__main__":
    print(json.dumps(bench(), indent=1))
