import functools
import operator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxsat import model
from jaxsat.checkpoints import Store
from jaxsat.config import Layout, checkpoint_steps, override
from jaxsat.evaluate import token_losses
from jaxsat.measure import Checkpoint, Measure, language
from jaxsat.measure.measure import NO_TEXT, heldout
from jaxsat.measure.packs import measured
from jaxsat.sweep import Pack

SHAPES = {
    "factored": {"model.width": 12, "model.heads": 3, "model.vocab_size": 67, "model.head_rank": 5}
    | {"model.norm": "layer", "model.bias": True, "model.depth": 2},
    "mixture": {"model.width": 12, "model.heads": 3, "model.head_rank": 5, "model.head": "mixture"}
    | {"model.head_softmaxes": 3},
    "nonlinear": {"model.width": 12, "model.heads": 3, "model.head_rank": 20, "model.head": "nonlinear"}
    | {"model.vocab_size": 17},
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


@pytest.mark.parametrize(
    "shape", ["factored", "mixture", *(pytest.param(x, marks=pytest.mark.slow) for x in ("nonlinear", "full_bfloat16"))]
)
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
    document_MxT = np.sort(rng.integers(0, 5, 37 * 17)).reshape(37, 17).astype(np.int32)
    text = corpus(heldout_MxT1, document_MxT)
    rows = all_measures(pack, tmp_path, text, measures=[*language.standard(), language.centred_anisotropy()])[1]
    assert set(rows["tokens"]) == {8 * 17}

    forward = jax.jit(lambda p, x: (model.logits(pack.model, p, x), model.hidden(pack.model, p, x)[1]))
    for k, r in enumerate(pack.runs):
        p = jax.tree.map(operator.itemgetter(k), params)
        found = rows[rows["series"] == r.id].set_index(["metric", "layer", "index"])["value"]
        value = lambda metric, layer=-1, index=0, found=found: found[metric, layer, index]

        logits_MxTxV, stream_LxMxTxD = forward(p, heldout_MxT1[:, :-1])
        logp_MxTxV = log_softmax(np.float64(logits_MxTxV))
        nats_MxT = -np.take_along_axis(logp_MxTxV, heldout_MxT1[:, 1:, None], -1)[..., 0]
        half = r.model.compute_dtype == "bfloat16"  # rounds differently in blocks of other sizes
        near = dict(rel=1e-3 if half else 1e-6)
        assert value("heldout_loss") == pytest.approx(nats_MxT.mean(), **near)
        assert value("heldout_bits_per_byte") == pytest.approx(nats_MxT.mean() / np.log(2) / 3.5, **near)
        assert found.loc["document_loss"].index.tolist() == [(-1, i) for i in range(5)]
        for i in range(5):
            assert value("document_loss", index=i) == pytest.approx(nats_MxT[document_MxT == i].mean(), **near)

        head, name = jax.tree.map(np.float64, p["head"]), run.model.head
        w = head["kernel"] if "kernel" in head else head["b"] if name == "nonlinear" else head["a"] @ head["b"]
        of_head = {("", -1): (w, r.model.rank)}
        if name == "nonlinear":
            of_head["a.", -1] = head["a"], r.model.rank
        elif name == "mixture":
            of_head |= {("prior.", -1): (head["prior"], 3)} | {
                ("latent.", i): (head["latent"][i], 12) for i in range(3)
            }
        for (prefix, layer), (w, rank) in of_head.items():
            sigma = np.linalg.svd(w, compute_uv=False)[:rank]
            measured = found.loc[prefix + "singular_value"].xs(layer, level="layer")
            assert measured.index.tolist() == list(range(len(sigma)))
            np.testing.assert_allclose(measured, sigma, rtol=1e-5, atol=1e-6 * sigma[0])
            share = sigma / sigma.sum()
            entropy = np.log(len(sigma)) + (share * np.log(share)).sum()
            of = lambda metric, prefix=prefix, layer=layer, value=value: value(prefix + metric, layer)
            assert of("singular_entropy") == pytest.approx(entropy, abs=1e-6)
            assert of("effective_rank") == pytest.approx(len(sigma) * np.exp(-entropy), rel=1e-5)
            assert of("largest_share") == pytest.approx(share[0], rel=1e-5)
            assert of("condition_number") == pytest.approx(sigma[0] / sigma[-1], rel=1e-4)
            assert of("singular_value.n") == max(w.shape)

        tolerance = dict(abs=5e-4 if half else 2e-6)
        assert [i for i, _ in found.loc["anisotropy"].index] == list(range(r.model.depth + 1))
        unit = normalised(r.model, np.asarray(stream_LxMxTxD[-1]))
        gained = unit * p["final_norm"]["scale"] + p["final_norm"].get("bias", 0)
        tensors = {("", layer): np.asarray(x_MxTxD) for layer, x_MxTxD in enumerate(stream_LxMxTxD)}
        for (place, layer), x_MxTxD in (tensors | {("_before_gain", -1): unit, ("_after_gain", -1): gained}).items():
            x_NxD = x_MxTxD.reshape(-1, r.model.width).astype(np.float64)
            for metric, x in (("anisotropy", x_NxD), ("centred_anisotropy", x_NxD - x_NxD.mean(0))):
                assert value(metric + place, layer) == pytest.approx(mean_cosine(x), **tolerance)
                assert value(f"{metric}{place}.n", layer) == 37 * 17
        assert abs(mean_cosine(gained) - mean_cosine(unit)) > 0.01


@pytest.mark.parametrize(
    "layout", [(2, 2, 2), *(pytest.param(x, marks=pytest.mark.slow) for x in ((1, 8, 1), (1, 1, 8)))]
)
@pytest.mark.parametrize(
    "head", ["linear", *(pytest.param(h, marks=pytest.mark.slow) for h in ("mixture", "nonlinear"))]
)
def test_split_models_have_the_numbers_of_whole_ones(tiny_run, tmp_path, layout, head):
    """67 tokens, 37 rows: nothing divides."""
    shape = {"model.width": 16, "model.heads": 8, "model.vocab_size": 67, "model.head_rank": 10, "train.steps": 1}
    shape |= {"model.head": head}
    pack = Pack(tuple(override(tiny_run, shape | point) for point in ({}, {"seed": 1, "model.head_rank": 3})))
    keys_K, ranks_K = jax.random.split(jax.random.key(0), 2), jnp.array([10, 3])
    params = jax.jit(jax.vmap(functools.partial(model.init, pack.model)))(keys_K, ranks_K)
    with Store(tmp_path, [r.id for r in pack.runs], writable=True) as store:
        store.save(1, {"params": params, "step": jnp.int32(1)}, 0.0)
    heldout_MxT1 = np.random.default_rng(0).integers(0, 67, (37, 17)).astype(np.int32)
    text = corpus(heldout_MxT1, np.arange(37 * 16, dtype=np.int32).reshape(37, 16) // 100)
    measures = [*language.standard(), language.centred_anisotropy()]
    whole, split = (all_measures(pack, tmp_path, text, layout, measures) for layout in (None, layout))
    condition = whole[1]["metric"].str.endswith("condition_number")  # 276 of a square matrix of a mixture
    pd.testing.assert_frame_equal(split[1][~condition], whole[1][~condition], rtol=1e-5, atol=1e-5)
    pd.testing.assert_frame_equal(split[1][condition], whole[1][condition], rtol=1e-4)


def test_centres_are_those_of_the_sample(tiny_run, monkeypatch):
    """25 of 37 rows, in blocks of 10; embeddings far from the origin."""
    config = override(tiny_run, {"model.context": 17, "model.norm": "rms"}).model
    params = jax.jit(model.init, static_argnums=0)(config, jax.random.key(0))
    params["embedding"] += 300 * jax.random.normal(jax.random.key(1), (1, config.width))
    monkeypatch.setattr("jaxsat.measure.measure.BLOCK_TOKENS", 170)
    monkeypatch.setattr(language, "ANISOTROPY_TOKENS", 25 * 17 - 5)
    rng = np.random.default_rng(0)
    heldout_MxT1 = rng.integers(0, config.vocab_size, (37, 18)).astype(np.int32)
    text = heldout(corpus(heldout_MxT1, np.zeros((37, 17), np.int32)))
    assert text.tokens_NxBxT1.shape == (4, 10, 18)
    found = language.centred_anisotropy().of(Checkpoint(config, params, config.rank, text))
    x_NxD = np.float64(params["embedding"])[heldout_MxT1[:25, :-1].ravel()]
    assert found["centred_anisotropy"][0, 0] == pytest.approx(mean_cosine(x_NxD - x_NxD.mean(0)), abs=1e-6)
    assert found["centred_anisotropy.n"][0, 0] == 25 * 17 and mean_cosine(x_NxD) > 0.99


def test_a_tied_head_is_the_embedding(tiny_run):
    config = override(tiny_run, {"model.tied_head": True, "model.head_rank": None, "model.vocab_size": 7}).model
    embedding_VxD = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
    found = language.head().of(Checkpoint(config, {"embedding": jnp.asarray(embedding_VxD)}, config.rank, NO_TEXT))
    sigma = np.linalg.svd(np.float64(embedding_VxD), compute_uv=False)
    np.testing.assert_allclose(found["singular_value"], sigma, rtol=1e-5)


def corpus(heldout_MxT1, document_MxT):
    """What a measure reads of a corpus."""
    n = int(document_MxT.max()) + 1
    return SimpleNamespace(
        heldout_MxT1=heldout_MxT1,
        heldout_document_MxT=document_MxT,
        heldout_documents=n,
        bytes_per_token=3.5,
        marked=False,
        heldout_marked=False,
    )


def all_measures(pack, directory, text, layout=None, measures=None):
    with Store(directory, [run.id for run in pack.runs]) as store:
        todo = {step: [(m, pack.runs) for m in measures or language.standard()] for step in store.steps}
        return dict(measured(pack, store, text, todo, Layout(*layout or ())))


@pytest.fixture(scope="module")
def stored(trained, tiny_pack):
    return trained / "checkpoints" / tiny_pack.id


def test_checkpoints_are_measured_in_order(stored, tiny_pack, tiny_corpus):
    frames = all_measures(tiny_pack, stored, tiny_corpus)
    assert tuple(frames) == checkpoint_steps(tiny_pack.runs[0].train)
    rows = pd.concat(frames.values())
    for run in tiny_pack.runs:
        mine = rows[rows["series"] == run.id]
        losses = mine[mine["metric"] == "heldout_loss"].set_index("step")["value"]
        assert losses[0] == pytest.approx(np.log(64), abs=0.3 if run.train.init_scale == 1 else 1)
        assert losses[60] < losses[0] - 0.3
        assert (mine[mine["metric"] == "singular_value"].groupby("step").size() == run.model.rank).all()
        assert (mine["tokens"] == mine["step"] * 128).all()


def test_plain_measures_see_one_model_as_it_is(stored, tiny_pack, tiny_corpus):
    seen = []

    def plain(c: Checkpoint):
        seen.append((c.run.id, c.step, c.tokens, c.rank, c.params["head"]["a"].shape, c.params["head"]["b"].shape))
        assert c.corpus is tiny_corpus and c.config == c.run.model
        token_losses(c.config, c.params, c.heldout.tokens_NxBxT1[0])  # on one device, as the parameters are
        return {"norm": jnp.linalg.norm(c.params["embedding"])}

    def traced(c: Checkpoint):
        assert c.run is None and c.step is None
        return {"traced_norm": jnp.linalg.norm(c.params["embedding"])}

    measures = [Measure("plain", plain), Measure("traced", traced, traced=True)]
    rows = all_measures(tiny_pack, stored, tiny_corpus, measures=measures)[60]
    wide = rows.pivot(index="series", columns="metric", values="value")
    np.testing.assert_allclose(wide["norm"], wide["traced_norm"], rtol=1e-6)
    for run in tiny_pack.runs:
        d, r, v = run.model.width, run.model.rank, run.model.vocab_size
        assert (run.id, 60, 60 * run.tokens_per_step, r, (d, r), (r, v)) in seen


def test_what_is_not_finite_is_told(trained, tiny_pack, tiny_corpus, tmp_path):
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        params = jax.tree.map(np.array, store.params(60))
    ids = [run.id for run in tiny_pack.runs]
    with Store(tmp_path, ids, writable=True) as store:
        params["embedding"][1] = np.nan
        store.save(40, {"params": params, "step": jnp.int32(40)}, 0.0)
    rows = all_measures(tiny_pack, tmp_path, tiny_corpus)[40]
    bad = rows[~np.isfinite(rows["value"])]
    assert set(bad["series"]) == {ids[1]} and {"heldout_loss", "anisotropy_after_gain"} <= set(bad["metric"])
    assert "document_loss" not in set(rows.loc[rows["series"] == ids[1], "metric"]), (
        "of a vector what is no number is cut"
    )
