"""What is no language model on a text trains in the same loop, packs and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat import model
from jaxsat.checkpoints import Store, load_run
from jaxsat.config import InputError, ModelConfig, Run, TrainConfig, override
from jaxsat.corpus.synthetic import KnownRank, Spam
from jaxsat.measure import Checkpoint, Measure, excess_loss
from jaxsat.measure.measure import NO_TEXT
from jaxsat.measure.packs import measured
from jaxsat.sweep import Pack
from jaxsat.train import LANGUAGE_MODEL, Task, drawn_from, own_samples, read_metrics, train_pack, train_run

SLOPES = np.array([1.0, -2.0, 0.5, 0.0], np.float32)


def draw(config: ModelConfig, key: jax.Array, rank: jax.Array) -> model.Params:
    first, second = jax.random.split(key)
    return {
        "up": jax.random.normal(first, (len(SLOPES), config.width)) / 2,
        "down": jax.random.normal(second, (config.width,)) / config.width**0.5,
    }


def predict(params: model.Params, x_Bx4: jax.Array) -> jax.Array:
    return jax.nn.relu(x_Bx4 @ params["up"]) @ params["down"]


def squared_error(config, params, zeros_Bx1, key, remat):
    x_Bx4 = jax.random.normal(key, (len(zeros_Bx1), len(SLOPES)))
    return jnp.mean((predict(params, x_Bx4) - jax.nn.relu(x_Bx4 @ SLOPES)) ** 2)


TWO_LAYERS = Task(draw, squared_error, reads=False)


@pytest.fixture(scope="module")
def runs():
    train = TrainConfig(steps=300, batch_size=64, learning_rate=0.03, checkpoint_every=100)
    base = Run(ModelConfig(width=8, heads=1, context=1), train, task="two layers")
    return [override(base, {"seed": seed}) for seed in (0, 1)]


def losses(lines):
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def out(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    train_pack(Pack(tuple(runs)), None, out, task=TWO_LAYERS, starts={100})
    return out


def test_two_layers_on_drawn_data_learn(runs, out):
    for run in runs:
        found = losses(read_metrics(out / "runs" / run.id))
        assert np.mean(found[-20:]) < 0.2 * np.mean(found[:20])
    params, lines = train_run(runs[1], None, task=TWO_LAYERS)
    np.testing.assert_allclose(losses(lines), losses(read_metrics(out / "runs" / runs[1].id)), rtol=1e-5)
    x_Bx4 = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    truth = np.maximum(x_Bx4 @ SLOPES, 0)
    assert np.mean((predict(params, x_Bx4) - truth) ** 2) < 0.1 * np.mean(truth**2)


def test_drawn_data_is_that_of_the_step(runs, out, tmp_path):
    """Stopped at any step and continued, or begun from a branch that keeps all, a run sees the same samples; with
    another data seed it does not."""
    before = losses(read_metrics(out / "runs" / runs[0].id))
    (branch, other) = (
        override(runs[0].branch(100, {}, ("optimizer", "schedule", "data")), {"data_seed": seed}) for seed in (None, 5)
    )
    train_pack(Pack((branch,)), None, out, task=TWO_LAYERS)
    train_pack(Pack((other,)), None, out, task=TWO_LAYERS)
    assert losses(read_metrics(out / "runs" / branch.id)) == pytest.approx(before[100:], rel=1e-6)
    assert losses(read_metrics(out / "runs" / other.id))[0] != before[100]
    with Store(out / "checkpoints" / branch.id, writable=True) as store:
        (store.directory / "300").rmtree()
    train_pack(Pack((branch,)), None, out, task=TWO_LAYERS)
    assert losses(read_metrics(out / "runs" / branch.id)) == pytest.approx(before[100:], rel=1e-6)


@pytest.mark.parametrize("traced", [True, False])
def test_it_is_measured_like_any_other(runs, out, traced):
    pack = Pack(tuple(runs))
    norm = Measure("norm", lambda c: {"down_norm": jnp.linalg.norm(c.params["down"])}, traced=traced)
    with Store(out / "checkpoints" / pack.id) as store:
        ((step, rows),) = measured(pack, store, None, {300: [(norm, runs)]})
    _, params = load_run(out, runs[1].id, 300)
    assert rows.set_index("series")["value"][runs[1].id] == pytest.approx(float(jnp.linalg.norm(params["down"])))


@pytest.mark.slow
def test_a_model_trains_on_its_own_samples(tiny_run, tiny_corpus, tmp_path):
    run, task = override(tiny_run, {"task": "own", "train.steps": 12}), own_samples(0.5)
    train_pack(Pack((run,)), tiny_corpus, tmp_path, task=task)
    whole = losses(read_metrics(tmp_path / "runs" / run.id))
    assert len(whole) == 12 and np.isfinite(whole).all()
    with Store(tmp_path / "checkpoints" / run.id, writable=True) as store:
        (store.directory / "12").rmtree()
    train_pack(Pack((run,)), tiny_corpus, tmp_path, task=task)
    assert losses(read_metrics(tmp_path / "runs" / run.id)) == whole
    plain, _ = train_run(override(run, {"task": ""}), tiny_corpus)
    _, own = load_run(tmp_path, run.id, 12)
    assert not np.array_equal(plain["embedding"], own["embedding"])


def test_own_samples_are_what_the_model_writes():
    """A model that is sure of its next token: the loss of its own rows is near nothing, that of others is not."""
    config = ModelConfig(depth=1, width=16, heads=1, context=12, vocab_size=16)
    params = jax.tree.map(jnp.zeros_like, model.init(config, jax.random.key(0)))
    params["embedding"], params["final_norm"]["scale"] = jnp.eye(16), jnp.ones(16)
    params["head"]["kernel"] = 9 * jnp.roll(jnp.eye(16), 1, axis=1)  # token i is followed by i + 1
    rows_BxT1 = jnp.zeros((4, 13), jnp.int32)
    loss = lambda share: float(own_samples(share).loss(config, params, rows_BxT1, jax.random.key(0), "none"))
    others = float(LANGUAGE_MODEL.loss(config, params, rows_BxT1, jax.random.key(0), "none"))
    assert loss(1.0) < 1e-3 and loss(0.5) == pytest.approx(others / 2, rel=1e-3) and others > 10
    assert own_samples(0.5) == own_samples(0.5) != own_samples(1.0)
    for share in (0.0, 1.5):
        with pytest.raises(InputError, match="share of a batch must be above 0, and 1 at most"):
            own_samples(share)


@pytest.mark.parametrize("language", [Spam(), pytest.param(KnownRank(3, logit_sd=3.0), marks=pytest.mark.slow)])
def test_a_drawn_language_is_learnt(language):
    """Down to what is known to be the least; the tokens that begin a row and are no targets count nothing."""
    config = ModelConfig(depth=1, width=16, heads=2, context=8, vocab_size=16)
    train = TrainConfig(steps=120, batch_size=32, learning_rate=0.02)
    params, lines = train_run(Run(config, train, task="drawn"), None, task=drawn_from(language))
    found = excess_loss(language).of(Checkpoint(config, params, config.rank, NO_TEXT))
    excess, entropy = float(found["excess_loss"]), float(found["known_entropy"])
    assert np.mean(losses(lines)[-10:]) == pytest.approx(excess + entropy, abs=0.15)
    assert 0 < excess < 0.3 * (np.log(16) - entropy)
    assert drawn_from(language) == drawn_from(type(language)(**vars(language)))
