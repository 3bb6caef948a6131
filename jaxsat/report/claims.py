"""Claims: what a paper says, what was measured here, and a verdict that was computed."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import stats

from jaxsat.config import InputError, unknown

Verdict = Literal["reproduced", "not reproduced", "not testable at this scale"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

# How far the paper's number can be trusted, in words for the reader of the page.
ORIGINS = {
    "full": "read in the paper",
    "repo": "read in the authors' code",
    "secondary": "as public summaries of the paper give it; not checked in its text",
    "recalled": "recalled from memory; not checked in any source",
    "derived": "derived by us, not stated by the paper",
}


@dataclass(frozen=True)
class Measured:
    """A value with its interval; `text` says in words what the interval is, or qualifies the number."""

    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    text: str = ""

    def __str__(self) -> str:
        ends = (self.low, self.high)
        if None in ends or not np.isfinite(ends).all() or self.low == self.high:
            interval = "" if None in ends else f" [{number(self.low)}, {number(self.high)}]"
            text = number(self.value) + interval
        else:  # as many decimals as the interval's width has meaning
            decimals = max(0, 1 - math.floor(math.log10(self.high - self.low)))
            text = "{:,.{n}f} [{:,.{n}f}, {:,.{n}f}]".format(self.value, *ends, n=decimals).replace("-", "−")
        return text + (f" {self.unit}" if self.unit else "")


@dataclass(frozen=True)
class Claim:
    """One statement of a paper beside our measurement.

    paper: the paper's number as text, may be empty. origin: a key of `ORIGINS`. reason: one sentence on how the
    verdict was computed. command: what to run at the scale that would test it, may be empty.
    Raises InputError on an origin or verdict that does not exist.
    """

    id: str
    statement: str
    paper: str
    origin: str
    measured: Measured | None
    verdict: Verdict
    reason: str
    command: str = ""

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise unknown(f"origin of claim {self.id!r}", self.origin, ORIGINS)
        if self.verdict not in VERDICTS:
            raise unknown(f"verdict of claim {self.id!r}", self.verdict, VERDICTS)


def over_seeds(values: Sequence[float], unit: str = "", level: float = 0.95) -> Measured:
    """The mean over seeds with an honest interval.

    Three seeds or more: Student's t interval of the mean. Two: their range, and the text says so: a t interval
    with one degree of freedom is 12.7 standard errors to each side and excludes nothing, while the range of two draws
    holds a symmetric distribution's centre only half of the time. One: no interval. Raises InputError on none.
    """
    x_S = np.asarray(values, dtype=np.float64)
    n = x_S.size
    if n == 0 or not np.isfinite(x_S).all():
        raise InputError(f"cannot average over seeds: {list(values)} must be at least one finite number")
    mean = float(x_S.mean())
    if n == 1:
        return Measured(mean, unit=unit, text="one seed, no interval")
    if n == 2:
        return Measured(mean, float(x_S.min()), float(x_S.max()), unit, "range of 2 seeds")
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * x_S.std(ddof=1) / math.sqrt(n))
    return Measured(mean, mean - half, mean + half, unit, f"{level:.0%} t interval, {n} seeds")


def tally(claims: Sequence[Claim]) -> dict[Verdict, int]:
    """How many claims got each verdict, in the order of `VERDICTS`."""
    counts = Counter(claim.verdict for claim in claims)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def headline(claims: Sequence[Claim]) -> str:
    """The result in one sentence, which counts only what this scale can test."""
    counts = tally(claims)
    untested = counts["not testable at this scale"]
    tested = len(claims) - untested
    if not claims:
        return "No claims were examined."
    if not tested:
        return f"None of the {len(claims)} claims can be tested at this scale."
    yes = counts["reproduced"]
    sentence = f"{yes} of the {tested} claims that this scale can test {'was' if yes == 1 else 'were'} reproduced"
    return sentence + (f"; {untested} more need{'s' if untested == 1 else ''} a larger one." if untested else ".")


def to_json(claims: Sequence[Claim]) -> str:
    """The text of claims.json: a list of objects with the fields of `Claim`; a number that is not finite is null."""
    return json.dumps([_finite(dataclasses.asdict(claim)) for claim in claims], indent=1, allow_nan=False) + "\n"


def from_json(text: str) -> list[Claim]:
    """The inverse of `to_json`."""
    claims = json.loads(text)
    return [Claim(**{**claim, "measured": claim["measured"] and Measured(**claim["measured"])}) for claim in claims]


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


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
