import dataclasses
import functools
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxsat import evaluate, interop, model
from jaxsat.checkpoints import load_run
from jaxsat.config import Imported, InputError, override
from jaxsat.corpus import batch_at
from jaxsat.corpus import tokenizer as bpe
from jaxsat.measure import Checkpoint, frozen, frozen_head_losses, frozen_heads, heads, train_frozen_heads
from jaxsat.measure.measure import NO_TEXT, heldout
from jaxsat.model import neox
from jaxsat.study import Study
from tests.measure.test_heads import RANKS, V, losses64, sample
from tests.studies import ignore


@pytest.fixture(scope="module")
def checkpoint(trained, tiny_run, tiny_corpus) -> Checkpoint:
    """The last of a trained model, of width 8 and with a head of rank 4."""
    _, params = load_run(trained, tiny_run.id, 60)
    return Checkpoint(tiny_run.model, params, 4, heldout(tiny_corpus), tiny_run, 60, 60 * 128, tiny_corpus)


def rows_of(c: Checkpoint, ranks=(2, 64)) -> pd.Series:
    """By metric, layer and index."""
    return frozen_heads(ranks=ranks).of(c).set_index(["metric", "layer", "index"])["value"]


def states(c: Checkpoint, rows_NxT1: np.ndarray) -> tuple[jax.Array, jax.Array]:
    h_BxTxD = jax.jit(lambda rows: model.hidden(c.config, c.params, rows[:, :-1])[0])(rows_NxT1)
    return h_BxTxD.reshape(-1, c.config.width), jnp.asarray(rows_NxT1[:, 1:].reshape(-1))


def test_training_recovers_the_head_that_made_the_data_and_loss_falls_with_rank():
    h, t, w = sample(40_000)
    trained = train_frozen_heads(h[:36_000], t[:36_000], V, RANKS, batch_size=200, epochs=4)
    losses = frozen_head_losses(trained, h[36_000:], t[36_000:])
    truncated = frozen_head_losses(heads.truncated_heads(w, RANKS), h[36_000:], t[36_000:])
    assert np.all(np.diff(losses) < 0)
    assert losses[-1] - truncated[-1] < 0.05  # to the true head, which is the best there is
    assert np.all(losses[:-1] < truncated[:-1] + 0.02)


def test_same_seed_same_heads_and_each_rank_trains_alone():
    h, t, _ = sample(2000)
    train = functools.partial(train_frozen_heads, h, t, V, batch_size=100)
    both, again, other = train((2, 5), seed=3), train((2, 5), seed=3), train((2, 5), seed=4)
    for x, y, z in zip(*map(jax.tree.leaves, (both, again, other)), strict=True):
        np.testing.assert_array_equal(x, y)
        assert np.any(x != z)
    turned, alone = train((5, 2), seed=3), train((5,), seed=3)
    for x, y, z in zip(both[1], turned[0], alone[0], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
        np.testing.assert_allclose(x, z, atol=1e-5)


def test_a_learning_rate_a_rank():
    h, t, _ = sample(2000)
    train = functools.partial(train_frozen_heads, h, t, V, batch_size=100)
    own = train((2, 5), learning_rate=(1e-2, 3e-2))
    for x, y in zip(own[1], train((5,), learning_rate=3e-2)[0], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_fewer_states_than_a_batch_is_an_error():
    h, t, _ = sample(100)
    with pytest.raises(InputError, match="100 hidden states are fewer than one batch of 256"):
        train_frozen_heads(h, t, V, (2,))


def test_the_vocabulary_of_pythia():
    """Tokens of one in a hundred, which every rank learns: their entropy is left."""
    v, d = 50_304, 8
    h = np.random.default_rng(0).standard_normal((8 * 256, d)).astype(np.float32)
    h[:, 0] = 3
    t = np.random.default_rng(1).integers(0, 503, len(h)) * 100
    trained = train_frozen_heads(h, t, v, (1, 4), learning_rate=0.1, epochs=3)
    found = frozen_head_losses(trained, h, t)
    np.testing.assert_allclose(found, losses64(trained, h, t), rtol=1e-5)
    assert (found < 6.8).all() and found.min() > 5  # of log 503 = 6.2 and log 50304 = 10.8


def test_every_number_of_the_measure(checkpoint, tiny_corpus, monkeypatch):
    """11 held-out rows are less than a block; training states of 40 rows, of which 20 tell the rates, 5 judge them."""
    c, t = checkpoint, 16
    monkeypatch.setattr(frozen, "FROZEN_TOKENS", 40 * t)
    found = rows_of(c)
    whole = ("frozen_head_loss", "frozen_head_gain", "frozen_head_learning_rate")
    for metric in whole:
        assert found[metric].index.tolist() == [(-1, 2), (-1, 8)], "what is asked, and the width"
    assert found["frozen_head_truncated_loss"].index.tolist() == [(-1, 2)], "its own head has rank 4"

    h, y = states(c, batch_at(tiny_corpus, c.run.seed, 0, 40))
    heldout_h, heldout_y = states(c, tiny_corpus.heldout_MxT1)
    for r in (2, 8):
        half = {
            rate: train_frozen_heads(h[: 20 * t], y[: 20 * t], 64, [r], learning_rate=rate, seed=0)
            for rate in frozen.RATES
        }
        judged = {rate: losses64(of, h[20 * t : 25 * t], y[20 * t : 25 * t])[0] for rate, of in half.items()}
        rate = found["frozen_head_learning_rate", -1, r]
        assert rate == min(judged, key=judged.get)
        full = train_frozen_heads(h, y, 64, [r], learning_rate=rate, seed=0)
        loss, early = (losses64(of, heldout_h, heldout_y)[0] for of in (full, half[rate]))
        assert found["frozen_head_loss", -1, r] == pytest.approx(loss, rel=1e-5)
        assert found["frozen_head_gain", -1, r] == pytest.approx(early - loss, abs=1e-5)

    u, s, vt = np.linalg.svd(np.float64(c.params["head"]["a"]) @ np.float64(c.params["head"]["b"]))
    cut = losses64([(u[:, :2] * s[:2], vt[:2])], heldout_h, heldout_y)[0]
    assert found["frozen_head_truncated_loss", -1, 2] == pytest.approx(cut, rel=1e-5)

    tokens = found["frozen_head_document_tokens"].droplevel("index")
    assert tokens.tolist() == np.bincount(tiny_corpus.heldout_document_MxT.ravel()).tolist()
    for r in (2, 8):
        nats = found["frozen_head_document_loss"].xs(r, level="index")
        assert nats.index.tolist() == tokens.index.tolist()
        assert nats @ tokens / tokens.sum() == pytest.approx(found["frozen_head_loss", -1, r], rel=1e-6)


def test_a_full_head_comes_near_the_models_own(checkpoint, tiny_corpus):
    """And passes it by .27 nats, as the own has rank 4 and 60 steps, but not the entropy of ten words, of which a text
    tells little more. The own head cut nowhere has the model's own loss."""
    c = checkpoint
    found = rows_of(c, ranks=(4,))
    own = np.mean(np.asarray(evaluate.token_losses(c.config, c.params, jnp.asarray(tiny_corpus.heldout_MxT1))))
    assert found["frozen_head_truncated_loss", -1, 4] == pytest.approx(own, rel=1e-4)
    assert np.log(10) - 0.1 < found["frozen_head_loss", -1, 8] < own


def test_states_on_disk_are_those_in_memory(checkpoint, monkeypatch, tmp_path):
    c = checkpoint
    monkeypatch.setattr(frozen, "FROZEN_TOKENS", 40 * 16)
    monkeypatch.setattr(heads, "FED", 4 * 8 * 8 * 16)  # a block of rows a program
    in_memory = rows_of(c)
    monkeypatch.setattr(frozen, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mapped = frozen._room(3, 2)
    assert isinstance(mapped, np.memmap) and mapped.shape == (3, 2) and not list(tmp_path.iterdir())
    pd.testing.assert_series_equal(rows_of(c), in_memory)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_named(monkeypatch):
    monkeypatch.setattr(frozen, "IN_MEMORY", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(2**29))
    message = r"500000 hidden states of width 1024 take 1.9 GiB, and .* has 0.5: set TMPDIR to a folder with more"
    with pytest.raises(InputError, match=message):
        frozen._room(500_000, 1024)


@pytest.mark.parametrize("head", ["mixture", pytest.param("nonlinear", marks=pytest.mark.slow)])
def test_a_head_that_is_not_linear_has_no_truncation(checkpoint, head, monkeypatch):
    monkeypatch.setattr(frozen, "FROZEN_TOKENS", 40 * 16)
    run = override(checkpoint.run, {"model.head": head})
    params = model.init(run.model, jax.random.key(0))
    found = rows_of(dataclasses.replace(checkpoint, config=run.model, run=run, params=params))
    assert "frozen_head_truncated_loss" not in found and found["frozen_head_loss"].size == 2


def test_a_model_without_a_text_is_named(checkpoint):
    theirs = dataclasses.replace(checkpoint.run, imported=Imported("pythia"))
    c = dataclasses.replace(checkpoint, corpus=None, heldout=NO_TEXT, run=theirs)
    message = "frozen heads are trained on a text, and pythia has none: leave it out by `runs`, or give the import a"
    with pytest.raises(InputError, match=message):
        frozen_heads().of(c)


EXPERIMENT = """
from jaxsat import DataConfig, measure
from jaxsat.series import Import


def imports(scale):
    return [Import("theirs", "SOURCE", data=DataConfig(("words.txt",), heldout_tokens=512))]


def measures(scale):
    return [measure.frozen_heads(ranks=(2, 8))]
"""


@pytest.mark.usefixtures("home")
def test_of_an_import_with_a_text(place: Path, tmp_path: Path):
    config = neox(depth=1, width=16, heads=2, context=32, vocab_size=256)
    tokenizer = bpe.train((place / "words.txt").read_text().splitlines(), config.vocab_size).to_str()
    interop.write(config, model.init(config, jax.random.key(0)), tokenizer, tmp_path / "theirs" / "step0")
    (tmp_path / "theirs.py").write_text(EXPERIMENT.replace("SOURCE", str(tmp_path / "theirs")))
    study = Study(str(tmp_path / "theirs.py"), "laptop", tmp_path / "out")
    study.train(ignore)
    study.measure(ignore)
    found = study.results().rows("frozen_head_loss")
    assert found["index"].tolist() == [2, 8, 16] and (found["value"] < np.log(256)).all()
    cut = study.results().rows("frozen_head_truncated_loss").set_index("index")["value"]
    assert cut.index.tolist() == [2, 8, 16] and cut[16] == pytest.approx(np.log(256), abs=0.5), "untrained"
