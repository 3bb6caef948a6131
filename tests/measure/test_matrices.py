import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxsat import model
from jaxsat.checkpoints import Store
from jaxsat.config import InputError, Layout, override
from jaxsat.measure import MATRICES, norms, row_anisotropy, spectrum
from jaxsat.measure.packs import measured
from jaxsat.sweep import Pack

MEASURES = [*map(spectrum, MATRICES), norms(), row_anisotropy()]
BASE = {"model.depth": 3, "model.width": 12, "model.heads": 4, "model.head_width": 6, "model.kv_heads": 2}
BASE |= {"model.vocab_size": 67, "train.steps": 1}
SHAPES = {
    "factored": {"model.head_rank": 5, "model.ffn_width": 7},
    "gated_tied": {"model.head_rank": None, "model.tied_head": True, "model.activation": "swiglu"},
    "mixture": {"model.head_rank": None, "model.head": "mixture", "model.head_softmaxes": 3},
    "nonlinear": {"model.head_rank": 9, "model.head": "nonlinear"},
}


@pytest.fixture
def stored(tiny_run, tmp_path):
    """A pack of one shape, of which the second run has a head of rank 3 where it has a rank, and its parameters."""

    def store(shape):
        run = override(tiny_run, BASE | shape)
        other = override(run, {"seed": 1} | ({"model.head_rank": 3} if run.model.head_rank else {}))
        pack, rng = Pack((run, other)), np.random.default_rng(0)
        keys_K, ranks_K = jax.random.split(jax.random.key(0), 2), jnp.array([r.model.rank for r in pack.runs])
        shapes = jax.eval_shape(jax.vmap(functools.partial(model.init, pack.model)), keys_K, ranks_K)
        params = jax.tree.map(lambda x: rng.normal(0.2, 0.5, size=x.shape).astype(np.float32), shapes)
        if run.model.head_rank:
            params["head"]["a"][1, :, 3:] = params["head"]["b"][1, 3:] = 0
        with Store(tmp_path, [r.id for r in pack.runs], writable=True) as written:
            written.save(1, {"params": params, "step": jnp.int32(1)}, 0.0)
        return pack, params

    return store


def found(pack, folder, layout=Layout()):
    with Store(folder, [run.id for run in pack.runs]) as store:
        ((_, rows),) = measured(pack, store, None, {1: [(m, pack.runs) for m in MEASURES]}, layout)
    return rows


def all_pairs(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (x @ x.T)[~np.eye(len(x), dtype=bool)].mean()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_matrix_against_float64(stored, tmp_path, shape):
    """Without any text; kernels that are wide, tall and square."""
    pack, params = stored(SHAPES[shape])
    rows = found(pack, tmp_path)
    for k, run in enumerate(pack.runs):
        p = jax.tree.map(operator.itemgetter(k), jax.tree.map(np.float64, params))
        mine = rows[rows["series"] == run.id].set_index(["metric", "layer", "index"])["value"]
        head = p.get("head", {})
        output = p["embedding"].T if run.model.tied_head else head["kernel"] if "kernel" in head else head["b"]
        if run.model.head == "linear" and run.model.head_rank:
            output = head["a"] @ output
        kinds = {"embedding": p["embedding"]} | {name: m["kernel"] for name, m in p["blocks"]["attention"].items()}
        kinds |= {name: m["kernel"] for name, m in p["blocks"]["feed_forward"].items()}
        assert kinds.keys() == set(MATRICES) - (set() if run.model.gated else {"gate"})
        for name, w in kinds.items():
            for layer, w_IxO in enumerate(w) if w.ndim == 3 else [(-1, w)]:
                at = lambda metric, layer=layer, name=name, mine=mine: mine[f"{name}.{metric}"].xs(layer, level="layer")
                sigma = np.linalg.svd(w_IxO, compute_uv=False)
                np.testing.assert_allclose(at("singular_value"), sigma, atol=1e-6 * sigma[0], rtol=0)
                share = sigma / sigma.sum()
                effective = np.exp(-(share * np.log(share)).sum())
                assert at("effective_rank")[0] == pytest.approx(effective, rel=1e-5)
                assert at("singular_entropy")[0] == pytest.approx(np.log(len(sigma) / effective), abs=1e-6)
                assert at("largest_share")[0] == pytest.approx(share[0], rel=1e-5)
                condition = sigma[0] / sigma[-1]
                assert at("condition_number")[0] == pytest.approx(condition, rel=1e-6 * condition)
                assert at("singular_value.n")[0] == max(w_IxO.shape)
        inner = {name: head[name] for name in ("latent", "prior") if name in head}
        if run.model.head == "nonlinear":
            inner["a"] = head["a"]
        for name, w in (kinds | {"head": output} | inner).items():
            norms = np.sqrt((w**2).sum((-2, -1)))
            np.testing.assert_allclose(mine[f"{name}.frobenius_norm"], norms, rtol=1e-6)
        for name, w_VxD in (("embedding", p["embedding"]), ("head", output.T)):
            for metric, x in (("row_anisotropy", w_VxD), ("centred_row_anisotropy", w_VxD - w_VxD.mean(0))):
                assert mine[f"{name}.{metric}", -1, 0] == pytest.approx(all_pairs(x), abs=1e-6)
                assert mine[f"{name}.{metric}.n", -1, 0] == 67
        known = {f"{name}.frobenius_norm" for name in (*kinds, "head", *inner)}
        assert {m for m in mine.index.levels[0] if m.endswith("norm")} == known


@pytest.mark.parametrize("shape", ["factored", "gated_tied"])
@pytest.mark.parametrize("layout", [(2, 2, 2), pytest.param((1, 4, 2), marks=pytest.mark.slow)])
def test_split_models_have_the_numbers_of_whole_ones(stored, tmp_path, shape, layout):
    pack, _ = stored(SHAPES[shape])
    whole, split = found(pack, tmp_path), found(pack, tmp_path, Layout(*layout))
    pd.testing.assert_frame_equal(split.drop(columns="value"), whole.drop(columns="value"))
    condition = whole["value"].where(whole["metric"].str.endswith("condition_number"), 1)  # its error grows with it
    np.testing.assert_allclose(split["value"] / condition**2, whole["value"] / condition**2, rtol=1e-5, atol=1e-6)


def test_what_is_no_matrix_is_named():
    with pytest.raises(InputError, match="matrix 'quer'.*query"):
        spectrum("quer")
