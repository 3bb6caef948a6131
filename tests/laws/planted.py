"""A law that is known, noisy losses of it, and the objective of its constants."""

from dataclasses import replace

import numpy as np

from jaxsat.laws import chinchilla

# Few starts for data that are easy, so that tests are quick; the published grid is tried on the published data.
STARTS = {"E": (0.6, 1.6), "A": (1, 2e4, 5e8), "B": (1, 2e4, 5e8), "alpha": (0.2, 0.6), "beta": (0.2, 0.6)}
QUICK = replace(chinchilla, constants=tuple(replace(c, starts=STARTS[c.name]) for c in chinchilla.constants))
TRUTH = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.36}


def law(constants, n, d):
    return constants["E"] + constants["A"] / n ** constants["alpha"] + constants["B"] / d ** constants["beta"]


def draw(noise=0.005, seed=0):
    rng = np.random.default_rng(seed)
    inputs = {"N": 10 ** rng.uniform(7.5, 10.5, 60), "D": 10 ** rng.uniform(8.5, 11.5, 60)}
    return inputs, law(TRUTH, inputs["N"], inputs["D"]) * np.exp(rng.normal(0, noise, 60))


def huber_sum(constants, inputs, loss, delta=1e-3):
    r = np.abs(np.log(loss) - np.log(law(constants, inputs["N"], inputs["D"])))
    return np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).sum()


def values(fitted):
    return {name: c.value for name, c in fitted.constants.items()}
