import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxsat import measure, model
from jaxsat.checkpoints import Store
from jaxsat.config import Layout, override
from jaxsat.corpus.synthetic import Spam
from jaxsat.measure import Checkpoint, gradient, gradient_share, random_share
from jaxsat.measure.measure import heldout
from jaxsat.measure.packs import measured

NAMES = ("gradient_norm_passed", "gradient_norm_lost", "gradient_energy_passed")
HEADS = {
    "full": {"model.head_rank": None},
    "factored": {"model.head_rank": 3},
    "tied": {"model.head_rank": None, "model.tied_head": True},
    "nonlinear": {"model.head_rank": 11, "model.head": "nonlinear"},
    "wide": {"model.head_rank": None, "model.width": 96},  # above V = 64: all passes
}


def drawn(config):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    return jax.tree.map(lambda x: jnp.float32(rng.normal(0.2, 0.5, size=x.shape)), shapes)


def of_rows(rows_MxT1, corpus):
    """The held-out slice with these rows."""
    document_MxT = np.zeros(rows_MxT1[:, 1:].shape, np.int32)
    return heldout(dataclasses.replace(corpus, heldout_MxT1=rows_MxT1, heldout_document_MxT=document_MxT))


def oracle(config, params, rows_MxT1):
    """In float64, from the hidden states on, with the singular vectors of W."""
    h_BxTxD, _ = model.hidden(config, params, rows_MxT1[:, :-1])
    h_NxD, head = np.float64(h_BxTxD).reshape(-1, config.width), jax.tree.map(np.float64, params.get("head", {}))
    if config.head == "nonlinear":
        z_NxV = np.float64(model.heads.logits(config, params, h_BxTxD)).reshape(len(h_NxD), -1)
        w_VxR = head["b"].T
    else:
        w_DxV = np.float64(params["embedding"]).T if config.tied_head else head.get("kernel")
        w_VxR = (head["a"] @ head["b"] if w_DxV is None else w_DxV).T
        z_NxV = h_NxD @ w_VxR.T
    g_NxV = softmax(z_NxV, axis=1) - np.eye(config.vocab_size)[rows_MxT1[:, 1:].ravel()]
    u_VxR, sigma, _ = np.linalg.svd(w_VxR, full_matrices=False)
    u_VxR = u_VxR[:, sigma > 1e-9 * sigma[0]]
    passed_NxR = g_NxV @ u_VxR
    norm = np.linalg.norm(g_NxV, axis=1)
    lost = np.linalg.norm(g_NxV - passed_NxR @ u_VxR.T, axis=1) / norm
    shares = (np.linalg.norm(passed_NxR, axis=1) / norm).mean(), lost.mean(), (passed_NxR**2).sum() / (norm**2).sum()
    return np.array(shares), u_VxR.shape[1]


@pytest.mark.parametrize("head", HEADS)
def test_shares_against_float64(head, tiny_run, tiny_corpus, monkeypatch):
    """In chunks that do not divide a row, of a sample that ends within a block."""
    monkeypatch.setattr(gradient, "CHUNK", 7 * 64)
    monkeypatch.setattr(gradient, "GRADIENT_TOKENS", 80 * 16)
    rows_MxT1 = np.random.default_rng(1).integers(0, 64, (150, 17)).astype(np.int32)
    config = override(tiny_run, HEADS[head]).model
    params = drawn(config)
    found = gradient_share().of(Checkpoint(config, params, config.rank, of_rows(rows_MxT1, tiny_corpus)))
    expected, rank = oracle(config, params, rows_MxT1[:80])
    np.testing.assert_allclose([found[name] for name in NAMES], expected, rtol=2e-6, atol=2e-6)
    assert rank == min(config.rank, 64) and found["gradient_norm_passed.n"] == 1280
    random = [found[f"{name}.random"] for name in NAMES]
    np.testing.assert_allclose(random, random_share(rank, 64), rtol=1e-6)


def test_factors_of_a_pack_have_their_own_rank(tiny_run, tiny_corpus):
    """Stored wider than they are, they give what they give alone."""
    config = override(tiny_run, {"model.head_rank": 3}).model
    params = drawn(config)
    wide = dataclasses.replace(config, head_rank=8)
    head = {"a": np.pad(params["head"]["a"], ((0, 0), (0, 5))), "b": np.pad(params["head"]["b"], ((0, 5), (0, 0)))}
    alone, packed = (
        gradient_share().of(Checkpoint(c, p, jnp.int32(3), heldout(tiny_corpus)))
        for c, p in ((config, params), (wide, params | {"head": head}))
    )
    assert alone.keys() == packed.keys()
    np.testing.assert_allclose(list(packed.values()), list(alone.values()), rtol=1e-5)


def test_a_sure_model_has_its_shares_too(tiny_run, tiny_corpus):
    """Of rows that it has written itself: where p(target) is 1 in float32, p - 1 is 0 and has no direction."""
    config = tiny_run.model
    params = drawn(config)
    params["head"]["b"] *= 12
    rows_MxT1 = np.zeros((70, 17), np.int32)
    rows_MxT1[:, 0] = np.arange(70) % 64
    logits_of = jax.jit(lambda rows: model.logits(config, params, rows))
    for t in range(16):
        rows_MxT1[:, t + 1] = logits_of(rows_MxT1[:, :-1])[:, t].argmax(-1)
    sure = (jax.nn.softmax(logits_of(rows_MxT1[:, :-1])) == 1).any(-1)
    assert 0.2 < sure.mean() < 1
    found = gradient_share().of(Checkpoint(config, params, config.rank, of_rows(rows_MxT1, tiny_corpus)))
    expected, _ = oracle(config, params, rows_MxT1)
    np.testing.assert_allclose([found[name] for name in NAMES], expected, rtol=1e-4)


def test_a_mixture_has_none(tiny_run, tiny_corpus):
    config = override(tiny_run, {"model.head": "mixture", "model.head_rank": None}).model
    assert gradient_share().of(Checkpoint(config, drawn(config), config.rank, heldout(tiny_corpus))) == {}


@pytest.mark.parametrize(("rank", "vocab_size"), [(1, 5), (3, 7), (16, 40), (39, 40)])
def test_a_random_subspace_passes_its_share(rank, vocab_size):
    """Of any vector: 4000 subspaces are drawn against it."""
    rng = np.random.default_rng(rank)
    g_V = softmax(3 * rng.standard_normal(vocab_size)) - np.eye(vocab_size)[0]
    q_NxVxR, _ = np.linalg.qr(rng.standard_normal((4000, vocab_size, rank)))
    passed_N = (np.einsum("nvr,v->nr", q_NxVxR, g_V) ** 2).sum(1) / (g_V @ g_V)
    drawn_3xN = np.stack([np.sqrt(passed_N), np.sqrt(1 - passed_N), passed_N])
    error = drawn_3xN.std(axis=1) / np.sqrt(4000)
    assert (np.abs(drawn_3xN.mean(axis=1) - random_share(rank, vocab_size)) < 4 * error).all()


def test_random_shares_that_are_known():
    passed, lost, energy = random_share(768, 50257)
    assert lost == pytest.approx(0.99233, abs=5e-6) and lost == pytest.approx(np.sqrt(1 - 768 / 50257), rel=1e-5)
    assert energy == 768 / 50257 and passed == pytest.approx(np.sqrt(energy), rel=1e-3)
    np.testing.assert_allclose(random_share([0, 9], 9), [[0, 1], [1, 0], [0, 1]], atol=1e-12)


def test_split_packs(trained, tiny_pack, tiny_corpus):
    """Each run at its own rank, with its rows and its vocabulary over devices; of drawn rows too."""
    asked, todo = (gradient_share(), measure.excess_loss(Spam())), {}
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        todo[60] = [(m, tiny_pack.runs) for m in asked]
        ((_, rows),) = measured(tiny_pack, store, tiny_corpus, todo, Layout(1, 2, 2))
        params_K = store.params(60)
    for k, run in enumerate(tiny_pack.runs):
        mine = rows[rows["series"] == run.id].set_index("metric")["value"]
        params = jax.tree.map(lambda x, k=k: x[k], params_K)
        expected, rank = oracle(run.model, params, tiny_corpus.heldout_MxT1)
        assert [mine[name] for name in NAMES] == pytest.approx(expected, rel=1e-5)
        assert rank == run.model.rank and mine["gradient_energy_passed.random"] == pytest.approx(rank / 64)
    alone = asked[1].of(Checkpoint(tiny_pack.model, params, run.model.rank, measure.measure.NO_TEXT))
    assert mine["excess_loss"] == pytest.approx(float(alone["excess_loss"]), rel=1e-5)


def test_on_drawn_rows(tiny_run):
    """A language without a text: the rows of every checkpoint are the same."""
    config = override(tiny_run, {"model.head_rank": None}).model
    params, of = drawn(config), gradient_share(language=Spam())
    found = of.of(Checkpoint(config, params, config.rank, measure.measure.NO_TEXT))
    rows_MxT1 = np.asarray(Spam().rows(64, jax.random.key(0), 512, 16))
    np.testing.assert_allclose([found[name] for name in NAMES], oracle(config, params, rows_MxT1)[0], rtol=1e-5)
    assert of.key == "gradient_share Spam()" and found["gradient_norm_passed.n"] == 8192
