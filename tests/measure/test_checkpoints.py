import functools
import operator
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxsat import model
from jaxsat.checkpoints import Store, load_run
from jaxsat.config import Layout, checkpoint_steps, override
from jaxsat.measure import frozen_head_losses, measure_frozen_heads, measure_pack, table, train_frozen_heads
from jaxsat.measure.checkpoints import head_sigma
from jaxsat.sweep import Pack

SHAPES = {
    "factored": {"model.width": 12, "model.heads": 3, "model.vocab_size": 67, "model.head_rank": 5}
    | {"model.norm": "layer", "model.bias": True, "model.depth": 2},
    "full_bfloat16": {"model.head_rank": None, "model.vocab_size": 61, "model.compute_dtype": "bfloat16"},
}


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def mean_cosine(x):
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (x @ x.T)[~np.eye(len(x), dtype=bool)].mean()


def normalised(config, x):
    """The final norm in float64, without gain and bias."""
    x = x.astype(np.float64)
    if config.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_eps)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_against_float64(tiny_run, tmp_path, shape):
    """37 rows, which no block divides, of 17 tokens; large parameters, and a gain that points somewhere."""
    run = override(tiny_run, SHAPES[shape] | {"model.context": 17, "train.steps": 1})
    other = override(run, {"seed": 1} | ({"model.head_rank": 3} if run.model.head_rank else {}))
    pack, rng = Pack((run, other)), np.random.default_rng(0)
    keys_K, ranks_K = jax.random.split(jax.random.key(0), 2), jnp.array([r.model.rank for r in pack.runs])
    shapes = jax.eval_shape(jax.vmap(functools.partial(model.init, pack.model)), keys_K, ranks_K)
    params = jax.tree.map(lambda x: rng.normal(scale=0.5, size=x.shape).astype(np.float32), shapes)
    params["final_norm"]["scale"][:, 0] = 5
    if run.model.head_rank:
        params["head"]["a"][1, :, 3:] = params["head"]["b"][1, 3:] = 0
    with Store(tmp_path, [r.id for r in pack.runs], writable=True) as store:
        store.save(1, {"params": params, "step": jnp.int32(1)}, 0.0)
    heldout_MxT1 = rng.integers(0, run.model.vocab_size, (37, 18)).astype(np.int32)
    with Store(tmp_path, [r.id for r in pack.runs]) as store:
        ((step, rows),) = measure_pack(pack, store, heldout_MxT1, table.empty())
    assert step == 1 and set(rows["tokens"]) == {8 * 17}

    forward = jax.jit(lambda p, x: (model.logits(pack.model, p, x), model.hidden(pack.model, p, x)[1]))
    for k, r in enumerate(pack.runs):
        p = jax.tree.map(operator.itemgetter(k), params)
        found = rows[rows["run"] == r.id].set_index(["metric", "layer", "index"])["value"]
        value = lambda metric, layer=-1, index=0, found=found: found[metric, layer, index]

        logits_MxTxV, stream_LxMxTxD = forward(p, heldout_MxT1[:, :-1])
        logp_MxTxV = log_softmax(np.float64(logits_MxTxV))
        loss = -np.take_along_axis(logp_MxTxV, heldout_MxT1[:, 1:, None], -1).mean()
        half = r.model.compute_dtype == "bfloat16"  # rounds differently in blocks of other sizes
        assert value("heldout_loss") == pytest.approx(loss, rel=1e-3 if half else 1e-6)

        head = p["head"]
        w = np.float64(head["a"]) @ np.float64(head["b"]) if "a" in head else np.float64(head["kernel"])
        sigma = np.linalg.svd(w, compute_uv=False)[: r.model.rank]
        assert found.loc["singular_value"].index.tolist() == [(-1, i) for i in range(r.model.rank)]
        np.testing.assert_allclose(found.loc["singular_value"], sigma, rtol=1e-5)
        share = sigma / sigma.sum()
        entropy = np.log(len(sigma)) + (share * np.log(share)).sum()
        assert value("singular_entropy") == pytest.approx(entropy, abs=1e-6)
        assert value("effective_rank") == pytest.approx(len(sigma) * np.exp(-entropy), rel=1e-5)
        assert value("largest_share") == pytest.approx(share[0], rel=1e-5)
        assert value("condition_number") == pytest.approx(sigma[0] / sigma[-1], rel=1e-4)

        tolerance = dict(abs=5e-4 if half else 1e-6)
        assert [i for i, _ in found.loc["anisotropy"].index] == list(range(r.model.depth + 1))
        for layer, x_MxTxD in enumerate(stream_LxMxTxD):
            assert value("anisotropy", layer) == pytest.approx(mean_cosine(np.asarray(x_MxTxD)), **tolerance)
        unit = normalised(r.model, np.asarray(stream_LxMxTxD[-1]))
        gained = unit * p["final_norm"]["scale"] + p["final_norm"].get("bias", 0)
        assert value("anisotropy_before_gain", r.model.depth) == pytest.approx(mean_cosine(unit), **tolerance)
        assert value("anisotropy_after_gain", r.model.depth) == pytest.approx(mean_cosine(gained), **tolerance)
        assert abs(mean_cosine(gained) - mean_cosine(unit)) > 0.01


@pytest.mark.parametrize(
    "layout", [(2, 2, 2), *(pytest.param(x, marks=pytest.mark.slow) for x in ((1, 8, 1), (1, 1, 8)))]
)
def test_split_models_have_the_numbers_of_whole_ones(tiny_run, tmp_path, layout):
    """67 tokens, 37 rows: nothing divides."""
    shape = {"model.width": 16, "model.heads": 8, "model.vocab_size": 67, "model.head_rank": 10, "train.steps": 1}
    pack = Pack(tuple(override(tiny_run, shape | point) for point in ({}, {"seed": 1, "model.head_rank": 3})))
    keys_K, ranks_K = jax.random.split(jax.random.key(0), 2), jnp.array([10, 3])
    params = jax.jit(jax.vmap(functools.partial(model.init, pack.model)))(keys_K, ranks_K)
    with Store(tmp_path, [r.id for r in pack.runs], writable=True) as store:
        store.save(1, {"params": params, "step": jnp.int32(1)}, 0.0)
    heldout_MxT1 = np.random.default_rng(0).integers(0, 67, (37, 17)).astype(np.int32)
    whole, split = (measured(pack, tmp_path, heldout_MxT1, table.empty(), layout) for layout in (None, layout))
    pd.testing.assert_frame_equal(split[1], whole[1], rtol=1e-5, atol=1e-5)


def test_a_tied_head_is_the_embedding(tiny_run):
    config = override(tiny_run, {"model.tied_head": True, "model.head_rank": None, "model.vocab_size": 7}).model
    embedding_VxD = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
    sigma = head_sigma(config, {"embedding": embedding_VxD})
    np.testing.assert_allclose(sigma, np.linalg.svd(np.float64(embedding_VxD), compute_uv=False), rtol=1e-5)


def measured(pack, directory, heldout_MxT1, known, layout=None):
    with Store(directory, [run.id for run in pack.runs]) as store:
        return dict(measure_pack(pack, store, heldout_MxT1, known, Layout(*layout or ())))


def test_each_scheduled_checkpoint_is_measured_once(trained, tiny_pack, tiny_corpus, tmp_path):
    directory = tmp_path / tiny_pack.id
    shutil.copytree(trained / "checkpoints" / tiny_pack.id, directory)
    shutil.copytree(directory / "4", directory / "5")  # saved when preempted, on no schedule
    frames = measured(tiny_pack, directory, tiny_corpus.heldout_MxT1, table.empty())
    assert tuple(frames) == checkpoint_steps(tiny_pack.runs[0].train)
    rows = table.merge(tmp_path / "measurements.parquet", pd.concat(frames.values()))
    for run in tiny_pack.runs:
        mine = rows[rows["run"] == run.id]
        losses = mine[mine["metric"] == "heldout_loss"].set_index("step")["value"]
        assert losses[0] == pytest.approx(np.log(64), abs=0.3 if run.train.init_scale == 1 else 1)
        assert losses[60] < losses[0] - 0.3
        assert (mine[mine["metric"] == "singular_value"].groupby("step").size() == run.model.rank).all()
        assert (mine["tokens"] == mine["step"] * 128).all()
    assert measured(tiny_pack, directory, tiny_corpus.heldout_MxT1, rows) == {}

    # A number that an experiment added of its own does not stand for the measurement of the step.
    others = rows[(rows["step"] != 20) | (rows["metric"] == "largest_share")]
    (again,) = measured(tiny_pack, directory, tiny_corpus.heldout_MxT1, others).items()
    assert again[0] == 20
    pd.testing.assert_frame_equal(again[1].reset_index(drop=True), frames[20].reset_index(drop=True))


def test_a_diverged_run_has_no_measurements(trained, tiny_pack, tiny_corpus, tmp_path):
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        params = jax.tree.map(np.array, store.params(60))
    ids = [run.id for run in tiny_pack.runs]
    with Store(tmp_path, ids, writable=True) as store:
        params["embedding"][1] = np.nan
        store.save(40, {"params": params, "step": jnp.int32(40)}, 0.0)
        params["embedding"][:] = np.nan
        store.save(60, {"params": params, "step": jnp.int32(60)}, 0.0)
    frames = measured(tiny_pack, tmp_path, tiny_corpus.heldout_MxT1, table.empty())
    assert list(frames) == [40, 60] and set(frames[40]["run"]) == {ids[0], ids[2]} and frames[60].empty
    assert np.isfinite(frames[40]["value"]).all()


def test_frozen_heads_see_every_position(trained, tiny_run, tiny_corpus):
    """11 held-out rows are less than a block."""
    run, heldout_MxT1 = tiny_run, tiny_corpus.heldout_MxT1
    rows_NxT1 = np.array(tiny_corpus.train_RxT1[:40], np.int32)
    _, params = load_run(trained, run.id, 60)
    table = measure_frozen_heads(run, params, rows_NxT1, heldout_MxT1, [2])
    assert set(table["metric"]) == {"frozen_head_loss"} and list(table["index"]) == [2]
    hidden = jax.jit(lambda rows: model.hidden(run.model, params, rows[:, :-1])[0].reshape(-1, run.model.width))
    heads = train_frozen_heads(hidden(rows_NxT1), jnp.asarray(rows_NxT1[:, 1:].reshape(-1)), 64, [2], seed=run.seed)
    expected = frozen_head_losses(heads, hidden(heldout_MxT1), jnp.asarray(heldout_MxT1[:, 1:].reshape(-1)))
    np.testing.assert_allclose(table["value"], expected, rtol=1e-5)
