"""What is said of claims, apart from how it is found: verdicts and their counts, estimates, claims.json.

Without NumPy and pandas, which take longer to load than a page over finished studies to make.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, TypeVar, get_args

from jaxsat.config import InputError
from jaxsat.disk import read_json

T = TypeVar("T", bound=Hashable)
Verdict = Literal["reproduced", "not reproduced", "undecided", "not testable at this scale", "not measured"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Kind = Literal["paper", "follow-up", "check"]

# How far the paper's number can be trusted, in words for the reader of the page.
ORIGINS = {
    "full": "read in the paper",
    "repo": "read in the authors' code",
    "secondary": "as public summaries of the paper give it; not checked in its text",
    "recalled": "recalled from memory; not checked in any source",
    "derived": "derived by us, not stated by the paper",
}


@dataclass(frozen=True)
class Estimate:
    """A value with its interval over n units, which were drawn independently: runs for a claim across runs, documents
    or items for one about a model's own curve. `how` says in words what was estimated and what the interval is.

    unit: of the value ("%", "nats"). An end may be infinite: no bound. Raises InputError when the value is not finite
    or lies outside its interval, or when there is nothing that it is over.
    """

    value: float
    low: float
    high: float
    unit: str
    how: str
    n: int

    def __post_init__(self) -> None:
        if not (self.low <= self.value <= self.high and math.isfinite(self.value)):
            raise InputError(f"{self.how}: {self.value} is no number inside its interval [{self.low}, {self.high}]")
        if self.n < 1:
            raise InputError(f"{self.how}: an estimate is over one unit at least, this one over {self.n}")


@dataclass(frozen=True)
class Told:
    """A claim as claims.json has it."""

    id: str
    paper: str
    kind: Kind
    says: str
    number: str
    origin: str
    verdict: Verdict
    needs: str
    estimate: Estimate | None


class _Claim(TypedDict):
    id: str
    paper: str
    kind: Kind
    says: str
    number: str
    origin: Literal[*ORIGINS]
    verdict: Verdict
    needs: str
    estimate: dict | None


def read(path: Path, todo: str) -> list[Told]:
    """What a report says of its claims, from its claims.json. Raises InputError with what is `todo`: it is cut, or of
    another format."""
    kind, told = "claims of a report", []
    for i, claim in enumerate(read_json(path, list[_Claim], kind, todo)):
        of, estimate = claim["estimate"], None
        try:
            if of is not None:
                low, high = (end if of[k] is None else of[k] for k, end in (("low", -math.inf), ("high", math.inf)))
                estimate = Estimate(of["value"], low, high, str(of["unit"]), str(of["how"]), of["n"])
        except (LookupError, TypeError, OverflowError, InputError):
            raise InputError(f"{path} is not {kind} ({i}.estimate = {of!r:.60}): {todo}") from None
        told.append(Told(**{key: claim[key] for key in _Claim.__annotations__} | {"estimate": estimate}))
    return told


def tally(claims: Iterable[tuple[T, Kind, Verdict]]) -> dict[T, dict[Verdict, int]]:
    """Verdicts counted by paper, in the order of `VERDICTS`, from (paper, kind, verdict); checks are not counted."""
    found: dict[T, dict[Verdict, int]] = {}
    for paper, kind, verdict in claims:
        if kind != "check":
            found.setdefault(paper, dict.fromkeys(VERDICTS, 0))[verdict] += 1
    return found


def headline(counted: Mapping[T, dict[Verdict, int]]) -> list[str]:
    """A sentence a paper: what was reproduced of the claims that this scale can test, and how many it cannot."""
    return [f"{paper}: {_sentence(counts)}" for paper, counts in counted.items()] or ["No paper's claim is examined."]


def _sentence(counts: dict[Verdict, int]) -> str:
    yes, untested = counts["reproduced"], counts["not testable at this scale"]
    tested = sum(counts.values()) - untested
    others = [f"{counts[v]} {v}" for v in ("not reproduced", "undecided", "not measured") if counts[v]]
    said = [", ".join([f"{yes} of {_claims(tested)} reproduced", *others])] if tested else []
    if untested:
        said.append(f"{untested if tested else _claims(untested)} not testable at this scale")
    return "; ".join(said) + "."


def _claims(n: int) -> str:
    return f"{n} claim{'' if n == 1 else 's'}"
