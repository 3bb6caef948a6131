"""Losses on other text than a run's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsat import measure, model
from jaxsat.checkpoints import Store
from jaxsat.config import InputError, Layout
from jaxsat.corpus import tokenizer as bpe
from jaxsat.corpus.documents import content_id
from jaxsat.measure import Checkpoint, Measure
from jaxsat.measure.measure import heldout
from jaxsat.measure.packs import measured
from jaxsat.study import Study
from tests.studies import ignore, trained_and_measured

TEXTS = ["the sun and the moon", "sea of stones", "a tree, a river", "stars " * 40]


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSAT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "other.txt").write_text("\n\n".join(TEXTS))
    return str(tmp_path / "other.txt")


def found(trained, pack, corpus, measures, layout=Layout()):
    with Store(trained / "checkpoints" / pack.id) as store:
        ((_, rows),) = measured(pack, store, corpus, {60: [(m, pack.runs) for m in measures]}, layout)
    return rows


def test_the_loss_on_another_text_is_that_of_all_its_tokens(text, trained, tiny_pack, tiny_corpus):
    """By the run's tokenizer, an end of text after each document, in rows; on one device and on four."""
    of = measure.loss(corpus=[text])
    other = Measure("rows", lambda c: {"rows": len(c.corpus.heldout_MxT1)}, text=of.text)
    rows = found(trained, tiny_pack, tiny_corpus, [of, other, measure.loss()])
    split = found(trained, tiny_pack, tiny_corpus, [of], Layout(1, 2, 2))
    tokenizer = bpe.load(str(tiny_corpus.tokenizer), 64)
    # Documents in the order of the hashes of their ids, which are hashes of their texts.
    texts = sorted((t.strip() for t in TEXTS), key=lambda text: content_id(content_id(text)))
    tokens = np.concatenate([[*tokenizer.encode(t).ids, bpe.eos_id(tokenizer)] for t in texts])
    n = (len(tokens) - 1) // 16
    rows_MxT1 = np.stack([tokens[16 * i : 16 * i + 17] for i in range(n)])
    document_N = np.cumsum(tokens == bpe.eos_id(tokenizer))[: 16 * n]  # of the target of each token but the last
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        params_K = store.params(60)
    for k, run in enumerate(tiny_pack.runs):
        params = jax.tree.map(lambda x, k=k: x[k], params_K)
        logits_MxTxV = np.float64(model.logits(tiny_pack.model, params, rows_MxT1[:, :-1]))
        log_p_MxTxV = logits_MxTxV - np.log(np.exp(logits_MxTxV).sum(-1, keepdims=True))
        nats_N = -np.take_along_axis(log_p_MxTxV, rows_MxT1[:, 1:, None], -1).ravel()
        mine = rows[rows["series"] == run.id].set_index(["metric", "index"])["value"]
        assert mine["other.loss", 0] == pytest.approx(nats_N.mean(), rel=1e-5)
        bytes_per_token = sum(map(len, texts)) / len(tokens)
        assert mine["other.bits_per_byte", 0] == pytest.approx(nats_N.mean() / np.log(2) / bytes_per_token, rel=1e-5)
        by_document = [nats_N[document_N == i].mean() for i in range(document_N[-1] + 1)]
        np.testing.assert_allclose(mine["other.document_loss"], by_document, rtol=1e-5)
        assert mine["rows", 0] == n and len(tiny_corpus.heldout_MxT1) != n
        assert mine["heldout_loss", 0] != pytest.approx(mine["other.loss", 0], rel=1e-3)
        halves = split[split["series"] == run.id].set_index(["metric", "index"])["value"]
        np.testing.assert_allclose(halves, mine[halves.index], rtol=1e-5)


def test_a_uniform_model_has_the_bits_of_its_vocabulary(tiny_run, tiny_corpus):
    params = jax.tree.map(jnp.zeros_like, model.init(tiny_run.model, jax.random.key(0)))
    c = Checkpoint(tiny_run.model, params, tiny_run.model.rank, heldout(tiny_corpus))
    found = measure.loss().of(c)
    assert found["heldout_loss"] == pytest.approx(np.log(64), rel=1e-6)
    assert found["heldout_bits_per_byte"] == pytest.approx(6 / tiny_corpus.bytes_per_token, rel=1e-6)


def test_a_text_is_known_by_its_content(text, tmp_path):
    first = measure.loss(corpus=[text])
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "other.txt").write_text((tmp_path / "other.txt").read_text())
    assert measure.loss(corpus=[str(tmp_path / "there" / "other.txt")]).key == first.key
    assert first.key.startswith("loss other ") and measure.loss().key == "loss"
    both = measure.loss(corpus=[text, "bible_web"])
    assert both.key.startswith("loss other+bible_web ")
    (tmp_path / "other.txt").write_text("Another.")
    others = {measure.loss(corpus=[text]).key, measure.loss(corpus=[text], tokens=10).key, both.key, first.key}
    assert len(others) == 4


def test_another_text_under_the_same_name_is_measured_anew(home, user_file, tmp_path, text):
    experiment = user_file(
        (home / "mine.py").read_text()
        + f"""
from jaxsat import measure


def measures(scale):
    return [measure.loss(corpus=({text!r},), runs=lambda run: run.seed == 0)]
"""
    )
    study = Study(experiment, "laptop", tmp_path / "out")
    trained_and_measured(study)
    before = study.results().rows("other.loss")
    (tmp_path / "other.txt").write_text("and the sun of the river\n" * 20)
    again = Study(experiment, "laptop", tmp_path / "out")
    assert any(line.startswith("measure loss other ") and "of 0 " not in line for line in again.pending())
    again.measure(ignore)
    after = again.results().rows("other.loss")
    assert list(before["step"]) == list(after["step"]) and (before["value"] != after["value"]).all()


def test_what_is_no_text_is_named(text, tmp_path, tiny_pack, tiny_corpus, trained):
    with pytest.raises(InputError, match="cannot read the corpus .*none.txt: No such file"):
        measure.loss(corpus=[str(tmp_path / "none.txt")])
    with pytest.raises(InputError, match="data.heldout_tokens = 0: must be at least 1"):
        measure.loss(corpus=[text], tokens=0)
    with pytest.raises(InputError, match="the loss on .*other.txt needs a tokenizer, and run .* has no tokenizer.json"):
        found(trained, tiny_pack, None, [measure.loss(corpus=[text])])
    (tmp_path / "other.txt").write_text("short")
    with pytest.raises(InputError, match="a row takes model.context"):
        found(trained, tiny_pack, tiny_corpus, [measure.loss(corpus=[text])])
