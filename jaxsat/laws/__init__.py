"""Scaling laws from any table of losses: forms, robust fits with honest intervals, and the gaps of small models."""

from jaxsat.laws.fit import Fit, Interval, fit
from jaxsat.laws.forms import (
    FORMS,
    Constant,
    Form,
    accuracy_linear,
    accuracy_sigmoid,
    broken_power_law,
    by_family,
    chinchilla,
    data_constrained,
    kaplan,
    power_law,
    power_law_floor,
)
from jaxsat.laws.gaps import HOFFMANN, Gaps, gaps

__all__ = [
    "FORMS",
    "HOFFMANN",
    "Constant",
    "Fit",
    "Form",
    "Gaps",
    "Interval",
    "accuracy_linear",
    "accuracy_sigmoid",
    "broken_power_law",
    "by_family",
    "chinchilla",
    "data_constrained",
    "fit",
    "gaps",
    "kaplan",
    "power_law",
    "power_law_floor",
]
