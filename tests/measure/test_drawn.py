import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat import model
from jaxsat.config import ModelConfig, Run, TrainConfig, override
from jaxsat.corpus.synthetic import KnownRank, Spam, conditional_entropy, world
from jaxsat.measure import Checkpoint, excess_loss, symbols_seen
from jaxsat.measure.drawn import DRAWN_TOKENS, divergence, drawn_blocks
from jaxsat.measure.measure import NO_TEXT

CONFIG = ModelConfig(depth=1, width=16, heads=1, context=12, vocab_size=16)


def nothing(config):
    return jax.tree.map(jnp.zeros_like, model.init(config, jax.random.key(0)))


def found(config, params, language):
    return excess_loss(language).of(Checkpoint(config, params, config.rank, NO_TEXT))


def test_the_truth_has_no_excess():
    """A model that knows `Spam`: after 0 all symbols are as likely, and else the same comes again."""
    params = nothing(CONFIG)
    params["embedding"], params["final_norm"]["scale"] = jnp.eye(16), jnp.ones(16)
    kernel = 9 * jnp.eye(16)
    params["head"]["kernel"] = kernel.at[0].set(0).at[0, 0].set(-9)  # x 4, the norm of a state
    found_here = found(CONFIG, params, Spam())
    assert abs(float(found_here["excess_loss"])) < 1e-6
    assert float(found_here["known_entropy"]) == pytest.approx(np.log(15) / 12, rel=1e-6)


def test_a_uniform_model_has_what_the_entropy_leaves():
    assert float(found(CONFIG, nothing(CONFIG), Spam())["excess_loss"]) == pytest.approx(
        np.log(16) - np.log(15) / 12, rel=1e-6
    )
    language, config = KnownRank(3, power=1.0, seed=4), override(Run(CONFIG), {"model.vocab_size": 40}).model
    here = found(config, nothing(config), language)
    rows_NxBxT1 = np.asarray(drawn_blocks(Checkpoint(config, {}, 3, NO_TEXT), language))
    rows_MxT1 = np.where(rows_NxBxT1 < 0, ~rows_NxBxT1, rows_NxBxT1).reshape(-1, 13)
    assert DRAWN_TOKENS <= rows_MxT1[:, 1:].size < 2 * DRAWN_TOKENS
    entropy = conditional_entropy(world(40, 3, 1.0, 1.5, seed=4), rows_MxT1)
    assert float(here["known_entropy"]) == pytest.approx(entropy, rel=1e-5)
    assert float(here["excess_loss"]) == pytest.approx(np.log(40) - entropy, rel=1e-4)


def test_divergence_against_float64():
    rng = np.random.default_rng(0)
    p, q = (rng.dirichlet(np.ones(50), 20).astype(np.float64) for _ in range(2))
    p[:, :10] = 0
    p /= p.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.nansum(p * np.log(p / q), axis=1)
        log_p = np.log(p)
    found_kl, entropy = divergence(jnp.float32(log_p), jnp.float32(np.log(q)))
    np.testing.assert_allclose(found_kl, kl, rtol=1e-5)
    np.testing.assert_allclose(entropy, [-(x[10:] * np.log(x[10:])).sum() for x in p], rtol=1e-5)
    assert np.abs(divergence(jnp.float32(log_p), jnp.float32(log_p))[0]).max() == 0


def test_languages_are_known_by_their_numbers():
    assert excess_loss(Spam()).key == "excess_loss Spam()"
    assert excess_loss(KnownRank(4)).key != excess_loss(KnownRank(4, seed=1)).key


def test_symbols_seen_follow_the_tokens():
    run = Run(CONFIG, TrainConfig(batch_size=4))
    at = lambda tokens: Checkpoint(CONFIG, {}, 16, NO_TEXT, run, 0, tokens)
    seen = [symbols_seen().of(at(tokens))["symbols_seen"] for tokens in (0, 12, 120, 12000)]
    assert seen == pytest.approx([0, 1 / 15, 1 - (14 / 15) ** 10, 1])
