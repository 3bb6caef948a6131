import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxsat.config import ModelConfig, Run, validate
from jaxsat.model import heads

BASE = ModelConfig(depth=1, width=12, heads=2, context=11, vocab_size=53)
KINDS = {
    name: validate(Run(dataclasses.replace(BASE, **values))).model
    for name, values in {
        "full": {},
        "factored": {"head_rank": 5},
        "tied": {"tied_head": True},
        "mixture": {"head": "mixture", "head_softmaxes": 3},
        "mixture_factored": {"head": "mixture", "head_rank": 5},
        "mixture_tied": {"head": "mixture", "tied_head": True, "head_softmaxes": 2},
        "nonlinear": {"head": "nonlinear", "head_rank": 20},
    }.items()
}
kinds = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
DRAWN = ["full", "factored", "mixture", "mixture_factored", "nonlinear"]


def drawn(config, key=0, rank=None):
    """The head's parameters, as `model.init` draws them."""
    head = heads.Head(config, nnx.Rngs(key), config.rank if rank is None else rank)
    return nnx.to_pure_dict(nnx.state(head, nnx.Param))


def example(config, n_rows=3, n_positions=11):
    """(params, h_BxTxD, targets_BxT), a fifth of the targets ignored, no parameter at a special value."""
    rng = np.random.default_rng(0)
    h_BxTxD = jnp.asarray(rng.normal(size=(n_rows, n_positions, config.width)), jnp.float32)
    targets_BxT = rng.integers(0, config.vocab_size, (n_rows, n_positions))
    targets_BxT[rng.random(targets_BxT.shape) < 0.2] = -1
    shapes = {"embedding": np.empty((config.vocab_size, config.width))}
    shapes["head"] = jax.eval_shape(lambda: drawn(config))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(scale=0.6, size=x.shape), jnp.float32), shapes)
    return params, h_BxTxD, jnp.asarray(targets_BxT)


def log_p(config, params, h_BxTxD):
    """log p_BxTxV by the definitions in the module's docstring."""
    own = params["head"]
    first = own["a"] if config.head_rank else np.eye(config.width)
    last = params["embedding"].T if config.tied_head else own["b"] if config.head_rank else own["kernel"]
    softmax = lambda z: jax.nn.softmax(z @ last)
    if config.head == "linear":
        return jnp.log(softmax(h_BxTxD @ first))
    if config.head == "nonlinear":
        x = h_BxTxD @ first
        return jnp.log(softmax(x * jax.scipy.stats.norm.cdf(x)))
    prior_BxTxK = jax.nn.softmax(h_BxTxD @ own["prior"])
    parts = [prior_BxTxK[..., k, None] * softmax(jnp.tanh(h_BxTxD @ p) @ first) for k, p in enumerate(own["latent"])]
    return jnp.log(sum(parts))


@kinds
def test_losses_and_their_gradients_are_those_of_the_definition(config):
    params, h, targets = example(config)

    def oracle(params, h):
        nats = -jnp.take_along_axis(log_p(config, params, h), jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        return jnp.where(targets >= 0, nats, 0.0).sum() / int((targets >= 0).sum())

    with jax.enable_x64(True):
        exact = jax.tree.map(jnp.float64, (params, h))
        expected, gradients = jax.value_and_grad(oracle, argnums=(0, 1))(*exact)
        log_p_BxTxV = np.asarray(log_p(config, *exact))
        expected, gradients = float(expected), jax.tree.map(np.asarray, gradients)
    loss, found = jax.jit(jax.value_and_grad(heads.loss, argnums=(1, 2)), static_argnums=0)(config, params, h, targets)
    assert loss == pytest.approx(expected, rel=2e-6)
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(gradients)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6, err_msg=str(path))
    nats = heads.token_losses(config, params, h, targets)
    assert (
        float(nats.sum()) / int((targets >= 0).sum()) == pytest.approx(expected, rel=2e-6)
        and not nats[targets < 0].any()
    )
    ours = jax.nn.log_softmax(heads.logits(config, params, h))
    np.testing.assert_allclose(ours, log_p_BxTxV, rtol=1e-5, atol=1e-5)


@kinds
def test_bfloat16_is_near_float32(config):
    params, h, targets = example(config)
    half = heads.loss(config, params, h.astype(jnp.bfloat16), targets)
    assert half.dtype == jnp.float32 and half == pytest.approx(float(heads.loss(config, params, h, targets)), rel=0.02)


def test_only_linear_logits_are_bound_by_the_width():
    """Of 200 positions, with what a softmax ignores, a number for each position, projected out."""
    ranks = {}
    for name, config in KINDS.items():
        params, h, _ = example(config, n_positions=67)
        log_p_NxV = np.asarray(heads.logits(config, params, h)).reshape(-1, config.vocab_size)
        sigma = np.linalg.svd(log_p_NxV - log_p_NxV.mean(axis=1, keepdims=True), compute_uv=False)
        ranks[name] = int((sigma > 1e-4 * sigma[0]).sum())
    assert (ranks["full"], ranks["factored"], ranks["tied"], ranks["nonlinear"]) == (12, 5, 12, 20)
    assert min(ranks[name] for name in ("mixture", "mixture_factored", "mixture_tied")) > 30


@pytest.mark.parametrize("name", DRAWN)
def test_every_head_starts_with_logits_of_variance_two_fifths(name):
    wide = {"width": 64, "vocab_size": 4000, "head_rank": KINDS[name].head_rank and 40}
    config = dataclasses.replace(KINDS[name], **wide)
    own = jax.jit(drawn, static_argnums=0)(config)
    h = jax.random.normal(jax.random.key(1), (1, 200, 64))
    if config.head == "mixture":  # of one softmax
        assert float((h @ own["prior"]).var()) == pytest.approx(0.4, rel=0.5)
        config = dataclasses.replace(config, head_softmaxes=1)
        own |= {"latent": own["latent"][:1], "prior": own["prior"][:, :1]}
    assert float(heads.logits(config, {"head": own}, h).var()) == pytest.approx(0.4, rel=0.15)


def train(config, key, rank):
    """(losses, the head's parameters) after 50 steps of clipped AdamW on the same hidden states."""
    _, h, targets = example(config)
    params = {"head": drawn(config, key, rank)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, b2=0.95, weight_decay=0.1))

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(heads.loss, argnums=1)(config, params, h, targets)
        with jax.numpy_dtype_promotion("standard"):  # as in jaxsat.train.step
            updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=50)
    return losses, params["head"]


@pytest.mark.parametrize("head, widest", [("linear", 12), ("mixture", 12), ("nonlinear", 30)])
def test_a_head_stored_wider_than_its_rank_trains_as_the_true_one(head, widest):
    true = dataclasses.replace(BASE, head=head, head_rank=5)
    wide, key = dataclasses.replace(true, head_rank=widest), jax.random.key(0)
    true_losses, expected = jax.jit(lambda: train(true, key, 5))()
    # The ranks are traced and vmapped over, as in a pack.
    losses, found = jax.jit(jax.vmap(lambda rank: train(wide, key, rank)))(jnp.array([5, widest]))
    assert true_losses[-1] < true_losses[0] - 0.5
    np.testing.assert_allclose(losses[0], true_losses, rtol=2e-6)
    a, b = found["a"], found["b"]
    assert (a[0, :, 5:] == 0).all() and (b[0, 5:] == 0).all()
    assert (a[1] != 0).all() and (b[1] != 0).all()
    for name, theirs in expected.items():
        ours = {"a": a[0, :, :5], "b": b[0, :5]}.get(name, found[name][0])
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5, err_msg=name)


@kinds
def test_no_program_holds_the_logits_of_all_tokens(config):
    """At V = 50304 a loss holds one chunk, with gradient two, of 256 rows; all logits are 8 chunks, of K softmaxes
    8 K."""
    config = dataclasses.replace(config, vocab_size=50304)
    params = {"embedding": jax.ShapeDtypeStruct((50304, config.width), jnp.float32)}
    params["head"] = jax.eval_shape(lambda: drawn(config))
    h = jax.ShapeDtypeStruct((4, 512, config.width), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 512), jnp.int32)
    with_gradient = jax.jit(jax.value_and_grad(heads.loss, argnums=(1, 2)), static_argnums=0)
    for program, chunks in ((with_gradient, 2.2), (jax.jit(heads.token_losses, static_argnums=0), 1.1)):
        memory = program.lower(config, params, h, targets).compile().memory_analysis()
        assert memory.temp_size_in_bytes < chunks * 256 * 50304 * 4
