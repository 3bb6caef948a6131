"""Scaling laws from any table of losses: forms, robust fits with honest intervals, and the gaps of small models."""

from jaxsat.laws.choice import Choice, HeldOut, choose, held_out
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
from jaxsat.laws.frontier import IsoFlop, allocate, isoflop, optimum
from jaxsat.laws.gaps import HOFFMANN, Gaps, gaps
from jaxsat.laws.law import Law

__all__ = [
    "FORMS",
    "HOFFMANN",
    "Choice",
    "Constant",
    "Fit",
    "Form",
    "Gaps",
    "HeldOut",
    "Interval",
    "IsoFlop",
    "Law",
    "accuracy_linear",
    "accuracy_sigmoid",
    "allocate",
    "broken_power_law",
    "by_family",
    "chinchilla",
    "choose",
    "data_constrained",
    "fit",
    "gaps",
    "held_out",
    "isoflop",
    "kaplan",
    "optimum",
    "power_law",
    "power_law_floor",
]
