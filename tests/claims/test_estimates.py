import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxsat.claims import (
    Estimate,
    association,
    contrast,
    knee,
    knee_over_documents,
    late_level,
    late_rise,
    mean_over,
    slope,
)
from jaxsat.config import InputError
from jaxsat.results import NotMeasured
from tests.claims.simulations import LAPTOP, POD, jitter, nats

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def test_mean_over_is_students_t():
    values = rng().normal(2, 1, 7)
    found = mean_over(values, "nats", "a metric")
    assert (found.value, found.n, found.unit) == (values.mean(), 7, "nats")
    assert ends(found) == pytest.approx(stats.t.interval(0.9, 6, values.mean(), stats.sem(values)))


def test_one_unit_has_no_bound():
    assert ends(mean_over([1.5], "%", "one run")) == (-np.inf, np.inf)


def test_nothing_is_not_measured():
    with pytest.raises(NotMeasured, match="^the loss$"):
        mean_over([], "nats", "the loss")


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="the loss: needs a list of finite numbers"):
        mean_over([1.0, np.nan], "nats", "the loss")


def test_contrast_pairs_what_has_one_name():
    a = pd.Series({"s0": 1.0, "s1": 2.5, "s2": 3.1})
    b = pd.Series({"s2": 3.0, "s1": 2.2, "s0": 0.4, "s3": 9.0})
    found = contrast(a, b, "nats", "a less b")
    paired = stats.ttest_rel(a, b[a.index]).confidence_interval(0.9)
    assert ends(found) == pytest.approx(tuple(paired)) and found.n == 3 and "3 pairs" in found.how


def test_contrast_of_two_samples_is_welchs():
    a, b = pd.Series(rng(1).normal(0, 1, 5)), pd.Series(rng(2).normal(1, 3, 8), list("abcdefgh"))
    found = contrast(a, b, "nats", "a less b")
    assert ends(found) == pytest.approx(tuple(stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)))
    assert found.n == 5 and "5 against 8" in found.how
    one = contrast(a[:1], b, "nats", "a less b")
    assert ends(one) == (-np.inf, np.inf) and one.n == 1


def test_contrast_refuses_two_values_of_one_unit():
    twice = pd.Series([1.0, 2.0], ["s0", "s0"])
    with pytest.raises(InputError, match="a less b: two values of 's0'"):
        contrast(twice, twice, "", "a less b")


@given(st.lists(numbers, min_size=2, max_size=9, unique=True), st.lists(numbers, min_size=2, max_size=9, unique=True))
def test_contrast_changes_its_sign_with_its_sides(a: list[float], b: list[float]):
    one, other = pd.Series(a), pd.Series(b, [f"b{i}" for i in range(len(b))])
    there, back = contrast(one, other, "", "x"), contrast(other, one, "", "x")
    assert [there.value, *ends(there)] == pytest.approx([-back.value, -back.high, -back.low], abs=1e-9)


def test_jitter_makes_no_rise():
    """The last less the run's own minimum is above zero always; a rise must be as often below (finding D3)."""
    flat = [nats(rng(i), LAPTOP, 0.0) for i in range(300)]
    assert all(x.mean(axis=1)[-1] >= x.mean(axis=1).min() for x in flat)
    rises = np.array([late_rise(x, LAPTOP).value for x in flat])
    assert (rises > 0).mean() < 0.55
    assert abs(rises.mean()) < 0.1  # per cent, of .2 % jitter


@pytest.mark.parametrize("steps", [LAPTOP, POD], ids=["laptop", "pod"])
def test_a_planted_rise_is_found_with_its_size(steps: np.ndarray):
    found = [late_rise(nats(rng(i), steps, 4.0), steps) for i in range(100)]
    assert np.mean([e.value for e in found]) == pytest.approx(4, abs=0.15)
    assert np.mean([e.low <= 4 <= e.high for e in found]) > 0.85
    assert found[0].n == 50 and found[0].unit == "%"


def test_a_curve_that_falls_has_no_rise():
    falling = np.linspace(4, 3, 40)[:, None] + rng().normal(0, 0.3, 20)
    found = late_rise(falling)
    assert found.high < 0


def test_a_rise_holds_the_jitter_that_documents_share():
    """A thousand documents that move as one are no more than one curve."""
    shared = 3 * (1 + 0.002 * jitter(rng(), 40))
    found = late_rise(np.repeat(shared[:, None], 1000, axis=1))
    assert found.high - found.low > 0.2  # per cent: the documents alone would say 0


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 10))
def test_a_rise_does_not_depend_on_the_unit_of_loss(seed: int, scale: float):
    losses = nats(rng(seed), LAPTOP, 1.0)
    one, other = late_rise(losses, LAPTOP), late_rise(losses * scale, LAPTOP)
    assert [other.value, *ends(other)] == pytest.approx([one.value, *ends(one)], rel=1e-6, abs=1e-9)


def test_a_rise_needs_checkpoints_and_documents():
    with pytest.raises(NotMeasured, match="5 checkpoints after the first tenth, there are 4"):
        late_rise(np.ones((4, 50)), [1, 2, 3, 4])
    with pytest.raises(NotMeasured, match="two documents at least, there are 1"):
        late_rise(np.ones((20, 1)))
    with pytest.raises(InputError, match="in rising order"):
        late_rise(np.ones((20, 50)), np.arange(20)[::-1])
    with pytest.raises(InputError, match="finite loss"):
        late_rise(np.full((20, 50), np.nan))


def test_late_level():
    """A spike in the first tenth, a level, a rise of .3 that begins after the middle; and the level alone."""
    steps = np.arange(1.0, 101)
    spike = np.where(steps < 8, 5.0, 0.2)
    assert late_level(spike + 0.3 * (steps > 70), steps) == pytest.approx(0.3)
    assert late_level(spike, steps) == 0
    levels = [late_level(spike + 0.02 * jitter(rng(i), 100), steps) for i in range(300)]
    assert abs(np.mean(levels)) < 0.005


def test_association_is_spearmans():
    x, y = rng(3).normal(size=(2, 20))
    y = x + y
    found = association(x, y, "x with y")
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert -1 < found.low < found.value < found.high < 1 and found.n == 20


def test_association_matches_runs_by_their_index():
    x = pd.Series({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0})
    found = association(x, (2 * x)[::-1], "x with y")
    assert found.value == pytest.approx(1) and 0 < found.low < 1
    assert association(x, x.drop("a"), "x with y").n == 4


def test_association_of_few_runs_has_no_bound():
    assert ends(association([1, 2, 3, 4], [1, 2, 3, 4], "x with y")) == (-np.inf, np.inf)
    five, decay = [1.0, 2, 3, 4, 5], pd.DataFrame({"decay": [0, 1, 0, 1, 0]})
    assert ends(association(five, five, "x with y", decay)) == (-np.inf, np.inf)


def test_association_of_what_never_differs_is_none():
    found = association(range(8), [1.0] * 8, "x with y")
    assert (found.value, *ends(found)) == (0, -np.inf, np.inf)
    told = association(range(8), range(8), "x with y", pd.DataFrame({"size": range(8)}))
    assert (told.value, *ends(told)) == (0, -np.inf, np.inf)


@given(st.lists(st.integers(0, 4), min_size=5, max_size=30), st.data())
def test_association_with_ties(x: list[int], data: st.DataObject):
    y = data.draw(st.lists(st.integers(0, 4), min_size=len(x), max_size=len(x)))
    found = association(x, y, "x with y")
    if len(set(x)) > 1 < len(set(y)):
        assert found.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    else:
        assert found.value == 0


def test_controls_take_their_part():
    """Both follow the learning rate: what is left beside it is nothing (finding D6)."""
    rate = np.repeat([1.0, 2.0, 3.0], 20)
    x, y = 3 * rate + rng(4).normal(size=(2, 60))
    assert association(x, y, "x with y").low > 0.5
    left = association(x, y, "x with y", pd.DataFrame({"rate": rate}))
    assert left.low < 0 < left.high


def test_slope_is_least_squares():
    x = np.arange(8.0)
    y = 2 * x + rng().normal(size=8)
    line = stats.linregress(x, y)
    found = slope(x, y, "nats", "y by x")
    half = stats.t.ppf(0.95, 6) * line.stderr
    assert [found.value, *ends(found)] == pytest.approx([line.slope, line.slope - half, line.slope + half])
    assert ends(slope(x[:2], y[:2], "nats", "y by x")) == (-np.inf, np.inf)


def test_slope_of_groups_is_over_groups():
    """Each group has its own level and slope; a group at one x has none."""
    x, group = [1.0, 2, 3, 1, 2, 3, 1, 2, 3, 5], list("aaabbbcccd")
    y = [10.0, 11, 12, 20, 22, 24, 5, 8, 11, 0]
    found = slope(x, y, "nats", "y by x", group)
    assert found.value == pytest.approx(2) and found.n == 3 and "mean of 3 slopes" in found.how
    assert ends(found) == pytest.approx(stats.t.interval(0.9, 2, 2, 1 / np.sqrt(3)))


@pytest.mark.parametrize("group", [None, list("aab")])
def test_no_slope_is_not_measured(group: list[str] | None):
    with pytest.raises(NotMeasured, match="y by x"):
        slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], "", "y by x", group)


def test_points_without_a_match_are_refused_by_count():
    with pytest.raises(InputError, match="y by x"):
        slope([1.0, 2.0], [1.0, 2.0, 3.0], "", "y by x")


@given(st.floats(3, 100), st.floats(1, 3))
def test_knee_is_interpolated(true: float, power: float):
    grid = 2.0 ** np.arange(1, 12)
    losses = 3 * (1 + 0.01 * (grid / true) ** -power)
    assert knee(grid, losses) == pytest.approx(true, rel=0.25)  # a step of the grid is a factor of 2
    assert knee(grid[::-1], losses[::-1]) == knee(grid, losses)


def test_knee_is_not_moved_by_a_wiggle():
    """The loss of rank 8 is .0004 nats below that of rank 16: no knee of its own."""
    grid = np.array([2, 4, 8, 16, 32, 64])
    losses = np.array([4.0, 3.5, 3.1, 3.0004, 3.0, 3.0])
    wiggle = losses + np.array([0, 0, 0, 0, 0.0004, -0.0004])
    assert knee(grid, wiggle) == pytest.approx(knee(grid, losses), rel=0.02)


def test_the_grid_may_not_hold_the_knee():
    assert np.isnan(knee([2, 4, 8, 16], [4.0, 3.5, 3.2, 3.0]))  # the last alone is within 1 %
    assert np.isnan(knee([2, 4, 8, 16], [3.0, 3.0, 3.0, 3.0]))  # the first is


WIDTH = 1024
GRID = np.array([2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, WIDTH], float)


def documents(draws: np.random.Generator, excess_K: np.ndarray, noise: float = 0.003) -> tuple[np.ndarray, np.ndarray]:
    """(nats_MxK, tokens_M) of 120 documents, some harder than others, where the loss is so far above 3 nats."""
    hard_M, tokens_M = draws.lognormal(0, 0.25, 120), draws.integers(100, 900, 120)
    own_MxK = 1 + noise * draws.standard_normal((120, len(excess_K)))
    return 3 * hard_M[:, None] * (1 + excess_K)[None] * own_MxK, tokens_M


def power_law(exponent: float, at: float, excess: float = 0.01) -> np.ndarray:
    """Above the loss at the full width: by `excess` at rank `at`. Exponent 0: as much a doubling everywhere."""
    above = lambda rank: np.log(WIDTH / rank) if exponent == 0 else rank**-exponent - WIDTH**-exponent
    return excess * above(GRID) / above(at)


def found(draws: np.random.Generator, excess_K: np.ndarray, noise: float = 0.003) -> Estimate | None:
    try:
        return knee_over_documents(GRID, *documents(draws, excess_K, noise))
    except NotMeasured:
        return None


@pytest.mark.parametrize(
    "excess_K",
    [
        pytest.param(power_law(0, WIDTH / 4), id="log of the rank"),
        pytest.param(power_law(0.3, WIDTH / 8), id="exponent .3"),
        pytest.param(power_law(1, WIDTH / 8), id="exponent 1"),
        pytest.param(power_law(0.6, WIDTH / 2, excess=0.001), id="as little as can be"),
    ],
)
def test_a_power_law_up_to_the_width_has_no_knee(excess_K):
    draws = rng(1)
    assert sum(found(draws, excess_K) is not None for _ in range(60)) <= 6


def test_a_flat_curve_has_its_knee_in_the_interval():
    """Flat from rank 128 on: within 1 % from rank 41 on."""
    draws, flat_K = rng(2), 0.6 * (1 / np.minimum(GRID, 128) - 1 / 128)
    true = 1 / (0.01 / 0.6 + 1 / 128)
    estimates = [e for _ in range(60) if (e := found(draws, flat_K, noise=0.001))]
    assert len(estimates) >= 57 and sum(e.low <= true <= e.high for e in estimates) >= 0.9 * len(estimates)
    assert all(e.value == pytest.approx(true, rel=0.2) and e.high <= 2 * e.low for e in estimates)
    assert np.mean([e is not None for e in (found(draws, flat_K) for _ in range(60))]) > 0.5


def test_a_knee_over_documents_is_that_of_their_tokens():
    flat_K = 0.6 * (1 / np.minimum(GRID, 128) - 1 / 128)
    nats_MxK, tokens_M = documents(rng(), flat_K, noise=0.001)
    estimate = knee_over_documents(GRID, nats_MxK, tokens_M)
    assert estimate.value == pytest.approx(knee(GRID, np.average(nats_MxK, axis=0, weights=tokens_M)))
    assert (estimate.low, estimate.high, estimate.n) == (32, 48, 120), "ranks of the grid"
    turned = knee_over_documents(GRID[::-1], nats_MxK[:, ::-1], tokens_M)
    assert turned.value == pytest.approx(estimate.value) and ends(turned) == ends(estimate)


def test_what_has_no_knee_is_told():
    nats_MxK, tokens_M = documents(rng(), power_law(0, WIDTH / 2))
    with pytest.raises(NotMeasured, match=r"no knee within the width 1024, .* fall by 1\.\d\d% from half the width"):
        knee_over_documents(GRID, nats_MxK, tokens_M)
    with pytest.raises(NotMeasured, match="the least rank, 2, is within"):
        knee_over_documents(GRID, *documents(rng(), 0 * GRID, noise=0.0001))
    with pytest.raises(NotMeasured, match="two documents at least, there is 1"):
        knee_over_documents(GRID, nats_MxK[:1])
    with pytest.raises(InputError, match="needs a finite loss of each document at each of three ranks"):
        knee_over_documents(GRID[1:], nats_MxK)
