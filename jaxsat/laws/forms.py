"""Law forms: what a scaling law says the loss is, as a small value that `fit` can fit. A user's own law is one more.

mine = Form(
    "mine", "L = A / (x + x0)^alpha", "this work", ("x",),
    (Constant("A", (1, 100)), Constant("x0", (1, 100)), Constant("alpha", (0.2, 1), positive=False)),
    lambda c, x: jnp.log(c["A"]) - c["alpha"] * jnp.log(x["x"] + c["x0"]),
)
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax import Array, nn

from jaxsat.config import InputError, unknown

SCALES = ("log", "linear")


@dataclass(frozen=True)
class Constant:
    """A constant of a law: where fits start, and whether it is positive (and then fitted as its logarithm).

    `starts`: numbers, or what gives them out of the table's columns {name: x_R}, those of the inputs and of the output.
    They must come from the columns where the unit of an input may be anything: x1 in parameters, tokens or FLOPs.
    """

    name: str
    starts: Sequence[float] | Callable[[Mapping[str, np.ndarray]], Sequence[float]]
    positive: bool = True
    like: str = ""  # constants that are alike start at the same values, and so do not multiply the grid

    def __post_init__(self):
        if not callable(self.starts):  # a tuple, as forms are hashed
            object.__setattr__(self, "starts", tuple(float(s) for s in self.starts))

    def starts_at(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(self.starts(columns) if callable(self.starts) else self.starts, np.float64)


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


def _middle(x_R: np.ndarray) -> float:
    return float(np.exp(np.log(x_R).mean()))


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

kaplan = Form(
    "kaplan",
    "L(N, D) = [(Nc/N)^(alpha_N/alpha_D) + Dc/D]^alpha_D",
    "Kaplan et al. (2020), arXiv:2001.08361, eq. 1.5",
    ("N", "D"),
    (
        Constant("Nc", lambda table: _middle(table["N"]) * 10.0 ** np.arange(-3, 15, 3)),
        Constant("Dc", lambda table: _middle(table["D"]) * 10.0 ** np.arange(-3, 15, 3)),
        Constant("alpha_N", (0.05, 0.1, 0.2, 0.4)),
        Constant("alpha_D", (0.05, 0.1, 0.2, 0.4)),
    ),
    lambda c, x: (
        c["alpha_D"] * jnp.log(_power(c["Nc"], 1.0, x["N"]) ** (c["alpha_N"] / c["alpha_D"]) + c["Dc"] / x["D"])
    ),
)


def _fresh(unique: Array, seen: Array, scale: Array) -> Array:
    """What `seen` is worth of which `unique` were new: repetition k is worth exp(-k / scale) of the first."""
    unique = jnp.minimum(unique, seen)
    return unique * (1 - scale * jnp.expm1(-(seen / unique - 1) / scale))


def _data_constrained(c: dict[str, Array], x: dict[str, Array]) -> Array:
    # The N that is optimal for U tokens: N = G (C/6)^a and D = (C/6)^b / G, of which G is (alpha A / beta B)^(1/(...)).
    ratio = c["beta"] / c["alpha"]
    log_g = jnp.log(c["alpha"] * c["A"] / (c["beta"] * c["B"])) / (c["alpha"] + c["beta"])
    enough = jnp.exp((1 + ratio) * log_g + ratio * jnp.log(jnp.minimum(x["U"], x["D"])))
    n, d = _fresh(enough, x["N"], c["R_N"]), _fresh(x["U"], x["D"], c["R_D"])
    return chinchilla.log_prediction(c, {"N": n, "D": d})


data_constrained = Form(
    "data_constrained",
    "L(N, D, U) = E + A/N'^alpha + B/D'^beta, D' = U_D + U_D R_D (1 - exp(-(D/U_D - 1)/R_D)), U_D = min(U, D), N' "
    "likewise of U_N = min(N, the N that is optimal for U_D)",
    "Muennighoff et al. (2023), arXiv:2305.16264, eq. 5 and 6, and Cuervo & Marxer (2024), arXiv:2404.00685",
    ("N", "D", "U"),
    (
        Constant("E", np.exp((-1.0, 0.5))),
        Constant("A", np.exp((3.0, 7.0, 15.0))),
        Constant("B", np.exp((3.0, 7.0, 15.0))),
        Constant("alpha", (0.2, 0.4, 0.8)),
        Constant("beta", (0.2, 0.4, 0.8)),
        Constant("R_N", (2.0, 20.0)),
        Constant("R_D", (2.0, 20.0)),
    ),
    _data_constrained,
)

broken_power_law = Form(
    "broken_power_law",
    "L(x) = E + A/x^c0 (1 + (x/x1)^(1/f1))^(-c1 f1)",
    "Caballero et al. (2023), arXiv:2210.14891, eq. 1, with one break, at x1",
    ("x",),
    (
        Constant("E", lambda table: table["loss"].min() * np.array((0.1, 0.7))),
        Constant("A", lambda table: _middle(table["loss"]) * _middle(table["x"]) ** np.array((0.0, 0.2, 0.5))),
        Constant("c0", (0.0, 0.2, 0.5), positive=False),
        Constant("c1", (-0.3, 0.3), positive=False),
        Constant("x1", lambda table: np.geomspace(table["x"].min(), table["x"].max(), 9)[1:-1]),
        Constant("f1", (0.3,)),
    ),
    lambda c, x: jnp.log(
        c["E"]
        + _power(c["A"], c["c0"], x["x"])
        * jnp.exp(-c["c1"] * c["f1"] * jnp.logaddexp(0.0, jnp.log(x["x"] / c["x1"]) / c["f1"]))
    ),
)

accuracy_linear = Form(
    "accuracy_linear",
    "accuracy(L) = max(a - b L, 0)",
    "Cuervo & Marxer (2024), arXiv:2404.00685: linear in the loss before it saturates",
    ("loss",),
    (Constant("a", (1.0, 2.0)), Constant("b", (0.01, 0.1, 0.3))),
    lambda c, x: jnp.log(jnp.maximum(c["a"] - c["b"] * x["loss"], 1e-12)),
    output="accuracy",
    scale="linear",
)

accuracy_sigmoid = Form(
    "accuracy_sigmoid",
    "accuracy(L) = low + (high - low) / (1 + exp(k (L - L0)))",
    "Bhagia et al. (2024), arXiv:2412.04403, eq. 3",
    ("loss",),
    (
        Constant("low", (0.05, 0.25, 0.5)),
        Constant("high", (0.6, 1.0)),
        Constant("k", (1.0, 3.0, 10.0)),
        Constant("L0", (0.5, 1.0, 2.0, 3.0, 4.0)),
    ),
    lambda c, x: jnp.log(c["low"] + (c["high"] - c["low"]) * nn.sigmoid(c["k"] * (c["L0"] - x["loss"]))),
    output="accuracy",
    scale="linear",
)

FORMS = {
    form.name: form
    for form in (
        chinchilla,
        power_law,
        power_law_floor,
        kaplan,
        data_constrained,
        broken_power_law,
        accuracy_linear,
        accuracy_sigmoid,
    )
}


def by_family(form: Form, families: Sequence[str], own: Collection[str]) -> Form:
    """`form` for several families of models at once: each has its own constants `own`, and they share the others.

    Its constants are E[gpt], E[llama], ... for E, and it has one more input, `family`: 1 for the first of `families`, 2
    for the second, and so on. Raises InputError: no or unknown names in `own`, fewer than two families.
    """
    for name in own:
        if name not in form.names:
            raise unknown(f"constant of {form.name} that each family has for itself", name, form.names)
    if not own or len(set(families)) < 2 or len(set(families)) < len(families):
        raise InputError(f"families {list(families)} with their own {list(own)}: needs two and a constant, at least")
    names = {name: [f"{name}[{family}]" for family in families] for name in own}
    constants = [
        one
        for c in form.constants
        for one in ([replace(c, name=name, like=c.name) for name in names[c.name]] if c.name in names else [c])
    ]

    def log_prediction(c: dict[str, Array], x: dict[str, Array]) -> Array:
        of = lambda each: sum(jnp.where(x["family"] == i, c[name], 0.0) for i, name in enumerate(each, start=1))
        return form.log_prediction({**c, **{name: of(each) for name, each in names.items()}}, x)

    formula = f"{form.formula}, each family with its own {', '.join(names)}"
    return replace(
        form,
        name=f"{form.name} by family",
        formula=formula,
        inputs=(*form.inputs, "family"),
        constants=tuple(constants),
        log_prediction=log_prediction,
    )
