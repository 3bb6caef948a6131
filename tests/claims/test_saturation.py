"""The detector on curves whose end is known, and on public evaluations of models that are known to saturate."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsat.claims.saturation import saturation
from jaxsat.config import InputError

PYTHIA = np.array([1, *2.0 ** np.arange(10), 1000, 3000, *range(13_000, 143_001, 10_000)])[
    1:
]  # those of its evaluations
DENSE = np.array([*2.0 ** np.arange(10), *range(1000, 143_001, 1000)])
EVEN = np.arange(1.0, 41.0)


def curve(rng: np.random.Generator, steps_C: np.ndarray, rise: float, noise: float, falls: float = 0.0) -> np.ndarray:
    """A loss that ends its fall, or goes on by a power law, and from the middle on rises to `rise` times the noise."""
    x_C = steps_C / steps_C[-1]
    late_C = rise * noise * np.clip((x_C - 0.5) / 0.35, 0, 1)
    mean_C = 1 + 3 * np.exp(-60 * x_C) + falls * (x_C**-0.5 - 1) + late_C
    return np.exp(mean_C + noise * rng.standard_normal(len(steps_C)))


def shares(rise: float, falls: float = 0.0, steps_C: np.ndarray = PYTHIA, repeats: int = 1000) -> pd.Series:
    """Of 1000 curves, with the noises that perplexities and losses have (1 to 10 %), the share of each verdict."""
    rng = np.random.default_rng(0)
    words = [
        saturation(steps_C, curve(rng, steps_C, rise, noise, falls)).verdict
        for noise in rng.uniform(0.01, 0.1, repeats)
    ]
    return pd.Series(words).value_counts(normalize=True).reindex(["saturated", "not saturated", "undecided"]).fillna(0)


@pytest.mark.parametrize(
    "steps_C", [PYTHIA, EVEN, pytest.param(DENSE, marks=pytest.mark.slow)], ids=["pythia", "even", "dense"]
)
def test_false_alarms_and_power(steps_C):
    """At most 5 % of curves that do not saturate are called so, by the hardest of them, which are flat; at least 90 %
    of those that rise by three times the noise. Of 1000 draws 5 % have a deviation of 0.7 %."""
    assert shares(0.0, steps_C=steps_C)["saturated"] < 0.057
    assert shares(0.0, falls=0.02, steps_C=steps_C)["saturated"] < 0.05
    risen = shares(3.0, steps_C=steps_C)
    assert risen["saturated"] > 0.9 and risen["not saturated"] < 0.08


def test_bounds_hold_the_truth():
    """Of the level at the end: 3 times the noise from 85 % of training on. Each bound is of 95 %."""
    rng, inside = np.random.default_rng(1), []
    for _ in range(400):
        found = saturation(EVEN, curve(rng, EVEN, 3.0, 0.03))
        inside.append([found.low <= np.exp(0.09), np.exp(0.09) <= found.high])
    assert (np.mean(inside, axis=0) > 0.93).all()


def test_curves_without_noise():
    falls = 5 * EVEN**-0.5
    assert saturation(EVEN, falls).verdict == "not saturated" and saturation(EVEN, falls).last_over_best == 1.0
    rises = np.where(EVEN <= 20, falls, falls[19] * 1.02 ** (EVEN - 20))
    found = saturation(EVEN, rises)
    assert found.verdict == "saturated" and found.best_step == 20.0
    assert found.low <= found.last_over_best <= found.high and found.last_over_best == pytest.approx(1.02**20, rel=0.1)
    flat = saturation(EVEN, np.ones(40))
    assert flat.verdict == "not saturated" and flat.low == flat.high == flat.last_over_best == 1.0


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(0, 6))
def test_units_change_nothing(seed, unit, rise):
    values = curve(np.random.default_rng(seed), PYTHIA, rise, 0.05)
    found, scaled = (saturation(PYTHIA, values * by) for by in (1.0, unit))
    of_better = saturation(PYTHIA, 1 / values, higher_is_better=True)
    assert found.verdict == scaled.verdict == of_better.verdict
    assert found.best_step == scaled.best_step == of_better.best_step
    for key in ("last_over_best", "low", "high"):
        assert getattr(found, key) == pytest.approx(getattr(scaled, key), rel=1e-6)
    assert found.last_over_best == pytest.approx(1 / of_better.last_over_best, rel=1e-6)
    assert (found.low, found.high) == pytest.approx((1 / of_better.high, 1 / of_better.low), rel=1e-6)


@pytest.mark.parametrize("level", [0.0, -2.0])
def test_what_may_be_zero_or_less_is_compared_by_differences(level):
    """Exact match, which begins at nothing; log likelihoods."""
    rng = np.random.default_rng(0)
    hill = level + np.clip(np.minimum(EVEN - 10, 50 - EVEN), 0, None) / 30 + 0.01 * rng.standard_normal(40)
    found = saturation(EVEN, hill, higher_is_better=True)
    assert found.verdict == "saturated" and found.best_step == pytest.approx(30, abs=2)


def test_few_checkpoints_decide_nothing():
    found = saturation(np.arange(1.0, 6.0), [5.0, 4.0, 3.0, 3.5, 4.0])
    assert found.verdict == "undecided" and np.isnan(found.low) and found.last_over_best == pytest.approx(4 / 3)


@pytest.mark.parametrize("steps, values", [([], []), ([1, 1], [1, 2]), ([2, 1], [1, 2]), ([1, 2], [1, np.nan])])
def test_what_is_no_curve_is_refused(steps, values):
    with pytest.raises(InputError, match="a curve needs finite values"):
        saturation(steps, values)


def test_public_evaluations(shared_data):
    table = pd.read_csv(shared_data / "pythia_evals" / "pythia_evals.csv.gz")
    table = table[(table["task"] == "lambada_openai") & (table["num_fewshot"] == 0) & (table["kind"] == "standard")]
    for metric in ("ppl", "acc"):
        of = table[table["metric"] == metric].sort_values("step").groupby("model")
        found = {name: saturation(of["step"], of["value"], metric == "acc").verdict for name, of in of}
        small = {"pythia-70m", "pythia-70m-deduped", "pythia-160m"}
        assert {name for name, word in found.items() if word == "saturated"} == small, metric
        assert all(word == "not saturated" for name, word in found.items() if name not in small), metric
