"""What makes probabilities of hidden states: a head gives its loss, its logits and its matrices, and no one else knows
which kind it is.

    linear     softmax(h W): W full, factored (A B), or the embedding's transpose
    mixture    sum_k prior_k softmax(tanh(h P_k) W), prior = softmax(h Q); W likewise (Yang et al. 2018,
               arXiv:1711.03953, eq. 5): the logarithms are of higher rank than W
    nonlinear  softmax(gelu(h A) B): logits of the rank of its bottleneck, which may be wider than the model

Shapes as in `jaxsat.model.transformer`, K softmaxes; N = T, or T K of a mixture, as in `jaxsat.model.loss`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxsat.config import ModelConfig
from jaxsat.model.loss import cross_entropy
from jaxsat.model.loss import token_losses as _token_losses
from jaxsat.model.sharding import constrain

Params = dict[str, Any]

# E f(x)^2 of what the last matrix is given, x normal: of gelu(x) it is 1/3 + 1/(2 sqrt(3) pi).
_SQUARE = {"linear": 1.0, "mixture": 0.394, "nonlinear": 0.4252}


class Head(nnx.Module):
    """Parameters: `kernel` (D x V), or a pair `a` (D x R), `b` (R x V), or neither when tied; of a mixture `latent`
    (K x D x D) and `prior` (D x K) too.

    A pair may be stored wider than its rank: beyond it both factors start at zero, where their gradients are
    exactly zero too (dB = f(x A)' dlogits and dA = x' (f'(x A) dlogits B'), with f(0) = 0), so they stay zero and the
    model is the one of rank `rank`. That lets runs of different ranks share one program. Each component j is drawn from
    a key of its own, so the numbers do not depend on how wide the pair is stored. All kinds start with logits of
    variance 2/5; a tied mixture's are smaller.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rank: int | jax.Array):
        d, v, k = config.width, config.vocab_size, config.head_softmaxes
        if not config.tied_head:
            key, square = rngs.params(), _SQUARE[config.head]
            if config.head_rank is None:
                self.kernel = nnx.Param(small(d) / math.sqrt(square) * jax.random.normal(key, (d, v)))
            else:
                components = jnp.arange(config.head_rank)
                kept_R = (components < rank).astype(jnp.float32)
                keys_Rx2 = jax.vmap(lambda j: jax.random.split(jax.random.fold_in(key, j)))(components)
                a_RxD = jax.vmap(lambda k: jax.random.normal(k[0], (d,)))(keys_Rx2) * kept_R[:, None] / math.sqrt(d)
                b_RxV = jax.vmap(lambda k: jax.random.normal(k[1], (v,)))(keys_Rx2) * kept_R[:, None]
                b_RxV *= jnp.sqrt(0.4 / square / jnp.asarray(rank, jnp.float32))
                self.a, self.b = nnx.Param(a_RxD.T), nnx.Param(b_RxV)
        if config.head == "mixture":
            self.latent = nnx.Param(jax.random.normal(rngs.params(), (k, d, d)) / math.sqrt(d))
            self.prior = nnx.Param(small(d) * jax.random.normal(rngs.params(), (d, k)))


def loss(config: ModelConfig, params: Params, h_BxTxD: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    """Mean nats of the targets >= 0, float32; never holds B x T x V, nor does its gradient."""
    z_BxNxR, w_RxV, log_prior_BxTxK = _features(config, params, h_BxTxD)
    return cross_entropy(z_BxNxR, w_RxV, targets_BxT, log_prior_BxTxK)


def token_losses(config: ModelConfig, params: Params, h_BxTxD: jax.Array, targets_BxT: jax.Array) -> jax.Array:
    """nats_BxT of each target, float32, 0 where it is negative. Forward only."""
    z_BxNxR, w_RxV, log_prior_BxTxK = _features(config, params, h_BxTxD)
    return _token_losses(z_BxNxR, w_RxV, targets_BxT, log_prior_BxTxK)


def logits(config: ModelConfig, params: Params, h_BxTxD: jax.Array) -> jax.Array:
    """logits_BxTxV, float32, whole; of a mixture the logarithms of its probabilities."""
    z_BxNxR, w_RxV, log_prior_BxTxK = _features(config, params, h_BxTxD)
    logits_BxNxV = jnp.einsum("bnr,rv->bnv", z_BxNxR, w_RxV, preferred_element_type=jnp.float32)
    if log_prior_BxTxK is None:
        return logits_BxNxV
    log_p_BxTxKxV = jax.nn.log_softmax(logits_BxNxV).reshape(*log_prior_BxTxK.shape, -1) + log_prior_BxTxK[..., None]
    return jax.nn.logsumexp(log_p_BxTxKxV, axis=2)


def matrices(config: ModelConfig, params: Params) -> dict[str, tuple[jax.Array, ...]]:
    """The matrices of a head by name, each as the factors whose product it is: `output`, whose columns (V) are the
    tokens'; of a mixture also `latent`, K of them, and `prior`; of a nonlinear head `a`."""
    own = params.get("head", {})
    if config.tied_head:
        output = (params["embedding"].T,)
    elif config.head_rank is None:
        output = (own["kernel"],)
    else:
        output = (own["b"],) if config.head == "nonlinear" else (own["a"], own["b"])
    inner = {"linear": (), "mixture": ("latent", "prior"), "nonlinear": ("a",)}[config.head]
    return {"output": output} | {name: (own[name],) for name in inner}


def small(width: int) -> float:
    """Standard deviation of initial weights: "small init" (Nguyen & Salazar 2019), as in GPT-NeoX."""
    return math.sqrt(2 / (5 * width))


def _features(config: ModelConfig, params: Params, h_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(z_BxNxR, w_RxV, log_prior_BxTxK): what `jaxsat.model.loss` takes."""
    own = jax.tree.map(lambda w: w.astype(h_BxTxD.dtype), params.get("head", {}))
    z_BxNxR, log_prior_BxTxK = h_BxTxD, None
    if config.head == "mixture":
        prior_BxTxK = jnp.einsum("btd,dk->btk", h_BxTxD, own["prior"], preferred_element_type=jnp.float32)
        log_prior_BxTxK = jax.nn.log_softmax(prior_BxTxK)
        z_BxTxKxD = jnp.tanh(jnp.einsum("btd,kde->btke", h_BxTxD, own["latent"]))
        z_BxNxR = constrain(z_BxTxKxD.reshape(len(h_BxTxD), -1, config.width), "data")
    if config.tied_head:
        return z_BxNxR, params["embedding"].T.astype(h_BxTxD.dtype), log_prior_BxTxK
    if config.head_rank is None:
        return z_BxNxR, own["kernel"], log_prior_BxTxK
    z_BxNxR = constrain(z_BxNxR @ own["a"], "data")
    if config.head == "nonlinear":
        z_BxNxR = jax.nn.gelu(z_BxNxR, approximate=False)
    return z_BxNxR, own["b"], log_prior_BxTxK
