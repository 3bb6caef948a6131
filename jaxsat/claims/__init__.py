"""Claims of papers beside what was measured, with a verdict that is computed."""

from jaxsat.claims.claim import (
    ORIGINS,
    VERDICTS,
    Claim,
    Estimate,
    Judged,
    Paper,
    Region,
    above,
    below,
    between,
    headline,
    judge,
    tally,
    to_json,
    verdict,
)

__all__ = [
    "ORIGINS",
    "VERDICTS",
    "Claim",
    "Estimate",
    "Judged",
    "Paper",
    "Region",
    "above",
    "below",
    "between",
    "headline",
    "judge",
    "tally",
    "to_json",
    "verdict",
]
