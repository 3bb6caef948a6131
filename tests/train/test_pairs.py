"""Runs on pairs, and on texts and pairs together."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat import model
from jaxsat.checkpoints import Store, load_run
from jaxsat.config import DataConfig, InputError, ModelConfig, Run, TrainConfig, override
from jaxsat.corpus import batch_at, prepare
from jaxsat.corpus.pairs import lengths_of
from jaxsat.corpus.tokenizer import load
from jaxsat.evaluate import items_of, score
from jaxsat.measure import Checkpoint, frozen, language
from jaxsat.measure.measure import NO_TEXT
from jaxsat.measure.packs import measured
from jaxsat.sweep import Pack
from jaxsat.train import ON_PAIRS, own_samples, read_metrics, train_pack, train_run

NAMES, VERBS = ["ada", "ben", "cleo", "dan", "eve"], ["saw", "met", "heard"]
PAIRS = [(f"{a} {v} {b} .", f"{v} ( {a} , {b} )") for a in NAMES for b in NAMES for v in VERBS]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS))
    (folder / "text.txt").write_text("".join(f"{source} {target}\n" for source, target in PAIRS))
    data = DataConfig((str(folder / "pairs.tsv"), str(folder / "text.txt")), "words", 0.1, 500, weights=(2, 1))
    return Run(ModelConfig(width=16, heads=2, context=30, vocab_size=20),
               TrainConfig(steps=120, batch_size=8, learning_rate=0.02, checkpoint_every=60), data)  # fmt: skip


@pytest.fixture(scope="module")
def on_pairs(run) -> Run:
    return override(run, {"data.corpus": run.data.corpus[:1], "data.weights": ()})


@pytest.fixture(scope="module")
def corpora(run, on_pairs, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {of: prepare(of.data, of.model.vocab_size, of.model.context) for of in (run, on_pairs)}


def losses(lines):
    return [line["loss"] for line in lines if "loss" in line]


def alone(rows) -> np.ndarray:
    """The pairs of the rows, and their texts, each in a row of its own."""
    found = []
    for row in rows:
        row = row[: len(row) - (row[::-1] >= 0).argmax()]
        found += np.split(row, np.cumsum(lengths_of(row))[:-1]) if row[0] < 0 else [row]
    return np.stack([np.pad(pair, (0, rows.shape[1] - len(pair)), constant_values=-1) for pair in found])


@partial(jax.jit, static_argnums=0)
def masked_loss(config, params, inputs_BxT, targets_BxT, segment_BxT=None):
    """The mean nats of the targets that are no context, by the definition: all logits, and a mask."""
    h_BxTxD, _ = model.hidden(config, params, inputs_BxT, segment_BxT=segment_BxT)
    log_p_BxTxV = jax.nn.log_softmax(model.heads.logits(config, params, h_BxTxD))
    nats_BxT = -jnp.take_along_axis(log_p_BxTxV, jnp.maximum(targets_BxT, 0)[..., None], axis=-1)[..., 0]
    mask_BxT = (targets_BxT >= 0).astype(jnp.float32)
    return (nats_BxT * mask_BxT).sum() / mask_BxT.sum()


def loss_alone(config, params, rows):
    one = alone(rows)
    return masked_loss(config, params, np.where(one < 0, ~one, one)[:, :-1], one[:, 1:])


# Of a mixture more positions add up in float32: seen 1.1e-8 and 5.2e-8.
@pytest.mark.parametrize("kind, nearest", [("pairs", 3e-8), ("mixed", 1e-7)])
def test_loss_and_gradients_are_those_of_a_masked_loss(run, on_pairs, corpora, kind, nearest):
    of = on_pairs if kind == "pairs" else run
    rows_BxT1 = batch_at(corpora[of], 0, 0, 8)
    assert (rows_BxT1 >= 0).all(axis=1).any() == (kind == "mixed")
    params = model.init(of.model, jax.random.key(1))
    inputs_BxT, segment_BxT = model.read_marks(jnp.asarray(rows_BxT1))
    losses = {
        "ours": lambda p: ON_PAIRS.loss(of.model, p, jnp.asarray(rows_BxT1), None, "none"),
        "masked": lambda p: masked_loss(of.model, p, inputs_BxT, rows_BxT1[:, 1:], segment_BxT),
        "alone": lambda p: loss_alone(of.model, p, rows_BxT1),
    }
    found = {name: jax.jit(jax.value_and_grad(loss))(params) for name, loss in losses.items()}
    ours, ours_gradient = found["ours"]
    for name, tolerance in (("masked", nearest), ("alone", 3e-7)):
        theirs, their_gradient = found[name]
        assert float(ours) == pytest.approx(float(theirs), rel=3e-7)
        for g, t in zip(jax.tree.leaves(ours_gradient), jax.tree.leaves(their_gradient)):
            np.testing.assert_allclose(g, t, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_what_was_learnt_on_targets_is_written(on_pairs, corpora):
    longer = override(on_pairs, {"train.steps": 400, "model.width": 32})
    corpus = corpora[on_pairs]
    params, lines = train_run(longer, corpus)
    tokenizer = load(str(corpus.tokenizer), 20)
    items = items_of("all", ({"source": source, "target": target} for source, target in PAIRS))
    found = score(longer.model, params, tokenizer, items).summary.set_index("metric")["value"]
    assert found["exact_match"] > 0.9 and losses(lines)[-1] < 0.05
    assert np.exp(losses(lines)[0]) < 30  # of 20 words; sources, which cannot be known, are never asked for


@pytest.mark.slow
def test_a_pack_of_a_mixture_goes_on_to_the_same_numbers(run, corpora, tmp_path):
    pack = Pack((run, override(run, {"seed": 1, "train.learning_rate": 0.01})))
    train_pack(pack, corpora[run], tmp_path)
    whole = [losses(read_metrics(tmp_path / "runs" / of.id)) for of in pack.runs]
    alone, lines = train_run(pack.runs[1], corpora[run])
    np.testing.assert_allclose(losses(lines), whole[1], rtol=1e-5)
    with Store(tmp_path / "checkpoints" / pack.id, writable=True) as store:
        (store.directory / "120").rmtree()
    train_pack(pack, corpora[run], tmp_path)
    assert [losses(read_metrics(tmp_path / "runs" / of.id)) for of in pack.runs] == whole
    todo = {120: [(language.loss(), pack.runs), (language.anisotropy(), pack.runs)]}
    with Store(tmp_path / "checkpoints" / pack.id) as store:
        ((_, rows),) = measured(pack, store, corpora[run], todo)
    for of in pack.runs:
        _, params = load_run(tmp_path, of.id, 120)
        value = rows[rows["series"] == of.id].set_index("metric")["value"]
        expected = loss_alone(of.model, params, corpora[run].heldout_MxT1)
        assert value["heldout_loss"] == pytest.approx(float(expected), rel=1e-5)
        assert value["anisotropy_after_gain.n"] == (corpora[run].heldout_MxT1[:, :-1] != -1).sum()


def test_heads_are_retrained_on_targets(on_pairs, corpora):
    corpus, params = corpora[on_pairs], model.init(on_pairs.model, jax.random.key(0))
    c = Checkpoint(on_pairs.model, params, 16, NO_TEXT, on_pairs, corpus=corpus)
    h_NxD, targets_N = frozen._states(c, corpus.train[0][:3], True)
    rows = alone(corpus.train[0][:3].astype(np.int32))
    assert sorted(targets_N.tolist()) == sorted(rows[:, 1:][rows[:, 1:] >= 0].tolist())
    own_BxTxD, _ = model.hidden(on_pairs.model, params, np.where(rows < 0, ~rows, rows)[:, :-1])
    expected = np.asarray(own_BxTxD)[rows[:, 1:] >= 0]
    near = np.abs(np.asarray(h_NxD)[:, None] - expected[None]).max(axis=2) < 1e-5
    assert near.any(axis=1).all() and near.any(axis=0).all()


def test_a_task_of_texts_gets_no_pairs(on_pairs, corpora):
    with pytest.raises(InputError, match="run.task = 'own' reads texts, and .*pairs.tsv has pairs: give texts"):
        train_run(override(on_pairs, {"task": "own"}), corpora[on_pairs], task=own_samples(0.5))


def test_a_corpus_of_texts_is_no_other_program(tiny_run, tiny_corpus):
    """Texts train to the same bits whether pairs could have come or not."""
    assert not tiny_corpus.marked
    params, _ = train_run(override(tiny_run, {"train.steps": 5}), tiny_corpus)
    marked, _ = train_run(override(tiny_run, {"train.steps": 5}), dataclasses.replace(tiny_corpus, marked=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), params, marked)
