"""Measurements of a checkpoint: pure jitted functions, and the table they fill."""

from jaxsat.measure import table
from jaxsat.measure.anisotropy import anisotropy
from jaxsat.measure.checkpoints import abstract_params, measure_frozen_heads, measure_pack
from jaxsat.measure.heads import control, frozen_head_losses, lipschitz_bound, train_frozen_heads, truncated_heads
from jaxsat.measure.spectra import (
    condition_number,
    effective_rank,
    factored_head_spectrum,
    head_spectrum,
    largest_share,
    singular_entropy,
)

__all__ = [
    "abstract_params",
    "anisotropy",
    "condition_number",
    "control",
    "effective_rank",
    "factored_head_spectrum",
    "frozen_head_losses",
    "head_spectrum",
    "largest_share",
    "lipschitz_bound",
    "measure_frozen_heads",
    "measure_pack",
    "singular_entropy",
    "table",
    "train_frozen_heads",
    "truncated_heads",
]
