"""What a study finds and reports."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxsat.config import InputError
from jaxsat.measure import table
from jaxsat.study import Study
from tests.studies import COMPUTED, EXPERIMENT, OWN, by_hand, files, ignore, trained_and_measured

pytestmark = pytest.mark.usefixtures("home")


def test_results_are_what_was_measured(out):
    results = Study("mine.py", "laptop").results()
    runs, m = results.runs, results.measurements
    assert list(m.columns) == list(table.COLUMNS) and set(m["series"]) == set(runs.index)
    assert set(m["metric"]) == {
        "heldout_loss", "document_loss", "singular_value", "singular_entropy", "effective_rank", "largest_share",
        "condition_number", "anisotropy", "anisotropy_before_gain", "anisotropy_after_gain", "anisotropy.n",
        "anisotropy_before_gain.n", "anisotropy_after_gain.n", "singular_value.n", "heldout_bits_per_byte",
    }  # fmt: skip
    assert set(runs.columns) > {"model.head_rank", "train.weight_decay", "seed", "params.total", "params.head", "part"}
    assert (runs["tokens"] == 20 * 4 * 16).all() and (runs["params.nonembedding"] < runs["params.total"]).all()
    assert runs["state"].tolist() == 4 * ["done"] + ["diverged"] and np.isfinite(m["value"]).all()
    done = results.rows("heldout_loss", part="main").pivot(index="step", columns="series", values="value")
    assert done.shape == (7, 4) and done.loc[0].between(4.5, 6).all() and (done.loc[20] < done.loc[0]).all()
    documents = results.rows("document_loss", part="main").groupby(["series", "step"])["value"].mean()
    tokens = results.rows("heldout_loss", part="main").set_index(["series", "step"])["value"]
    np.testing.assert_allclose(documents, tokens.loc[documents.index], rtol=0.05)


def test_two_measures_of_one_number_are_refused(copy, user_file):
    again = "\nfrom jaxsat import measure\nfrom jaxsat.measure import Measure\ndef measures(scale):\n    return "
    again += "[measure.loss(), Measure('mine', lambda c: {'heldout_loss': 1.0}, at='last')]"
    study = Study(user_file(EXPERIMENT + again), "laptop", copy)
    trained_and_measured(study)
    with pytest.raises(InputError, match="loss and mine both measure 'heldout_loss'"):
        study.results()
    plain = Study("mine.py", "laptop", copy)
    assert len(plain.results().last("heldout_loss", part="main")) == 4, "not asked for there"
    rows = table.read(copy / "measurements")
    rows[rows["metric"] == "heldout_loss"].drop(columns=["measure", "version"]).to_parquet(
        copy / "measurements" / "by_hand.parquet"
    )
    with pytest.raises(
        InputError, match="rows of no measure in .*copy/measurements and loss both measure 'heldout_loss'"
    ):
        plain.results()


def test_what_is_no_longer_asked_for_stays_on_disk_and_out_of_the_report(copy, user_file):
    before = files(copy)
    less = Study(user_file(EXPERIMENT.replace("[0, 1]", "[1]")), "laptop", copy)
    trained_and_measured(less)
    results = less.results()
    assert results.runs["seed"].tolist() == [1, 1, 0] and set(results.measurements["series"]) == set(results.runs.index)
    page = less.report()
    assert page == copy / "reports" / "mine-laptop" / "index.html" or page == copy / "report" / "index.html"
    assert {k: v for k, v in files(copy).items() if not k.startswith("report")} | {"sweep.json": 0} == {
        k: v for k, v in before.items() if not k.startswith(("report", "laws"))
    } | {"sweep.json": 0}


def test_a_report_is_stale_by_what_it_is_made_of_and_not_by_clocks(copy, user_file):
    bare = EXPERIMENT + "\nfrom jaxsat.report import Section\nSECTIONS = [Section('Nothing')]"
    same = user_file(bare)
    Study(same, "laptop", copy).report()
    before = files(copy)
    for path in (same, copy / "measurements" / "mine-laptop-1-of-1.parquet", copy / "sweep.json"):
        os.utime(path, (2e9, 2e9))
    Study(same, "laptop", copy).report()
    touched = {"measurements/mine-laptop-1-of-1.parquet", "sweep.json"}
    assert {k: v for k, v in files(copy).items() if k not in touched} == {
        k: v for k, v in before.items() if k not in touched
    }
    (copy / "report" / "index.html").unlink()
    for newer in (lambda: None, lambda: user_file(bare + "\n# changed"), lambda: drop_rows(copy, 5)):
        newer()
        Study(same, "laptop", copy).report()
        assert files(copy)["report/index.html"] > before["report/index.html"]
        before = files(copy)


def drop_rows(folder: Path, n: int) -> None:
    path = folder / "measurements" / "mine-laptop-1-of-1.parquet"
    by_hand(path, pd.read_parquet(path)[:-n].to_parquet())


def test_a_report_reads_each_file_once(copy, monkeypatch):
    import jaxsat.directory as directory

    read = {"tables": [], "states": []}
    tables, states = table._read, directory.run_state
    monkeypatch.setattr(table, "_read", lambda path: read["tables"].append(str(path)) or tables(path))
    monkeypatch.setattr(directory, "run_state", lambda out, id, n: read["states"].append(id) or states(out, id, n))
    shutil.rmtree(copy / "report")
    study = Study("mine.py", "laptop", copy)
    study.report()
    assert len(read["tables"]) == 1 and len(read["states"]) == len(set(read["states"])) == 5


def test_a_report_needs_no_text(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parent / "mine.py", tmp_path)
    shutil.rmtree(copy / "report")
    study = Study("mine.py", "laptop", copy)
    trained_and_measured(study)
    assert "words.txt" in study.report().read_text()


def test_a_report_of_a_study_that_is_not_ours_goes_elsewhere(copy, tmp_path):
    before = files(copy)
    page = Study("mine.py", "laptop", copy).report(tmp_path / "mine")
    assert page == tmp_path / "mine" / "index.html" and page.exists() and files(copy) == before


def test_an_experiment_of_one_scale_has_a_report(user_file, tmp_path):
    study = Study(user_file(COMPUTED), "laptop", tmp_path / "out")
    trained_and_measured(study)
    assert "Computed at the scale" in study.report().read_text()


def test_a_slip_in_a_claim_is_one_line(copy, user_file):
    slip = OWN.replace('r.last("head_norm", part="main")["value"]', 'r.last("heldout_loss", part="main")["vlaue"]')
    study = Study(user_file(EXPERIMENT + slip), "laptop", copy)
    study.measure(ignore)
    with pytest.raises(InputError, match=r"mine.py, line \d+: KeyError: 'vlaue'"):
        study.report()


def test_a_part_alone_then_the_rest(tmp_path, user_file):
    """The report is of all that the directory has; what is not there says how to get it."""
    claim = "Claim({0!r}, 'x', GODEY, '', 'derived', lambda r: mean_over(r.last('heldout_loss', part={0!r})['value'], "
    claim += "'', 'x'), above(0), of=({0!r},))"
    claims = ", ".join(claim.format(part) for part in ("main", "hot"))
    file = user_file(
        OWN + EXPERIMENT + f"\nOPTIONAL = ['hot', 'squares']\nSECTIONS, LAWS, CLAIMS = [], {{}}, [{claims}]"
    )
    out = tmp_path / "out"
    study = Study(file, "laptop", out, only=["hot"])
    assert any("1 runs in 1 packs" in line for line in study.pending())
    trained_and_measured(study)
    page = study.report().read_text()
    assert set(study.directory.experiments["mine-laptop"]["parts"]) == {"hot"} and "--only main</code>" in page
    assert Study(file, "laptop", out, only=["hot"]).pending() == [
        "train nothing: all runs are at their end",
        *(f"measure {name} (version {v}) of 0 checkpoints" for name, v in
          [("loss", 2), ("head", 2), ("anisotropy", 2), ("norm", 1), ("best_norm", 1)]),
    ]  # fmt: skip
    whole = Study(file, "laptop", out)
    trained_and_measured(whole)
    assert set(whole.results().parts) == {"main", "hot"} and "square" not in set(whole.results().measurements["metric"])
    assert "1 models" not in whole.report().read_text()
    computed = Study(file, "laptop", out, only=["squares"])
    assert not computed.train(ignore)
    computed.measure(ignore)
    assert computed.results().rows("square")["value"].tolist() == [1, 4]
    assert len(computed.results().last("heldout_loss", part="main")) == 4
