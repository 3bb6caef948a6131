"""Measures of checkpoints as values, the standard ones, and the table they fill."""

from jaxsat.measure import table
from jaxsat.measure.cosine import anisotropy as mean_pairwise_cosine
from jaxsat.measure.drawn import excess_loss, symbols_seen
from jaxsat.measure.frozen import frozen_head_losses, frozen_heads, train_frozen_heads
from jaxsat.measure.gradient import gradient_share, random_share
from jaxsat.measure.heads import control, lipschitz_bound, truncated_heads
from jaxsat.measure.items import items
from jaxsat.measure.language import anisotropy, centred_anisotropy, head, loss, standard
from jaxsat.measure.matrices import MATRICES, all_spectra, norms, row_anisotropy, spectrum
from jaxsat.measure.measure import Checkpoint, Computed, Heldout, Measure
from jaxsat.measure.ngrams import ngrams
from jaxsat.measure.packs import measured
from jaxsat.measure.spectra import (
    condition_number,
    effective_rank,
    factored_head_spectrum,
    head_spectrum,
    largest_share,
    singular_entropy,
)
from jaxsat.measure.speed import latency

__all__ = [
    "Checkpoint",
    "Computed",
    "Heldout",
    "MATRICES",
    "Measure",
    "all_spectra",
    "anisotropy",
    "centred_anisotropy",
    "condition_number",
    "control",
    "effective_rank",
    "excess_loss",
    "factored_head_spectrum",
    "frozen_head_losses",
    "frozen_heads",
    "head",
    "gradient_share",
    "items",
    "head_spectrum",
    "largest_share",
    "latency",
    "lipschitz_bound",
    "loss",
    "mean_pairwise_cosine",
    "measured",
    "ngrams",
    "norms",
    "random_share",
    "row_anisotropy",
    "singular_entropy",
    "spectrum",
    "standard",
    "symbols_seen",
    "table",
    "train_frozen_heads",
    "truncated_heads",
]
