"""Results shaped as the laptop-scale sweep's: losses of the size that was measured there, every metric, two seeds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from jaxsat.config import ModelConfig, Run, TrainConfig, checkpoint_steps, flatten
from jaxsat.laws.law import Law
from jaxsat.results import Results

WIDTHS = (8, 16, 32, 64)
COLUMNS = ["series", "step", "tokens", "layer", "index", "metric", "value"]


def final_loss(d: int, r: int, steps: int = 1500) -> float:
    return 1.9 + 3.4 * d**-0.3 + 2.6 * r**-0.6 + 40 * steps**-0.75


def history(run: Run, rng: np.random.Generator) -> list[tuple]:
    """Every metric of one run at each checkpoint: (step, tokens, layer, index, metric, value)."""
    d, r, depth = run.model.width, run.model.rank, run.model.depth
    end, noise = final_loss(d, r, run.train.steps), rng.normal(0, 0.006)
    rows = []
    for step in checkpoint_steps(run.train):
        tokens = step * run.tokens_per_step
        t = step / run.train.steps
        late = np.log1p(step) / np.log1p(run.train.steps)
        loss = end + noise + (6.93 - end) * (1 - late) ** 1.3 + rng.normal(0, 0.002)
        spike = d**0.3 * np.exp(-((np.log1p(step) - 3.5) ** 2)) + 1.5 * t * (run.train.weight_decay == 0)
        sigma = np.sqrt(np.linspace(1, 0.25, r)) * (1 - 0.3 * t)
        sigma[0] *= 1.1 + spike
        p = sigma / sigma.sum()
        entropy = float(np.log(r) + (p * np.log(p)).sum())
        cosines = [0.02 + 0.8 * t * layer / d**0.5 + 0.2 * spike / (1 + spike) for layer in range(depth + 1)]
        one = {"heldout_loss": loss, "singular_entropy": entropy, "effective_rank": r * np.exp(-entropy),
               "largest_share": p[0], "condition_number": sigma[0] / sigma[-1]}  # fmt: skip
        rows += [(step, tokens, -1, 0, metric, value) for metric, value in one.items()]
        rows += [(step, tokens, -1, i, "singular_value", value) for i, value in enumerate(sigma)]
        rows += [(step, tokens, layer, 0, "anisotropy", value) for layer, value in enumerate(cosines)]
        rows += [(step, tokens, depth, 0, "anisotropy_before_gain", cosines[-1] + 0.1 * t)]
        rows += [(step, tokens, depth, 0, "anisotropy_after_gain", cosines[-1] - 0.05 * t)]
        if step == run.train.steps and r == d and d >= 32:
            rows += [(step, tokens, -1, q, "frozen_head_loss", end + 2.9 * (q**-0.6 - d**-0.6)) for q in _ranks(2, d)]
    return rows


def _ranks(low: int, high: int) -> list[int]:
    return [2**k for k in range(12) if low <= 2**k <= high]


def points() -> list[tuple[str, Run]]:
    found = []
    for d in WIDTHS:
        for r in _ranks(2 if d < 64 else 4, d):
            for seed in (0, 1) if d < 32 or r == d else (0,):
                model = ModelConfig(width=d, heads=max(1, d // 16), head_rank=None if r == d else r)
                found.append(("main", Run(model, TrainConfig(learning_rate=0.384 / d), seed=seed)))
    for d in WIDTHS[:3]:
        for steps in (375, 750):
            model = ModelConfig(width=d, heads=max(1, d // 16))
            train = TrainConfig(steps=steps, learning_rate=0.384 / d)
            found += [("budget", Run(model, train, seed=seed)) for seed in (0, 1)]
    for wd in (0.0, 0.1):
        for lr in (0.04, 0.12):
            train = TrainConfig(steps=3000, learning_rate=lr, weight_decay=wd)
            found.append(("probe", Run(ModelConfig(width=8, heads=1), train)))
    return found


@pytest.fixture(scope="session")
def results() -> Results:
    """Parts main, budget and probe, and two worlds that are no runs, i^-0.5 and i^-1.5."""
    runs, rows, parts = {}, [], {"main": (), "budget": (), "probe": ()}
    rng = np.random.default_rng(0)
    for part, run in points():
        d, depth, vocab = run.model.width, run.model.depth, run.model.vocab_size
        blocks = depth * 12 * d * d
        counts = {"params.nonembedding": blocks, "params.head": vocab * d, "params.total": blocks + 2 * vocab * d}
        own = {"tokens": run.train.steps * run.tokens_per_step, "epochs": 1.0, "state": "done", "part": part}
        id = run.id
        runs[id] = flatten(run) | counts | own
        parts[part] += (id,)
        rows += [(id, *row) for row in history(run, rng)]
    for spectrum, power in (("i^-0.5", 0.5), ("i^-1.5", 1.5)):
        sigma = np.arange(1, 17) ** -power * 1.2
        for r in (1, 2, 3, 4, 6, 8, 12, 16):
            tail = float(np.sqrt((sigma[r:] ** 2).sum()))
            values = {"head_tail": tail, "head_gap_truncated": 0.46 * tail**2, "head_gap_trained": 0.44 * tail**2.04}
            rows += [(spectrum, 0, 0, -1, r, metric, value) for metric, value in values.items()]
    measurements = pd.DataFrame(rows, columns=COLUMNS).astype({"layer": "int32", "index": "int32"})
    return Results("laptop", pd.DataFrame.from_dict(runs, orient="index"), measurements, parts)


@pytest.fixture(scope="session")
def law() -> Law:
    """Of the full heads of main and budget; the widest are held out."""

    def rows(results: Results) -> pd.DataFrame:
        last = results.last("heldout_loss", part=("main", "budget"), where="`model.head_rank`.isna()")
        return last.rename(columns={"params.total": "N", "tokens": "D", "value": "loss"}).set_index("series")

    return Law(rows, hold={"E": 1.9, "B": 3000.0, "beta": 0.7}, held_out="model.width")


@pytest.fixture(scope="session")
def fitted(results: Results, law: Law) -> Results:
    """With the law "L(N, D)"."""
    return replace(results, laws={"L(N, D)": law.fit(law.rows(results))})
