"""The transformer, its families, its heads, and its loss."""

from jaxsat.model import heads
from jaxsat.model.counts import ParameterCounts, count_parameters, flops_per_token, step_bytes
from jaxsat.model.families import PYTHIA, llama, neox, pythia
from jaxsat.model.loss import cross_entropy, token_losses
from jaxsat.model.marked import read_marks
from jaxsat.model.sharding import split_dimension
from jaxsat.model.transformer import Cache, Params, empty_cache, hidden, init, logits, reader

__all__ = [
    "Cache",
    "PYTHIA",
    "ParameterCounts",
    "Params",
    "count_parameters",
    "cross_entropy",
    "empty_cache",
    "flops_per_token",
    "heads",
    "hidden",
    "init",
    "llama",
    "logits",
    "neox",
    "pythia",
    "read_marks",
    "reader",
    "split_dimension",
    "step_bytes",
    "token_losses",
]
