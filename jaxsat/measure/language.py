"""The measures that any language model can be asked."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxsat import model
from jaxsat.config import Run, override, validate
from jaxsat.corpus.documents import fingerprint, label
from jaxsat.corpus.rows import RULES
from jaxsat.evaluate import token_losses
from jaxsat.measure import spectra
from jaxsat.measure.cosine import mean_cosine, sum_of_directions
from jaxsat.measure.measure import Checkpoint, Measure, every

ANISOTROPY_TOKENS = 8192  # the first of the held-out slice


def loss(runs: Callable[[Run], bool] = every, corpus: Sequence[str] = (), tokens: int = 50_000) -> Measure:
    """`heldout_loss`, nats a token of the fixed slice; `heldout_bits_per_byte`, which other tokenizers can be compared
    by; `document_loss`, as the first, of each of its documents, by index.

    corpus: of other text instead, as `data.corpus` names it, cut by the model's own tokenizer as in training: `tokens`
    of it in rows spread over all. NAME.loss, NAME.bits_per_byte, NAME.document_loss; a file's NAME is without ending,
    several have a + between. Another text under the same name is another measure. Raises InputError.
    """
    if not corpus:
        return Measure("loss", _heldout_loss, runs=runs, version=2, traced=True)
    text = validate(override(Run(), {"data.corpus": corpus, "data.heldout_tokens": tokens})).data
    identity = json.dumps([RULES, tokens, [fingerprint(name) for name in text.corpus]])
    name = "+".join(re.sub(r"\.(txt|jsonl|tsv)(\.gz)?$", "", label(name)) for name in text.corpus)
    known_by = f"loss {name} {hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return Measure(known_by, partial(_loss_of, name=name), runs=runs, traced=True, text=text)


def head(runs: Callable[[Run], bool] = every) -> Measure:
    """The spectrum of the output head: `singular_value`s, descending, and what sums them up; see `spectra`. Of a head
    that is not linear those are its last matrix's, and there are `latent.singular_value` and so on of the others.
    `singular_value.n`: of how many rows, the larger dimension."""
    return Measure("head", _head, runs=runs, version=2, traced=True)


def anisotropy(runs: Callable[[Run], bool] = every) -> Measure:
    """Mean cosine of the representations of two positions, over the first ANISOTROPY_TOKENS of the slice: `anisotropy`
    by layer (0: the embedding), `anisotropy_before_gain` and `anisotropy_after_gain` of the last one, normalised; with
    .n at the end, of how many positions whose vector is not zero."""
    return Measure("anisotropy", _anisotropy, runs=runs, version=2, traced=True)


def centred_anisotropy(runs: Callable[[Run], bool] = every) -> Measure:
    """As `anisotropy`, of the differences from the mean over the same positions: `centred_anisotropy` and so on. What
    an offset common to all positions makes of the cosine is gone. Takes two forward passes."""
    return Measure("centred_anisotropy", _centred_anisotropy, runs=runs, traced=True)


def standard() -> list[Measure]:
    """What is measured of every checkpoint where an experiment names no measures."""
    return [loss(), head(), anisotropy()]


def _heldout_loss(c: Checkpoint) -> dict[str, jax.Array]:
    return {metric if metric == "document_loss" else f"heldout_{metric}": value for metric, value in _loss(c).items()}


def _loss_of(c: Checkpoint, name: str) -> dict[str, jax.Array]:
    return {f"{name}.{metric}": value for metric, value in _loss(c).items()}


def _loss(c: Checkpoint) -> dict[str, jax.Array]:
    def block(args: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows_BxT1, unit_BxT = args
        nats_BxT = token_losses(c.config, c.params, rows_BxT1, c.heldout.marked)
        of_unit_BxTxU = jax.nn.one_hot(
            unit_BxT, c.heldout.n_units
        )  # a product, which any mesh can split; -1 is of none
        sums_U = jnp.einsum("bt,btu->u", nats_BxT, of_unit_BxTxU, precision="highest")
        return sums_U, of_unit_BxTxU.sum((0, 1))

    sums_NxU, counts_NxU = jax.lax.map(block, (c.heldout.tokens_NxBxT1, c.heldout.unit_NxBxT))
    nats_U, tokens_U = sums_NxU.sum(0), counts_NxU.sum(0)
    loss = nats_U.sum() / tokens_U.sum()
    bits_per_byte = loss / math.log(2) / c.heldout.bytes_per_token
    return {"loss": loss, "bits_per_byte": bits_per_byte, "document_loss": nats_U / tokens_U}


def _head(c: Checkpoint) -> dict[str, jax.Array]:
    found = {}
    for name, factors in model.heads.matrices(c.config, c.params).items():
        summary = partial(_spectrum, c.rank if name in ("output", "a") else c.config.width)
        if factors[0].ndim == 3:  # several, as layers
            numbers = jax.tree.map(lambda x_L: x_L.reshape(len(x_L), -1), jax.lax.map(summary, *factors))
        else:
            numbers = summary(*factors)
        found |= numbers if name == "output" else {f"{name}.{metric}": value for metric, value in numbers.items()}
    return found


def _spectrum(rank: int | jax.Array, *factors: jax.Array) -> dict[str, jax.Array]:
    """Of a matrix of at most this rank."""
    sigma_R = spectra.head_spectrum(*factors) if len(factors) == 1 else spectra.factored_head_spectrum(*factors)
    return spectra.summary(sigma_R, max(factors[0].shape[0], factors[-1].shape[1]), rank)


def _anisotropy(c: Checkpoint) -> dict[str, jax.Array]:
    def block(states_SxNxD: jax.Array, kept_Nx1: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(sum_of_directions)(jnp.where(kept_Nx1[None], states_SxNxD, 0))

    sums = jax.tree.map(lambda x: x.sum(0), _over_sample(c, block))
    return _named("anisotropy", *sums)


def _centred_anisotropy(c: Checkpoint) -> dict[str, jax.Array]:
    def mean(states_SxNxD: jax.Array, kept_Nx1: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        states, n = _normalised(c, states_SxNxD), kept_Nx1.sum(dtype=jnp.float32)
        over_rows = lambda x: jnp.where(kept_Nx1[None], x, 0).sum(1, keepdims=True) / jnp.maximum(n, 1)
        first_Sx1xD = over_rows(states)
        return first_Sx1xD, over_rows(states - first_Sx1xD), n

    def directions(states_SxNxD: jax.Array, kept_Nx1: jax.Array) -> tuple[jax.Array, jax.Array]:
        centred = _normalised(c, states_SxNxD) - mean_Sx1xD - rest_Sx1xD
        return jax.vmap(sum_of_directions)(jnp.where(kept_Nx1[None], centred, 0))

    # In two parts, of which the second is what the first loses by rounding: see `cosine.centred`.
    first_BxSx1xD, second_BxSx1xD, n_B = _over_sample(c, mean)
    over_blocks = lambda x_BxSx1xD: jnp.einsum("b,bsod->sod", n_B / n_B.sum(), x_BxSx1xD, precision="highest")
    mean_Sx1xD = over_blocks(first_BxSx1xD)
    rest_Sx1xD = over_blocks(first_BxSx1xD - mean_Sx1xD[None] + second_BxSx1xD)
    return _named("centred_anisotropy", *jax.tree.map(lambda x: x.sum(0), _over_sample(c, directions)))


def _normalised(c: Checkpoint, states_SxNxD: jax.Array) -> jax.Array:
    """`_over_sample`'s, the one before the gain divided as the norm does it: no cosine sees that, but means do."""
    before_gain_NxD = states_SxNxD[-2]
    rms_Nx1 = jnp.sqrt(jnp.mean(before_gain_NxD**2, axis=-1, keepdims=True) + c.config.norm_eps)
    return states_SxNxD.at[-2].set(before_gain_NxD / rms_Nx1)


def _named(name: str, sum_SxD: jax.Array, n_S: jax.Array) -> dict[str, jax.Array]:
    """The mean cosines of the tensors of `_over_sample`, and of how many positions."""
    found = {}
    for suffix, value_S in (("", jax.vmap(mean_cosine)(sum_SxD, n_S)), (".n", n_S)):
        found[f"{name}{suffix}"] = value_S[:-2, None]
        found[f"{name}_before_gain{suffix}"], found[f"{name}_after_gain{suffix}"] = value_S[-2], value_S[-1]
    return found


def _over_sample(c: Checkpoint, of: Callable[[jax.Array, jax.Array], Any]) -> Any:
    """of(states_SxNxD, kept_Nx1) of each block of the first ANISOTROPY_TOKENS of the slice, stacked; N positions, of
    which those that are not kept belong to no sample. S tensors, float32: the residual stream as embedded and after
    each block, then the last one as normalised, before the gain and after it."""
    config = c.config
    sampled = -(-ANISOTROPY_TOKENS // config.context)  # rows
    n_blocks = -(-sampled // c.heldout.tokens_NxBxT1.shape[1])
    tokens_NxBxT1 = c.heldout.tokens_NxBxT1[:n_blocks]

    def block(args: tuple[jax.Array, jax.Array]) -> Any:
        first, rows_BxT1 = args
        inputs_BxT, segment_BxT = model.read_marks(rows_BxT1)
        segment_BxT = segment_BxT if c.heldout.marked else None
        h_BxTxD, stream_LxBxTxD = model.hidden(config, c.params, inputs_BxT, segment_BxT=segment_BxT)
        last_BxTxD = stream_LxBxTxD[-1].astype(jnp.float32)
        if config.norm == "layer":
            last_BxTxD -= last_BxTxD.mean(axis=-1, keepdims=True)
        # A norm divides each vector by a number of its own, which no cosine sees: without the gain only the centring of
        # LayerNorm is left.
        states = jnp.stack([*stream_LxBxTxD.astype(jnp.float32), last_BxTxD, h_BxTxD.astype(jnp.float32)])
        sample_B = first + jnp.arange(len(rows_BxT1)) < sampled
        # Of a row of pairs what lies after the last target is empty; a source may have the token that -1 would be.
        is_text_BxT1 = jax.lax.cummax((rows_BxT1 >= 0).astype(jnp.int32), axis=1, reverse=True) > 0
        kept_BxT = sample_B[:, None] & is_text_BxT1[:, :-1]
        return of(states.reshape(len(states), -1, config.width), kept_BxT.reshape(-1, 1))

    first_N = jnp.arange(len(tokens_NxBxT1)) * tokens_NxBxT1.shape[1]
    return jax.lax.map(block, (first_N, tokens_NxBxT1))
