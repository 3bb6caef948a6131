import math

import pytest

from jaxsat.report import numbers
from jaxsat.verdicts import Estimate

INF = math.inf


@pytest.mark.parametrize(
    "value, low, high, unit, text",
    [
        (3.33412, 3.3241, 3.3441, "nats", "3.334 [3.324, 3.344] nats"),
        (0.15, 0.02579, 0.2742, "%", "0.15 [0.03, 0.27] %"),
        (-1.4, -2.8, 1.3, "", "−1.4 [−2.8, 1.3]"),
        (12345.6, 11000.0, 14000.0, "", "12,346 [11,000, 14,000]"),
        (2.3e-7, 1.1e-7, 4e-7, "", "2.3e−7 [1.1e−7, 4e−7]"),
        (2.0, 2.0, 2.0, "", "2 [2, 2]"),
        (1.69, 0.5, INF, "nats", "1.69 [0.5, no bound] nats"),
        (1.69, -INF, 2.5, "", "1.69 [no bound, 2.5]"),
        (0.3, -INF, INF, "%", "0.3 %, without a bound on either side"),
    ],
)
def test_an_estimate_prints_the_digits_that_mean_something(value, low, high, unit, text):
    assert numbers.estimate(Estimate(value, low, high, unit, "mean over runs", 5)) == text


@pytest.mark.parametrize(
    "value, text",
    [(3.33412, "3.334"), (1540096, "1,540,096"), (2.3e-7, "2.3e−7"), (None, "–"), (-INF, "−∞"), (1234.5, "1,234")],
)
def test_number(value, text):
    assert numbers.number(value) == text
