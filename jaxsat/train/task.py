"""What is trained: a task gives parameters and loss; loop, packs, checkpoints and resume are the same for all."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxsat import model
from jaxsat.config import ModelConfig

Init = Callable[[ModelConfig, jax.Array, jax.Array], model.Params]
Loss = Callable[[ModelConfig, model.Params, jax.Array, jax.Array, str], jax.Array]


@dataclass(frozen=True)
class Task:
    """Pure functions, traced into the program of a pack; what they need to know of a run stands in its ModelConfig.

    init(config, key, rank) -> parameters, float32 arrays in nested dicts. loss(config, params, rows, key, remat) -> the
    mean over a batch, float32. `reads`: rows are rows_BxT1 of the run's text; otherwise they are zeros_Bx1, and the
    loss draws its B samples from `key`, which is another for every step and data seed.
    """

    init: Init
    loss: Loss
    reads: bool = True


def _language_model(
    config: ModelConfig, params: model.Params, rows_BxT1: jax.Array, key: jax.Array, remat: str
) -> jax.Array:
    h_BxTxD, _ = model.hidden(config, params, rows_BxT1[:, :-1], remat)
    return model.heads.loss(config, params, h_BxTxD, rows_BxT1[:, 1:])


LANGUAGE_MODEL = Task(model.init, _language_model)
