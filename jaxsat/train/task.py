"""What is trained: a task gives parameters and loss; loop, packs, checkpoints and resume are the same for all."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxsat import model
from jaxsat.config import InputError, ModelConfig
from jaxsat.corpus.synthetic import Language
from jaxsat.evaluate.generation import written

Init = Callable[[ModelConfig, jax.Array, jax.Array], model.Params]
Loss = Callable[[ModelConfig, model.Params, jax.Array, jax.Array, str], jax.Array]


@dataclass(frozen=True)
class Task:
    """Pure functions, traced into the program of a pack; what they need to know of a run stands in its ModelConfig.

    init(config, key, rank) -> parameters, float32 arrays in nested dicts. loss(config, params, rows, key, remat) -> the
    mean over a batch, float32. `reads`: rows are rows_BxT1 of the run's text; otherwise they are zeros_Bx1, and the
    loss draws its B samples from `key`, which is another for every step and data seed. `pairs`: the rows may be of
    pairs, see `model.read_marks`.
    """

    init: Init
    loss: Loss
    reads: bool = True
    pairs: bool = False


def _language_model(
    config: ModelConfig, params: model.Params, rows_BxT1: jax.Array, key: jax.Array, remat: str
) -> jax.Array:
    h_BxTxD, _ = model.hidden(config, params, rows_BxT1[:, :-1], remat)
    return model.heads.loss(config, params, h_BxTxD, rows_BxT1[:, 1:])


def _on_pairs(config: ModelConfig, params: model.Params, rows_BxT1: jax.Array, key: jax.Array, remat: str) -> jax.Array:
    inputs_BxT, segment_BxT = model.read_marks(rows_BxT1)
    h_BxTxD, _ = model.hidden(config, params, inputs_BxT, remat, segment_BxT)
    return model.heads.loss(config, params, h_BxTxD, rows_BxT1[:, 1:])


LANGUAGE_MODEL = Task(model.init, _language_model)
ON_PAIRS = Task(model.init, _on_pairs, pairs=True)  # the same on a corpus that holds some


@functools.cache  # equal tasks are one program
def own_samples(share: float) -> Task:
    """A language model on its own samples: of each batch this share of the rows, one at least, keep their first token,
    and the rest of them is written by the model as it is at that step, at temperature 1. Raises InputError."""
    if not 0 < share <= 1:
        raise InputError(f"own_samples({share}): the share of a batch must be above 0, and 1 at most")

    def loss(config: ModelConfig, params: model.Params, rows_BxT1: jax.Array, key: jax.Array, remat: str) -> jax.Array:
        n_own, n_new = max(1, round(share * len(rows_BxT1))), rows_BxT1.shape[1] - 1
        own_NxT = written(config, jax.lax.stop_gradient(params), rows_BxT1[:n_own, :1], n_new, key)
        return _language_model(config, params, rows_BxT1.at[:n_own, 1:].set(own_NxT), key, remat)

    return Task(model.init, loss)


@functools.cache
def drawn_from(language: Language) -> Task:
    """A language model on rows of a language that is drawn, as long as its context, without any text. What its loss is
    above the least possible: `measure.excess_loss`."""

    def loss(config: ModelConfig, params: model.Params, zeros_Bx1: jax.Array, key: jax.Array, remat: str) -> jax.Array:
        rows_BxT1 = language.rows(config.vocab_size, key, len(zeros_Bx1), config.context)
        inputs_BxT, _ = model.read_marks(rows_BxT1)
        h_BxTxD, _ = model.hidden(config, params, inputs_BxT, remat)
        return model.heads.loss(config, params, h_BxTxD, rows_BxT1[:, 1:])

    return Task(model.init, loss, reads=False)
