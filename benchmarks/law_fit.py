"""The Chinchilla law on 240 published rows: the whole protocol, against the plain scipy loop it was published with.

    python -m benchmarks.law_fit

Protocol (Besiroglu et al. 2024): L-BFGS from the 4500 starts of the published grid, then 4000 bootstrap fits from the
optimum. Ours is those two alone, on all cores; seven in eight of its starts stop early (`Objective.minima_from_grid`).
The time of `fit`, which profiles every constant too, is in the detail. The rival is
`scipy.optimize.minimize` on the same objective in numpy, with its finite differences: L-BFGS-B over the grid, BFGS for
the resamples, as published; extrapolated from 40 of its fits, interleaved with ours. All in a process with one thread
of BLAS, as the command line has: the rival's matrices of 5 x 5 gain nothing from more, and beside a busy core they lost
a factor of 18.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from benchmarks import Worker, answer, questions
from jaxsat.laws import chinchilla, fit
from jaxsat.laws.objective import objective

STARTS, RESAMPLES, ROUNDS, TIMED = 4500, 4000, 4, 5  # TIMED: of the rival's fits, a round and half of the protocol


def bench() -> list[dict]:
    """Entries {name, ours, rival, ratio, unit, detail}, in seconds; without the data, {name, skipped: the reason}."""
    root = Path(os.environ.get("JAXSAT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
    source = root / "scaling_chinchilla" / "svg_extracted_data.csv"
    if not source.is_file():
        return [{"name": "law_fit_vs_scipy_loop", "skipped": f"no {source}: set JAXSAT_SHARED_DATA"}]
    with Worker("law_fit", source, OPENBLAS_NUM_THREADS="1") as worker:
        return [worker.ask()]


def measure(source: str) -> dict:
    table = pd.read_csv(source)
    table = table[table["loss"] < table["loss"].sort_values().iloc[-5]]
    n, loss = table["Model Size"].to_numpy(), table["loss"].to_numpy()
    d = table["Training FLOP"].to_numpy() / (6 * n)

    first, fitted = whole_fit(n, d, loss)
    protocol(n, d, loss, 0)
    rounds = [
        (protocol(n, d, loss, seed), whole_fit(n, d, loss)[0], *rival(n, d, loss, fitted, seed))
        for seed in range(ROUNDS)
    ]
    ours, whole, grid, resamples = map(statistics.median, zip(*rounds))
    detail = (
        f"{ROUNDS} rounds; objective {fitted.objective:.8f}; "
        f"fit with profiles of all constants {whole:.2f} s, {first:.1f} s with compile; rival "
        f"{grid:.0f} s of grid and {resamples:.0f} s of bootstrap, extrapolated"
    )
    times = {"ours": ours, "rival": grid + resamples, "ratio": (grid + resamples) / ours}
    shape = f"{len(loss)} rows, {STARTS} starts, {RESAMPLES} resamples"
    return {"name": "law_fit_vs_scipy_loop", "shape": shape, **times, "unit": "s", "target": 100, "detail": detail}


def protocol(n, d, loss, seed) -> float:
    """Seconds."""
    rows = len(loss)
    draws_BxR = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)
    begun = time.perf_counter()
    o = objective(chinchilla, {"N": n, "D": d}, loss, hold=None, delta=1e-3, residuals=None)
    found = o.minima_from_grid(np.vstack([np.ones(rows), draws_BxR]))
    seconds = time.perf_counter() - begun
    assert len(o.grid_SxP) == STARTS and found.converged_K.mean() > 0.99
    return seconds


def whole_fit(n, d, loss):
    begun = time.perf_counter()
    fitted = fit(chinchilla, {"N": n, "D": d}, loss, bootstrap=RESAMPLES)
    return time.perf_counter() - begun, fitted


def rival(n, d, loss, fitted, seed) -> tuple[float, float]:
    """Seconds that scipy would take for each half of the protocol."""
    log_n, log_d, log_loss, rng = np.log(n), np.log(d), np.log(loss), np.random.default_rng(seed)

    def objective(theta, rows):
        e, a, b, alpha, beta = theta
        predicted = np.log(np.exp(e) + np.exp(a - alpha * log_n[rows]) + np.exp(b - beta * log_d[rows]))
        r = np.abs(log_loss[rows] - predicted)
        return np.where(r <= 1e-3, r * r / 2, 1e-3 * (r - 5e-4)).sum()

    def seconds(method, problems):
        begun = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):
            for start, rows in problems:
                minimize(objective, start, args=(rows,), method=method)
        return (time.perf_counter() - begun) / len(problems)

    axes = [np.log(c.starts) if c.positive else c.starts for c in chinchilla.constants]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(STARTS, len(axes))
    best = [np.log(c.value) if f.positive else c.value for f, c in zip(chinchilla.constants, fitted.constants.values())]
    whole = np.arange(len(loss))
    starts = [(grid[i], whole) for i in rng.choice(STARTS, TIMED, replace=False)]
    resamples = [(best, rng.choice(whole, len(whole))) for _ in range(TIMED)]
    return seconds("L-BFGS-B", starts) * STARTS, seconds("BFGS", resamples) * RESAMPLES


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for _ in questions():
            answer(measure(sys.argv[1]))
    else:
        print(json.dumps(bench(), indent=1))
