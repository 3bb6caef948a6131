import functools
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat import corpus, model, parallel
from jaxsat.checkpoints import Store
from jaxsat.config import Layout, Run, TrainConfig, override
from jaxsat.parallel import make_mesh, per_run, per_run_and_row, put
from jaxsat.sweep import Pack
from jaxsat.train import Program, hypers, initializer, learning_rate, read_metrics, train_run, train_step
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
        rates = learning_rate(run.train, hyper, steps)
        np.testing.assert_allclose(rates, scheduled(run.train), rtol=1e-6, atol=1e-6 * run.train.learning_rate)
        if schedule != "constant":
            assert rates[-1] == pytest.approx(final_lr * run.train.learning_rate, abs=1e-9)
        assert rates.max() <= run.train.learning_rate * (1 + 1e-6)


def adamw(train: TrainConfig, params, loss_and_gradient, batches):
    """(parameters, [(loss, norm of the gradient, rate)]) after a step a batch, in float64, from the definition of AdamW
    (Loshchilov and Hutter 2019), gradients clipped before they enter the moments."""
    leaves, tree = jax.tree.flatten_with_path(params)
    matrix = ["scale" not in str(path[-1]) and "bias" not in str(path[-1]) for path, _ in leaves]
    p = [np.float64(x) for _, x in leaves]
    m, v, metrics = [0 * x for x in p], [0 * x for x in p], []
    for i, (rate, rows_BxT1) in enumerate(zip(scheduled(train), batches), start=1):
        loss, gradient = loss_and_gradient(tree.unflatten(map(np.float32, p)), rows_BxT1)
        g = [np.float64(x) for x in jax.tree.leaves(gradient)]
        norm = np.sqrt(sum((x**2).sum() for x in g))
        for n, x in enumerate(g):
            x = x * min(1, (train.clip_norm or np.inf) / norm)
            m[n] = train.beta1 * m[n] + (1 - train.beta1) * x
            v[n] = train.beta2 * v[n] + (1 - train.beta2) * x**2
            adam = m[n] / (1 - train.beta1**i) / (np.sqrt(v[n] / (1 - train.beta2**i)) + train.eps)
            p[n] = p[n] - rate * (adam + matrix[n] * train.weight_decay * p[n])
        metrics.append((loss, norm, rate))
    return tree.unflatten(p), metrics


@functools.partial(jax.jit, static_argnames="config")
@functools.partial(jax.value_and_grad, argnums=1)
def loss_and_gradient(config, params, rows_BxT1):
    h_BxTxD, _ = model.hidden(config, params, rows_BxT1[:, :-1])
    return model.heads.loss(config, params, h_BxTxD, rows_BxT1[:, 1:])


def first_steps(trained, tiny_pack, tiny_corpus, run, k):
    """What `adamw` makes of run `k` of the pack in the first 8 steps, as `run` says."""
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        before = jax.tree.map(operator.itemgetter(k), store.params(0))
    batches = [corpus.batch_at(tiny_corpus, run.order_seed, i, 8) for i in range(8)]
    return adamw(run.train, before, functools.partial(loss_and_gradient, tiny_pack.model), batches)


def measured(lines):
    return [[line[name] for name in ("loss", "grad_norm", "learning_rate")] for line in lines if "loss" in line]


def test_steps_are_those_of_adamw(trained, tiny_pack, tiny_corpus):
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        after = store.params(8)
    norms = []
    for k, run in enumerate(tiny_pack.runs):
        params, expected = first_steps(trained, tiny_pack, tiny_corpus, run, k)
        norms += [norm for _, norm, _ in expected]
        found = measured(read_metrics(trained / "runs" / run.id))[:8]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(params)):
            np.testing.assert_allclose(ours[k], theirs, atol=1e-5)
    assert min(norms) < tiny_pack.runs[0].train.clip_norm < max(norms), norms  # some are clipped, some not


def orthogonal(x_IxO):
    """Five Newton-Schulz iterations of a matrix, in float64: Jordan et al. 2024, github.com/KellerJordan/Muon."""
    x = x_IxO / (np.linalg.norm(x_IxO) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_steps_are_those_of_muon(trained, tiny_pack, tiny_corpus):
    """Of the blocks' matrices two, against the definition in float64 (Nesterov momentum of .95, its bias taken out as
    optax does); of the rest they are AdamW's."""
    run = override(tiny_pack.runs[1], {"train.optimizer": "muon", "train.schedule": "constant", "train.steps": 2,
                                       "train.warmup_steps": 0})  # fmt: skip
    train = run.train
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        start = jax.tree.map(operator.itemgetter(1), store.params(0))
    steps = [train_run(override(run, {"train.steps": n, "train.optimizer": name}), tiny_corpus)[0]
             for n, name in ((1, "muon"), (2, "muon"), (1, "adamw"))]  # fmt: skip
    for name in start.keys() - {"blocks"}:
        jax.tree.map(np.testing.assert_array_equal, steps[0][name], steps[2][name])
    momentum = {}
    for i, (before, after) in enumerate([(start, steps[0]), (steps[0], steps[1])], start=1):
        batch = corpus.batch_at(tiny_corpus, run.order_seed, i - 1, 8)
        gradient = loss_and_gradient(run.model, before, batch)[1]
        norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(gradient)))
        for name, module in before["blocks"]["feed_forward"].items():
            w, g = (np.float64(of["kernel"][0]) for of in (module, gradient["blocks"]["feed_forward"][name]))
            g *= min(1, train.clip_norm / norm)
            momentum[name] = 0.95 * momentum.get(name, 0) + 0.05 * g
            nesterov = 0.95 * momentum[name] / (1 - 0.95 ** (i + 1)) + 0.05 * g / (1 - 0.95**i)
            update = 0.2 * np.sqrt(max(w.shape)) * orthogonal(nesterov) + train.weight_decay * w
            ours = after["blocks"]["feed_forward"][name]["kernel"][0]
            np.testing.assert_allclose(ours, w - train.learning_rate * update, atol=1e-5)


def test_without_a_limit_no_gradient_is_clipped(trained, tiny_pack, tiny_corpus):
    run = override(tiny_pack.runs[1], {"train.clip_norm": 0.0, "train.steps": 8})
    _, expected = first_steps(trained, tiny_pack, tiny_corpus, run, 1)
    np.testing.assert_allclose(measured(train_run(run, tiny_corpus)[1]), expected, rtol=1e-4)
    clipped = measured(read_metrics(trained / "runs" / tiny_pack.runs[1].id))[:8]
    assert abs(expected[-1][0] - clipped[-1][0]) > 1e-3


def restored(directory, pack: Pack, mesh: jax.sharding.Mesh):
    """(program, hyper, state) of a pack at the newest step, on `mesh`."""
    program, hyper = Program.of(pack), jax.device_put(hypers(pack.runs), per_run(mesh))
    with Store(directory, [run.id for run in pack.runs]) as store:
        return program, hyper, store.latest(abstract_state(program, mesh, hyper))[0]


def test_a_step_keeps_the_shardings_it_was_given(trained, tiny_pack, tiny_corpus):
    mesh = make_mesh(tiny_pack, Layout(data=4, model=2))
    program, hyper, state = restored(trained / "checkpoints" / tiny_pack.id, tiny_pack, mesh)
    kernel = state["params"]["blocks"]["feed_forward"]["up"]["kernel"]
    assert kernel.shape == (3, 1, 8, 32) and kernel.addressable_shards[0].data.shape == (3, 1, 2, 16)
    before = jax.tree.map(lambda x: x.sharding, state)
    rows_KxBxT1 = np.stack([corpus.batch_at(tiny_corpus, seed, 60, 8) for seed in range(3)])
    state, _ = train_step(program, mesh, state, hyper, jax.device_put(rows_KxBxT1, per_run_and_row(mesh)))
    assert int(state["step"]) == 61
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(f"{x.sharding}"), state, before)


def test_a_masked_rank_is_that_rank(trained, tiny_pack):
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        head = store.params(60)["head"]
    assert not head["a"][1, :, 2:].any() and not head["b"][1, 2:].any()
    ranks = [np.linalg.matrix_rank(np.float64(a) @ np.float64(b)) for a, b in zip(head["a"], head["b"])]
    assert ranks == [run.model.rank for run in tiny_pack.runs] == [4, 2, 4]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(Layout(data=8), marks=pytest.mark.slow),
        Layout(data=4, model=2, remat="dots"),
        pytest.param(Layout(model=2, remat="full"), marks=pytest.mark.slow),
        Layout(pack=2, data=2, model=2),
        pytest.param(Layout(pack=1, data=2, remat="dots"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_layout_has_the_losses_of_one_device(trained, tiny_pack, tiny_corpus, monkeypatch, layout):
    if layout.pack == 1:  # two runs at once on a device, as everywhere but on a CPU
        monkeypatch.setattr(parallel, "takes_turns", lambda mesh: False)
    pack = Pack(tiny_pack.runs[:2])
    mesh = make_mesh(pack, layout)
    assert [mesh.shape[axis] for axis in ("data", "model")] == [layout.data or 1, layout.model]
    losses_SxK = losses_of(pack, tiny_corpus, layout, 30)
    for k, run in enumerate(pack.runs):
        lines = [line for line in read_metrics(trained / "runs" / run.id) if "loss" in line]
        np.testing.assert_allclose(losses_SxK[:, k], [line["loss"] for line in lines[:30]], rtol=1e-5)


def losses_of(pack, text, layout, n_steps):
    """losses_SxK of the first steps."""
    mesh, program = make_mesh(pack, layout), Program.of(pack, layout.remat or "none")
    hyper = jax.tree.map(lambda x: put(np.asarray(x), per_run(mesh)), hypers(pack.runs))
    state, losses = initializer(program, mesh)(hyper), []
    for i in range(n_steps):
        rows_KxBxT1 = np.stack([corpus.batch_at(text, run.order_seed, i, 8) for run in pack.runs])
        state, metrics = train_step(program, mesh, state, hyper, put(rows_KxBxT1, per_run_and_row(mesh)))
        losses.append(metrics["loss"])
    return np.array(losses)


@pytest.mark.parametrize(
    "head, ranks", [pytest.param(*of, marks=pytest.mark.slow) for of in (("mixture", (8, 3)), ("nonlinear", (20, 3)))]
)
def test_every_head_trains_in_packs_of_several_ranks_and_on_any_layout(tiny_run, tiny_corpus, head, ranks):
    runs = [override(tiny_run, {"model.head": head, "model.head_rank": rank, "seed": rank}) for rank in ranks]
    packed = losses_of(Pack(tuple(runs)), tiny_corpus, Layout(data=1, pack=2), 20)
    assert (packed[-1] < packed[0] - 0.03).all()
    alone = losses_of(Pack((runs[1],)), tiny_corpus, Layout(data=1), 20)
    np.testing.assert_allclose(packed[:, 1:], alone, rtol=1e-5)
    split = losses_of(Pack(tuple(runs)), tiny_corpus, Layout(pack=1, data=4, model=2), 20)
    np.testing.assert_allclose(packed, split, rtol=1e-5)


def test_runs_of_a_pack_do_not_talk(tiny_run):
    pack = Pack(tuple(override(tiny_run, {"seed": seed}) for seed in range(4)))
    mesh, program = make_mesh(pack), Program.of(pack)
    assert mesh.shape == {"pack": 4, "data": 1, "model": 1}
    hyper = jax.device_put(hypers(pack.runs), per_run(mesh))
    rows_KxBxT1 = jax.ShapeDtypeStruct((4, 8, 17), jnp.int32, sharding=per_run_and_row(mesh))
    state = abstract_state(program, mesh, hyper)
    text = train_step.lower(program, mesh, state, hyper, rows_KxBxT1).compile().as_text()
    assert "fusion" in text and not COLLECTIVES.findall(text)


def test_the_initial_scale_is_that_of_every_matrix_and_the_data_seed_draws_nothing(trained, tiny_pack):
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        scaled = jax.tree.map(operator.itemgetter(2), store.params(0))
    assert (tiny_pack.runs[2].train.init_scale, tiny_pack.runs[2].data_seed) == (1.5, 7)
    drawn = model.init(tiny_pack.model, jax.random.fold_in(jax.random.key(2), 0), 4)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(scaled), jax.tree.leaves(drawn)):
        matrix = path[-1].key not in ("scale", "bias")
        np.testing.assert_allclose(x, 1.5 * y if matrix else y, rtol=1e-6, err_msg=str(path))


@pytest.mark.parametrize("layout", [Layout(data=8), Layout(data=4, model=2)], ids=str)
def test_parameters_are_never_whole_on_one_device(tiny_run, layout):
    run = override(tiny_run, {"model.vocab_size": 16384, "model.width": 32})

    def mib(layout: Layout) -> float:
        pack = Pack((run,))
        lowered = initializer(Program.of(pack), make_mesh(pack, layout)).lower(hypers(pack.runs))
        memory = lowered.compile().memory_analysis()
        return (memory.output_size_in_bytes + memory.temp_size_in_bytes) / 2**20

    ours, whole = mib(layout), mib(Layout())
    assert ours < whole / 4, f"{ours:.3f} of {whole:.3f} MiB"
