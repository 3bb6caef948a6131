import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxsat.config import InputError
from jaxsat.report import claims as C
from jaxsat.report.claims import VERDICTS, Claim, Measured, from_json, headline, number, over_seeds, tally, to_json

CLAIM = Claim("gap", "They end above", "8 %", "secondary", over_seeds([0.1, 0.3], "%"), "reproduced", "Above 0.")
floats = st.floats(allow_nan=False, allow_infinity=False, width=32)


def test_three_seeds_give_the_t_interval():
    x = [3.602, 3.618, 3.597]
    m = over_seeds(x, "nats")
    low, high = stats.t.interval(0.95, 2, np.mean(x), stats.sem(x))
    assert (m.value, m.low, m.high) == pytest.approx((np.mean(x), low, high), rel=1e-12)
    assert "95% t interval, 3 seeds" in m.text


def test_two_seeds_give_their_range_and_say_so():
    m = over_seeds([4.602, 4.616])
    assert (m.low, m.high, m.text) == (4.602, 4.616, "range of 2 seeds")


def test_one_seed_has_no_interval():
    assert over_seeds([4.6]) == Measured(4.6, text="one seed, no interval")


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_no_mean_of_nothing(values):
    with pytest.raises(InputError, match="finite"):
        over_seeds(values)


@pytest.mark.parametrize(
    "measured, text",
    [
        (Measured(3.33412, 3.3241, 3.3441, "nats"), "3.334 [3.324, 3.344] nats"),
        (Measured(0.15, 0.02579, 0.2742, "%"), "0.15 [0.03, 0.27] %"),
        (Measured(-1.4, -2.8, 1.3), "−1.4 [−2.8, 1.3]"),
        (Measured(1.69, 0.0, math.inf), "1.69 [0, ∞]"),
        (Measured(7, unit="runs"), "7 runs"),
        (Measured(math.nan), "–"),
        (Measured(12345.6, 11000.0, 14000.0), "12,346 [11,000, 14,000]"),
    ],
)
def test_measured_prints_the_digits_that_mean_something(measured, text):
    assert str(measured) == text


@pytest.mark.parametrize(
    "value, text",
    [(3.33412, "3.334"), (1540096, "1,540,096"), (2.3e-7, "2.3e−7"), (None, "–"), (-math.inf, "−∞"), (1234.5, "1,234")],
)
def test_number(value, text):
    assert number(value) == text


@given(floats, floats, floats, st.sampled_from(VERDICTS), st.sampled_from(sorted(C.ORIGINS)), st.text())
def test_json_round_trip(value, low, high, verdict, origin, text):
    claims = [Claim("a", text, text, origin, Measured(value, low, high, "nats", text), verdict, text, text)]
    claims.append(dataclasses.replace(claims[0], id="b", measured=None))
    assert from_json(to_json(claims)) == claims


def test_json_has_no_nan_and_an_unbounded_end_is_null():
    claim = dataclasses.replace(CLAIM, measured=Measured(1.0, 0.0, math.inf))
    assert json.loads(to_json([claim]))[0]["measured"]["high"] is None


@pytest.mark.parametrize("field, word", [("origin", "recalled"), ("verdict", "not reproduced")])
def test_misspelt_words_are_named(field, word):
    with pytest.raises(InputError, match=f"{field} of claim 'gap' '{word[:-2]}'; did you mean '{word}'"):
        dataclasses.replace(CLAIM, **{field: word[:-2]})


def test_headline_counts_only_what_can_be_tested():
    missed, untested = (dataclasses.replace(CLAIM, verdict=v) for v in VERDICTS[1:])
    assert headline([CLAIM, missed, untested]) == (
        "1 of the 2 claims that this scale can test was reproduced; 1 more needs a larger one."
    )
    assert headline([CLAIM, CLAIM]) == "2 of the 2 claims that this scale can test were reproduced."
    assert headline([untested]) == "None of the 1 claims can be tested at this scale."
    assert headline([]) == "No claims were examined."
    assert list(tally([CLAIM, missed, missed]).values()) == [1, 2, 0]
