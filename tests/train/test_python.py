"""docs/python.md, run as it stands."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsat import model

DOCS = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def names(tiny_run, tmp_path_factory):
    """What the blocks of the page define, run one after another beside a text.txt."""
    folder, found = tmp_path_factory.mktemp("python"), {}
    shutil.copy(tiny_run.data.corpus[0], folder / "text.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("JAXSAT_CACHE", str(folder / "cache"))
        for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL):
            exec(compile(block, str(DOCS), "exec"), found)
            found.setdefault("params_without_directory", found["params"])
    return found


def test_a_run_learns_the_same_with_and_without_a_directory(names):
    losses = names["losses"]
    assert losses == [line["loss"] for line in names["lines"] if "loss" in line] and len(losses) == 100
    assert losses[-1] < losses[0] - 1
    jax.tree.map(np.testing.assert_array_equal, names["params_without_directory"], names["params"])


def test_scores_are_those_of_the_tokens(names):
    assert -names["log_p_MxT"].mean() == pytest.approx(names["losses"][-1], abs=0.5)
    alone = [names["log_probabilities"](names["config"], names["params"], [row])[0] for row in names["rows"]]
    np.testing.assert_allclose(names["sums"], [log_p_T.sum() for log_p_T in alone], rtol=1e-5)
    np.testing.assert_allclose(names["last"][:, 0], [log_p_T[-1] for log_p_T in alone], rtol=1e-5)


def test_a_series_is_what_was_trained(names):
    series, run = names["series"], names["run"]
    assert series.name == run.id and series.steps == run.checkpoint_steps and series.config == run.model
    assert names["curve"][-1] == pytest.approx(-names["log_p_MxT"].mean(), rel=1e-6) and len(names["curve"]) > 3
    log_p_BxTxV = jax.nn.log_softmax(names["logits_BxTxV"])
    first = log_p_BxTxV[0, 0, names["filled"][0, 1]]
    assert float(first) == pytest.approx(names["log_p_NxT"][0, 0], rel=1e-4)
    assert all(low <= value <= high for value, low, high in names["constants"].values())


def test_items_are_scored_as_their_tokens_are(names):
    summary = names["scores"].summary.set_index(["group", "metric"])
    assert summary.loc[("", "accuracy"), "n"] == 4 and summary.loc[("order", "accuracy"), "n"] == 2
    log_p_T = names["log_probabilities"](names["config"], names["params"], [names["encode"]("the sun and the moon")])
    nats = names["scores"].table.query("id == '1' and metric == 'loglikelihood'")["value"].item()
    assert nats == pytest.approx(log_p_T.sum(), rel=1e-5)


def test_the_text_is_what_the_model_finds_most_likely(names):
    config, ids = names["config"], names["tokenizer"].encode("the sun").ids
    logits_of = jax.jit(lambda row_1xT: model.logits(config, names["params"], row_1xT))
    for _ in range(20):  # what fills the row up is seen by no token before it
        row_T = np.resize(np.int32(ids), config.context)
        ids.append(int(logits_of(row_T[None])[0, len(ids) - 1].argmax()))
    assert names["tokenizer"].decode(ids).startswith("the sun" + names["text_after"]) and names["text_after"]
    assert len(names["drawn"]) == 3
