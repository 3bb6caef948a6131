import functools
import operator
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat import corpus, model
from jaxsat.checkpoints import Store
from jaxsat.config import Run, TrainConfig, override
from jaxsat.parallel import make_mesh, per_run, per_run_and_row
from jaxsat.sweep import Pack
from jaxsat.train import Program, hypers, learning_rate, read_metrics, train_step
from jaxsat.train.step import abstract_state

COLLECTIVES = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast")


def scheduled(train: TrainConfig) -> np.ndarray:
    """Every update's learning rate, in float64, from the words of TrainConfig."""
    rates = []
    for update in range(1, train.steps + 1):
        warm = min(1, update / train.warmup_steps) if train.warmup_steps else 1
        if train.schedule == "constant":
            factor = 1
        elif train.schedule == "cosine":
            done = max(0, update - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
            factor = train.final_lr + (1 - train.final_lr) * (1 + np.cos(np.pi * done)) / 2
        else:
            left = (train.steps - update) / max(1, train.decay_fraction * train.steps)
            factor = train.final_lr + (1 - train.final_lr) * min(1, left)
        rates.append(train.learning_rate * warm * factor)
    return np.array(rates)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("final_lr", [0.0, 0.1])
def test_learning_rate(schedule, final_lr):
    points = [
        {"train.steps": steps, "train.warmup_steps": warmup, "train.learning_rate": peak}
        for steps, warmup, peak in ((100, 10, 1e-2), (100, 0, 6e-3), (37, 5, 1.0), (1, 0, 1e-3), (2, 1, 1e-3))
    ]
    shared = {"train.schedule": schedule, "train.final_lr": final_lr}
    runs = [override(Run(), shared | point) for point in points]
    for k, run in enumerate(runs):
        steps = jnp.arange(run.train.steps)
        hyper = jax.tree.map(lambda x, k=k: x[k], hypers(runs))
        rates = jax.vmap(functools.partial(learning_rate, run.train, hyper))(steps)
        np.testing.assert_allclose(rates, scheduled(run.train), rtol=1e-6, atol=1e-6 * run.train.learning_rate)
        if schedule != "constant":
            assert rates[-1] == pytest.approx(final_lr * run.train.learning_rate, abs=1e-9)
        assert rates.max() <= run.train.learning_rate * (1 + 1e-6)


@pytest.fixture
def stepping(tiny_run: Run):
    """(pack, mesh, program, hyper, state) of a model with biases and LayerNorm; the second run decays its weights."""
    point = {"model.bias": True, "model.norm": "layer", "train.clip_norm": 0.8, "train.warmup_steps": 2}
    run = override(tiny_run, point | {"train.learning_rate": 0.1, "train.weight_decay": 0.0})
    pack = Pack((run, override(run, {"train.weight_decay": 0.5})))
    mesh, program = make_mesh(2, 8, jax.devices()[:1]), Program.of(pack)
    hyper = jax.device_put(hypers(pack.runs), per_run(mesh))
    abstract, normal = abstract_state(program, mesh, hyper), np.random.default_rng(0).normal
    params = jax.tree.map(lambda x: normal(scale=0.3, size=x.shape).astype(np.float32), abstract["params"])
    optimizer = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract["optimizer"])
    state = {"params": params, "optimizer": optimizer, "keys_K": jax.random.split(jax.random.key(0), 2), "step": 0}
    state = jax.tree.map(lambda x, a: jax.device_put(jnp.asarray(x, a.dtype), a.sharding), state, abstract)
    return pack, mesh, program, hyper, state


def adamw(train: TrainConfig, params, loss_and_gradient, n_steps: int):
    """(parameters, [(loss, norm of the gradient, rate)]) after n steps in float64, from the definition of AdamW
    (Loshchilov and Hutter 2019), gradients clipped before they enter the moments."""
    leaves, tree = jax.tree.flatten_with_path(params)
    matrix = ["scale" not in str(path[-1]) and "bias" not in str(path[-1]) for path, _ in leaves]
    p = [np.float64(x) for _, x in leaves]
    m, v, metrics = [0 * x for x in p], [0 * x for x in p], []
    for i, rate in enumerate(scheduled(train)[:n_steps], start=1):
        loss, gradient = loss_and_gradient(tree.unflatten(map(np.float32, p)))
        g = [np.float64(x) for x in jax.tree.leaves(gradient)]
        norm = np.sqrt(sum((x**2).sum() for x in g))
        for n, x in enumerate(g):
            x = x * min(1, train.clip_norm / norm)
            m[n] = train.beta1 * m[n] + (1 - train.beta1) * x
            v[n] = train.beta2 * v[n] + (1 - train.beta2) * x**2
            adam = m[n] / (1 - train.beta1**i) / (np.sqrt(v[n] / (1 - train.beta2**i)) + train.eps)
            p[n] = p[n] - rate * (adam + matrix[n] * train.weight_decay * p[n])
        metrics.append((loss, norm, rate))
    return tree.unflatten(p), metrics


def test_steps_are_those_of_adamw(stepping, tiny_corpus):
    pack, mesh, program, hyper, state = stepping
    rows_BxT1 = corpus.batch_at(tiny_corpus, 0, 0, 8)

    @jax.jit
    @jax.value_and_grad
    def loss_and_gradient(params):
        h_BxTxD, _ = model.hidden(program.model, params, rows_BxT1[:, :-1])
        return model.cross_entropy(*model.head(program.model, params, h_BxTxD), rows_BxT1[:, 1:])

    rows_KxBxT1 = jax.device_put(np.stack([rows_BxT1] * 2), per_run_and_row(mesh))
    oracles = [
        adamw(run.train, jax.tree.map(operator.itemgetter(k), state["params"]), loss_and_gradient, 4)
        for k, run in enumerate(pack.runs)
    ]
    metrics = []
    for _ in range(4):
        state, metric = train_step(program, mesh, state, hyper, rows_KxBxT1)
        metrics.append(metric)
    for k, (params, expected) in enumerate(oracles):
        norms = [norm for _, norm, _ in expected]
        assert min(norms) < pack.runs[k].train.clip_norm < max(norms), norms
        found = [[float(metric[name][k]) for name in ("loss", "grad_norm", "learning_rate")] for metric in metrics]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        for ours, theirs in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(params)):
            np.testing.assert_allclose(ours[k], theirs, atol=1e-4)


def test_a_step_keeps_the_shardings_it_was_given(stepping, tiny_corpus):
    _, mesh, program, hyper, state = stepping
    before = jax.tree.map(lambda x: x.sharding, state)
    rows_KxBxT1 = np.stack([corpus.batch_at(tiny_corpus, 0, i, 8) for i in (0, 1)])
    state, _ = train_step(program, mesh, state, hyper, jax.device_put(rows_KxBxT1, per_run_and_row(mesh)))
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{x.sharding}"), state, before)


def test_a_masked_rank_is_that_rank(trained, tiny_pack):
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        head = store.params(60)["head"]
    assert not head["a"][1, :, 2:].any() and not head["b"][1, 2:].any()
    ranks = [np.linalg.matrix_rank(np.float64(a) @ np.float64(b)) for a, b in zip(head["a"], head["b"])]
    assert ranks == [run.model.rank for run in tiny_pack.runs] == [4, 2, 4]


def test_eight_devices_are_one(solo, tiny_pack, tiny_corpus, tmp_path):
    pack = Pack(tiny_pack.runs[1:2])
    mesh, program = make_mesh(1, 8, jax.devices()), Program.of(pack)
    assert mesh.shape == {"pack": 1, "data": 8}
    hyper = jax.device_put(hypers(pack.runs), per_run(mesh))
    shutil.copytree(solo / "checkpoints" / pack.id / "0", tmp_path / "0")
    with Store(tmp_path) as store:
        state, _ = store.latest(abstract_state(program, mesh, hyper))
    losses = []
    for i in range(30):
        rows_KxBxT1 = corpus.batch_at(tiny_corpus, pack.runs[0].seed, i, 8)[None]
        state, metrics = train_step(program, mesh, state, hyper, jax.device_put(rows_KxBxT1, per_run_and_row(mesh)))
        losses.append(float(metrics["loss"][0]))  # waits: two steps in flight on fake devices can block each other
    lines = [line for line in read_metrics(solo / "runs" / pack.runs[0].id) if "loss" in line]
    np.testing.assert_allclose(losses, [line["loss"] for line in lines[:30]], rtol=1e-5)


@pytest.mark.parametrize("point", [{}, {"model.head_rank": None, "model.scan_layers": True, "model.depth": 2}])
def test_runs_of_a_pack_do_not_talk(tiny_run, point):
    run = override(tiny_run, point)
    pack = Pack(tuple(override(run, {"seed": seed}) for seed in range(4)))
    mesh, program = make_mesh(4, 8), Program.of(pack)
    assert mesh.shape == {"pack": 4, "data": 1}
    hyper = jax.device_put(hypers(pack.runs), per_run(mesh))
    rows_KxBxT1 = jax.ShapeDtypeStruct((4, 8, 17), jnp.int32, sharding=per_run_and_row(mesh))
    state = abstract_state(program, mesh, hyper)
    text = train_step.lower(program, mesh, state, hyper, rows_KxBxT1).compile().as_text()
    assert "fusion" in text and not COLLECTIVES.findall(text)
