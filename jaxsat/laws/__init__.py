"""Scaling laws from any table of losses: forms, robust fits with honest intervals, and the gaps of small models."""

from jaxsat.laws.fit import Fit, Interval, fit
from jaxsat.laws.forms import FORMS, Constant, Form, chinchilla, power_law, power_law_floor
from jaxsat.laws.gaps import HOFFMANN, Gaps, gaps

__all__ = [
    "FORMS",
    "HOFFMANN",
    "Constant",
    "Fit",
    "Form",
    "Gaps",
    "Interval",
    "chinchilla",
    "fit",
    "gaps",
    "power_law",
    "power_law_floor",
]
