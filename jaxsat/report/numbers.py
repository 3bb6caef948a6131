"""Numbers and estimates in the words of pages, figures and the terminal."""

import math

from jaxsat.verdicts import Estimate


def si(value: float) -> str:
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def number(value: float | None) -> str:
    """Four significant digits; thousands separated; nothing measured is a dash."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:,.4g}"
    return text.replace("e-0", "e-").replace("-", "−")


def signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def estimate(e: Estimate) -> str:
    """The value, its interval and its unit, with as many decimals as the interval's width has meaning. An end that is
    no bound is said to be none."""
    if math.isinf(e.low) and math.isinf(e.high):
        return f"{number(e.value)} {e.unit}".strip() + ", without a bound on either side"
    if math.isinf(e.low) or math.isinf(e.high) or not 1e-5 < e.high - e.low < 1e15:
        value, low, high = map(number, (e.value, e.low, e.high))
    else:
        decimals = max(0, 1 - math.floor(math.log10(e.high - e.low)))
        while decimals < 9 and any(end and not round(end, decimals) for end in (e.low, e.high)):
            decimals += 1  # an end near zero is on one side of it
        value, low, high = (f"{x:,.{decimals}f}".replace("-", "−") for x in (e.value, e.low, e.high))
    low, high = ("no bound" if math.isinf(end) else text for end, text in ((e.low, low), (e.high, high)))
    return f"{value} [{low}, {high}] {e.unit}".strip()
