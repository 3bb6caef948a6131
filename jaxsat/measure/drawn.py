"""Measures on a language that is drawn: what a model's loss is above the least there is."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxsat import model
from jaxsat.config import Run
from jaxsat.corpus.synthetic import Language, share_seen
from jaxsat.evaluate.scores import BLOCK_TOKENS
from jaxsat.measure.measure import Checkpoint, Measure, every
from jaxsat.model.sharding import axis_size, constrain

DRAWN_TOKENS = 8192  # of rows that are the same for all models and steps


def excess_loss(language: Language, runs: Callable[[Run], bool] = every) -> Measure:
    """`excess_loss`: how far the expected loss on DRAWN_TOKENS of the language is above the least possible, nats a
    token; never below 0. Loss and entropy are paired on the same contexts, and their next tokens are not drawn but
    weighed: it is the mean of KL(truth || model), 0 of the truth and log V less the entropy of a uniform model.
    `known_entropy`: the entropy there, nats a token."""
    return Measure(f"excess_loss {language}", partial(_excess_loss, language=language), runs=runs, traced=True)


def symbols_seen(runs: Callable[[Run], bool] = every) -> Measure:
    """`symbols_seen`: the share of the symbols of `Spam` that training has had until then, as expected."""
    return Measure("symbols_seen", _symbols_seen, runs=runs)


def drawn_blocks(c: Checkpoint, language: Language) -> jax.Array:
    """tokens_NxBxT1 of DRAWN_TOKENS at least, in blocks for one forward pass each; see `Language.rows` for marks."""
    T, n_devices = c.config.context, axis_size("data")
    n_rows = n_devices * max(1, BLOCK_TOKENS // T)
    n_blocks = -(-DRAWN_TOKENS // (n_rows * T))
    # Training folds a step into its key, so that no data seed gives these rows.
    rows_MxT1 = language.rows(c.config.vocab_size, jax.random.key(0), n_blocks * n_rows, T)
    return constrain(rows_MxT1.reshape(n_blocks, n_rows, T + 1), None, "data")


def divergence(log_p: jax.Array, log_q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(KL(p || q), the entropy of p) over the last axis, nats; -inf in log_p counts as nothing."""
    p, log_p = jnp.exp(log_p), jnp.where(log_p == -jnp.inf, 0, log_p)
    weighed = lambda nats: jnp.where(p > 0, p * nats, 0).sum(-1)
    return weighed(log_p - log_q), weighed(-log_p)


def _excess_loss(c: Checkpoint, language: Language) -> dict[str, jax.Array]:
    def block(rows_BxT1: jax.Array) -> jax.Array:
        h_BxTxD, _ = model.hidden(c.config, c.params, model.read_marks(rows_BxT1)[0])

        def row(args: tuple[jax.Array, jax.Array]) -> jax.Array:  # one at a time: B x T x V may be gigabytes
            h_TxD, row_T1 = args
            log_q_TxV = jax.nn.log_softmax(model.heads.logits(c.config, c.params, h_TxD[None])[0])
            found = divergence(language.log_p(c.config.vocab_size, row_T1[None])[0], log_q_TxV)
            target_T = row_T1[1:] >= 0
            return jnp.stack([jnp.where(target_T, x_T, 0).sum() for x_T in (*found, jnp.ones_like(found[0]))])

        return jax.lax.map(row, (h_BxTxD, rows_BxT1))

    excess, entropy, n = jax.lax.map(block, drawn_blocks(c, language)).sum((0, 1))
    return {"excess_loss": excess / n, "known_entropy": entropy / n}


def _symbols_seen(c: Checkpoint) -> dict[str, float]:
    return {"symbols_seen": share_seen(c.tokens // c.config.context, c.config.vocab_size)}
