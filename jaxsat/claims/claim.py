"""A claim is a value: what a paper says, an estimate with an interval, the region that it asserts. One function judges.

the scale lacks what the claim needs      not testable at this scale
the whole interval inside the region      reproduced
the whole interval outside it             not reproduced
else, or fewer than three units           undecided
a measure that is missing                 not measured
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from jaxsat import verdicts
from jaxsat.config import InputError, unknown
from jaxsat.results import NotMeasured, Results
from jaxsat.verdicts import ORIGINS, Estimate, Kind, Verdict

FEWEST_UNITS = 3


@dataclass(frozen=True)
class Paper:
    """A source. `id`: what files and pages call it."""

    id: str
    authors: str
    year: int
    title: str
    where: str  # arXiv number, venue

    def __str__(self) -> str:
        return f"{self.authors} ({self.year}), {self.where}"


@dataclass(frozen=True)
class Region:
    """What a claim asserts of its estimate: it lies between `low` and `high`, which do not belong to it.

    Raises InputError for a region that is empty, or that everything lies in.
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not all(isinstance(end, int | float) for end in (self.low, self.high)):
            raise InputError(f"a region from {self.low!r} to {self.high!r}: its ends must be numbers")
        if not self.low < self.high or math.isinf(self.low) and math.isinf(self.high):
            raise InputError(f"a claim's region goes from a number up to a greater one, not {self.low} to {self.high}")

    def holds(self, estimate: Estimate) -> bool:
        """Whether the whole interval is inside; an end without a bound is, where the region has none either."""
        return (self.low < estimate.low or math.isinf(self.low)) and (
            estimate.high < self.high or math.isinf(self.high)
        )

    def excludes(self, estimate: Estimate) -> bool:
        """Whether the whole interval is outside."""
        return estimate.high <= self.low or estimate.low >= self.high

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}"
        return f"below {self.high:g}" if math.isinf(self.low) else f"between {self.low:g} and {self.high:g}"


def above(low: float) -> Region:
    return Region(low=low)


def below(high: float) -> Region:
    return Region(high=high)


def between(low: float, high: float) -> Region:
    return Region(low, high)


def nothing(results: Results) -> str:
    """Of a claim that can be tested at any scale."""
    return ""


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, and how it is tested.

    says: the statement, with every threshold that decides in it. number: the paper's, as text; may be empty. origin: a
    key of `ORIGINS`. estimate: raises NotMeasured where a measurement is missing. holds: where the interval must lie;
    of a claim with a number this is its direction, and at the paper's own scale (`pod`) it is `at_pod`, the number with
    its tolerance. needs: what the scale lacks to test this, "" for nothing; asked before training too, so of the runs
    alone. kind: "check" (a theorem, a derivation of our own) is never counted. of: the parts, measures and computed
    that it needs, for `--only`.

    Raises InputError on an origin or a kind that does not exist.
    """

    id: str
    says: str
    paper: Paper
    number: str
    origin: str
    estimate: Callable[[Results], Estimate]
    holds: Region
    needs: Callable[[Results], str] = nothing
    at_pod: Region | None = None
    kind: Kind = "paper"
    of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.origin not in ORIGINS:
            raise unknown(f"origin of claim {self.id!r}", self.origin, ORIGINS)
        for name, kind in (("id", str), ("says", str), ("paper", Paper), ("number", str), ("holds", Region),
                           ("of", tuple)):  # fmt: skip
            if not isinstance(getattr(self, name), kind):
                given = getattr(self, name)
                raise InputError(f"claim {self.id!r}: {name} = {given!r:.60} must be a {kind.__name__}")
        if not callable(self.estimate) or not callable(self.needs):
            raise InputError(f"claim {self.id!r}: estimate and needs must be functions of the results")
        if self.kind not in get_args(Kind):
            raise unknown(f"kind of claim {self.id!r}", self.kind, get_args(Kind))

    def region(self, scale: str) -> Region:
        return self.at_pod if self.at_pod and scale == "pod" else self.holds


@dataclass(frozen=True)
class Judged:
    """A claim beside what was measured. `needs`: what is missing, of a verdict that has no estimate."""

    claim: Claim
    verdict: Verdict
    region: Region
    estimate: Estimate | None = None
    needs: str = ""


def judge(claim: Claim, results: Results) -> Judged:
    """The verdict: see the head of this module. An InputError of the claim's own functions names the claim."""
    region = claim.region(results.scale)
    try:
        if lacking := claim.needs(results):
            return Judged(claim, "not testable at this scale", region, needs=lacking)
        estimate = claim.estimate(results)
    except NotMeasured as e:
        return Judged(claim, "not measured", region, needs=str(e))
    except InputError as e:
        raise InputError(f"claim {claim.id!r}: {e}") from None
    if not isinstance(estimate, Estimate):
        raise InputError(f"claim {claim.id!r}: its estimate must be an Estimate with an interval, not {estimate!r}")
    return Judged(claim, verdict(estimate, region), region, estimate)


def verdict(estimate: Estimate, region: Region) -> Verdict:
    """Of an estimate that there is."""
    if estimate.n < FEWEST_UNITS:
        return "undecided"
    if region.holds(estimate):
        return "reproduced"
    return "not reproduced" if region.excludes(estimate) else "undecided"


def tally(judged: Sequence[Judged]) -> dict[Paper, dict[Verdict, int]]:
    """Verdicts counted by paper, in the order of `VERDICTS`; checks are not counted."""
    return verdicts.tally((j.claim.paper, j.claim.kind, j.verdict) for j in judged)


def headline(judged: Sequence[Judged]) -> list[str]:
    """A sentence a paper: what was reproduced of the claims that this scale can test, and how many it cannot."""
    return verdicts.headline(tally(judged))


def to_json(judged: Sequence[Judged]) -> str:
    """The text of claims.json: [{id, paper, kind, says, number, origin, verdict, region, estimate, needs}]; an end of
    an interval that is no bound is null."""
    documents = []
    for j in judged:
        c = j.claim
        documents.append({
            "id": c.id, "paper": str(c.paper), "kind": c.kind, "says": c.says, "number": c.number, "origin": c.origin,
            "verdict": j.verdict, "region": str(j.region), "estimate": j.estimate and _plain(j.estimate),
            "needs": j.needs,
        })  # fmt: skip
    return json.dumps(documents, indent=1, allow_nan=False) + "\n"


def _plain(estimate: Estimate) -> dict[str, object]:
    """As JSON can say it: numbers of Python's own, null for what is not finite."""
    ends = {name: float(getattr(estimate, name)) for name in ("value", "low", "high")}
    ends = {name: end if math.isfinite(end) else None for name, end in ends.items()}
    return ends | {"unit": estimate.unit, "how": estimate.how, "n": int(estimate.n)}
