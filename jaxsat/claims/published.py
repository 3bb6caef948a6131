"""Figures that others have published, typed in, each with its origin above its table; and what they say of claims."""

from importlib import resources

import numpy as np
import pandas as pd

from jaxsat.claims.estimates import contrast
from jaxsat.claims.saturation import saturation
from jaxsat.measure import Computed
from jaxsat.model import count_parameters, pythia
from jaxsat.results import NotMeasured, Results
from jaxsat.verdicts import Estimate

PYTHIA_TOKENS_PER_STEP = 2_097_152
LAMBADA = "lambada_perplexity"


def lambada() -> list[Computed]:
    """Of 13 Pythia models, by name, the zero-shot perplexity on LAMBADA at 16 steps from 1000 on."""
    with resources.files("jaxsat.claims").joinpath("pythia_lambada.csv").open() as file:
        table = pd.read_csv(file, comment="#", index_col="step")
    about = {"metric": LAMBADA, "step": table.index, "tokens": table.index * PYTHIA_TOKENS_PER_STEP}
    rows = {name: pd.DataFrame(about | {"value": of.to_numpy()}) for name, of in table.items()}
    return [Computed(name, lambda of=of: of) for name, of in rows.items()]


def lambada_rise(results: Results, small: float) -> Estimate:
    """By how much more the perplexity of models below `small` parameters ends above its best level than that of the
    others, in nats (the log of what `saturation` finds). A model is a unit, though many have a twin on deduplicated
    text."""
    how = "log of the last over the best level, small models less larger ones; perplexities as published"
    rows = results.measurements[results.measurements["metric"] == LAMBADA]
    if rows.empty:
        raise NotMeasured("the published perplexities of Pythia")
    found = {name: saturation(of["step"], of["value"]) for name, of in rows.groupby("series")}
    nats = pd.Series({name: np.log(curve.last_over_best) for name, curve in found.items()})
    is_small = nats.index.map(lambda name: count_parameters(pythia(name.split("-")[1])).total < small)
    return contrast(nats[is_small], nats[~is_small], "nats", how)
