"""Scores of the tokens of a text."""

import contextlib
import functools
from collections.abc import Sequence

import jax
import numpy as np

from jaxsat import model
from jaxsat.config import InputError, ModelConfig

BLOCK_TOKENS = 1024  # of a forward pass on one device: few enough to stay in a CPU's cache


def exact() -> contextlib.AbstractContextManager:
    """Around (`with exact():`) or above (`@exact()`) what traces an evaluation: products of float32 are then float32 on
    every device. By default a GPU rounds their factors to TF32 and a TPU to bfloat16."""
    return jax.default_matmul_precision("highest")


@functools.partial(jax.jit, static_argnames=("config", "pairs"))
@exact()
def token_losses(config: ModelConfig, params: model.Params, rows_BxT1: jax.Array, pairs: bool = False) -> jax.Array:
    """nats_BxT, float32: the loss of each token of the rows but the first, given those before it; 0 where it is no
    target.

    A token of the context that is no target is written ~token, which is negative; so is padding, ~0. `pairs`: where
    marked tokens begin again after a target, another pair begins, which does not see the one before. One forward pass
    without B x T x V logits, to be called inside `over_runs` and `jax.lax.map` too. Ids are not checked: `check_rows`.
    """
    inputs_BxT, segment_BxT = model.read_marks(rows_BxT1)
    h_BxTxD, _ = model.hidden(config, params, inputs_BxT, segment_BxT=segment_BxT if pairs else None)
    return model.heads.token_losses(config, params, h_BxTxD, rows_BxT1[:, 1:])


def log_probabilities(
    config: ModelConfig,
    params: model.Params,
    rows: np.ndarray | Sequence,
    positions: np.ndarray | Sequence | None = None,
) -> np.ndarray:
    """log P of tokens given all before them in their row, in nats, float32: N x P for the tokens at `positions` (P of
    them, the same in every row, or N x P; from 1 on, since the first token has nothing before it); by default of all
    but the first, N x T.

    `rows`: N x (T + 1) ids. A shorter row may end in any ids, since no token sees a later one. Raises InputError for
    ids that are not the model's, rows longer than its context, and positions outside the rows.
    """
    rows_NxT1 = check_rows(config, rows)
    n, t1 = rows_NxT1.shape
    places = np.arange(1, t1) if positions is None else np.atleast_1d(_integers(positions, "positions"))
    if not places.size or places.shape[:-1] not in ((), (n,)):
        raise InputError(f"positions of shape {places.shape}: must be P or {n} x P")
    if places.min() < 1 or places.max() >= t1:
        raise InputError(f"position {places[(places < 1) | (places >= t1)][0]}: must lie between 1 and {t1 - 1}")
    size = min(n, max(1, BLOCK_TOKENS // (t1 - 1)))
    padded = np.pad(rows_NxT1, ((0, -n % size), (0, 0)), constant_values=-1)  # one program for blocks of any length
    blocks = [token_losses(config, params, padded[i : i + size]) for i in range(0, n, size)]
    losses_NxT = np.concatenate(jax.device_get(blocks))[:n]
    return -np.take_along_axis(losses_NxT, np.broadcast_to(places, (n, places.shape[-1])) - 1, axis=1)


def check_rows(config: ModelConfig, rows: np.ndarray | Sequence) -> np.ndarray:
    """rows_NxT1 as int32. Raises InputError when they are not rows of two or more of the model's token ids, or are
    longer than its context: a look-up would take another row of the table without a word."""
    rows_NxT1 = _integers(rows, "rows")
    if rows_NxT1.ndim != 2 or not len(rows_NxT1) or rows_NxT1.shape[1] < 2:
        raise InputError(f"rows of shape {rows_NxT1.shape}: must be N x (T + 1) token ids, T at least 1")
    if rows_NxT1.shape[1] > config.context + 1:
        raise InputError(
            f"rows of {rows_NxT1.shape[1]} tokens: model.context = {config.context} takes one more at most"
        )
    wrong = rows_NxT1[(rows_NxT1 < 0) | (rows_NxT1 >= config.vocab_size)]
    if len(wrong):
        raise InputError(
            f"token id {wrong[0]}: the model's are 0 to {config.vocab_size - 1}; were these rows made by its tokenizer?"
        )
    return rows_NxT1.astype(np.int32)


def _integers(values: np.ndarray | Sequence, what: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"{what} of different lengths: fill the shorter ones up, with any that are allowed") from None
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"{what} of type {array.dtype}: must be integers")
    return array
