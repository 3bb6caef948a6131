"""Claims of papers beside what was measured, with a verdict that is computed."""

from jaxsat.claims.claim import (
    Claim,
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
from jaxsat.claims.estimates import (
    association,
    contrast,
    knee,
    knee_over_documents,
    late_level,
    late_rise,
    mean_over,
    slope,
)
from jaxsat.verdicts import ORIGINS, VERDICTS, Estimate

__all__ = [
    "ORIGINS",
    "VERDICTS",
    "Claim",
    "Estimate",
    "Judged",
    "Paper",
    "Region",
    "above",
    "association",
    "below",
    "between",
    "contrast",
    "headline",
    "judge",
    "knee",
    "knee_over_documents",
    "late_level",
    "late_rise",
    "mean_over",
    "slope",
    "tally",
    "to_json",
    "verdict",
]
