"""Law forms: what a scaling law says the loss is, as a small value that `fit` can fit. A user's own law is one more.

mine = Form(
    "mine", "L = A / (x + x0)^alpha", "this work", ("x",),
    (Constant("A", (1, 100)), Constant("x0", (1, 100)), Constant("alpha", (0.2, 1), positive=False)),
    lambda c, x: jnp.log(c["A"]) - c["alpha"] * jnp.log(x["x"] + c["x0"]),
)
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

SCALES = ("log", "linear")


@dataclass(frozen=True)
class Constant:
    """A constant of a law: where fits start, and whether it is positive (and then fitted as its logarithm)."""

    name: str
    starts: tuple[float, ...]
    positive: bool = True
    like: str = ""  # constants that are alike start at the same values, and so do not multiply the grid

    def __post_init__(self):
        object.__setattr__(self, "starts", tuple(float(s) for s in self.starts))


@dataclass(frozen=True)
class Form:
    """A law. `log_prediction(constants, inputs)`: {name: scalar} and {input: x_R} to the natural log of L, shape R,
    each row of its own inputs alone."""

    name: str
    formula: str  # for people
    source: str
    inputs: tuple[str, ...]
    constants: tuple[Constant, ...]
    log_prediction: Callable[[dict[str, Array], dict[str, Array]], Array]
    output: str = "loss"  # what L is
    scale: str = "log"  # what residuals are of, unless a fit is told otherwise: "log" or "linear"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.constants)

    def positive(self, name: str) -> bool:
        return next(c.positive for c in self.constants if c.name == name)


def _power(scale: Array, exponent: Array, x: Array) -> Array:
    return scale * jnp.exp(-exponent * jnp.log(x))


# The grid of starts of Hoffmann et al. (2022), appendix D.3, as used in the replication of Besiroglu et al. (2024):
# log A and log B in 0, 5, ..., 25; log E in -1, -0.5, ..., 1; exponents in 0, 0.5, ..., 2: 4500 starts.
_SCALES = np.exp(np.arange(0, 30, 5.0))
_FLOORS = np.exp(np.arange(-1, 1.5, 0.5))
_EXPONENTS = np.arange(0, 2.5, 0.5)

chinchilla = Form(
    "chinchilla",
    "L(N, D) = E + A/N^alpha + B/D^beta",
    "Hoffmann et al. (2022), arXiv:2203.15556, eq. 2",
    ("N", "D"),
    (
        Constant("E", _FLOORS),
        Constant("A", _SCALES),
        Constant("B", _SCALES),
        Constant("alpha", _EXPONENTS, positive=False),
        Constant("beta", _EXPONENTS, positive=False),
    ),
    lambda c, x: jnp.log(c["E"] + _power(c["A"], c["alpha"], x["N"]) + _power(c["B"], c["beta"], x["D"])),
)

power_law = Form(
    "power_law",
    "L(x) = A/x^alpha",
    "Kaplan et al. (2020), arXiv:2001.08361, eq. 1.1",
    ("x",),
    (Constant("A", _SCALES), Constant("alpha", _EXPONENTS, positive=False)),
    lambda c, x: jnp.log(c["A"]) - c["alpha"] * jnp.log(x["x"]),
)

power_law_floor = Form(
    "power_law_floor",
    "L(x) = E + A/x^alpha",
    "Henighan et al. (2020), arXiv:2010.14701, eq. 1.1",
    ("x",),
    (Constant("E", _FLOORS), Constant("A", _SCALES), Constant("alpha", _EXPONENTS, positive=False)),
    lambda c, x: jnp.log(c["E"] + _power(c["A"], c["alpha"], x["x"])),
)

FORMS = {form.name: form for form in (chinchilla, power_law, power_law_floor)}
