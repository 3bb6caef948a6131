"""What is pending is done, once: stopped, killed, grown and split over shares."""

import json
import os
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest

from jaxsat.config import InputError, Layout, Preempted
from jaxsat.directory import Directory, summary
from jaxsat.measure import Checkpoint, table
from jaxsat.results import NotMeasured
from jaxsat.study import Study
from tests.studies import COMPUTED, EXPERIMENT, OWN, by_hand, files, ignore, trained_and_measured

pytestmark = pytest.mark.usefixtures("home")


def test_progress_goes_through_the_stages_and_never_back(studied):
    assert list(dict.fromkeys(stage for stage, _, _ in studied)) == ["corpus", "train", "measure"]
    for stage in ("corpus", "train", "measure"):
        fractions = [fraction for name, fraction, _ in studied if name == stage]
        assert fractions == sorted(fractions) and 0 <= fractions[0] <= fractions[-1] <= 1
    assert any("5 runs in 1 packs" in what for _, _, what in studied)


def test_a_second_time_nothing_is_done_again(out):
    before = files(out)
    study = Study("mine.py", "laptop")
    study.train(ignore)
    study.measure(ignore)
    assert study.report() == study.out / "report" / "index.html"
    assert files(out) == before


def test_nothing_is_written_before_training_can_begin(home, user_file, tmp_path):
    for text, problem in {
        EXPERIMENT.replace("words.txt", "nowhere.txt"): "cannot read the corpus nowhere.txt",
        EXPERIMENT.replace("batch_size=4", "batch_size=4000"): "fewer than train.batch_size = 4000",
        EXPERIMENT.replace("context=16", "context=9999"): "model.context \\+ 1 = 10000",
    }.items():
        with pytest.raises(InputError, match=problem):
            Study(user_file(text), "laptop", tmp_path / "out").train(ignore)
    for stage in ("measure", "report"):
        with pytest.raises(InputError, match="jaxsat reproduce mine.py"):
            getattr(Study("mine.py", "laptop", tmp_path / "out"), stage)(*([ignore] if stage == "measure" else []))
    assert not (tmp_path / "out").exists()


def test_a_layout_that_does_not_divide_is_named_before_anything_is_written(home, tmp_path):
    with pytest.raises(InputError, match="layout.model = 3 does not divide the 1 attention heads: try 1"):
        Study("mine.py", "laptop", tmp_path / "out", Layout(model=3)).train(ignore)
    assert not (tmp_path / "out").exists()


def test_killed_between_stages_it_goes_on(copy):
    shutil.rmtree(copy / "report")
    path = copy / "measurements" / "mine-laptop-1-of-1.parquet"
    measured = pd.read_parquet(path)
    by_hand(path, measured[measured["step"] < 10].to_parquet())
    begun = Study("mine.py", "laptop", copy)
    begun.measure(ignore)
    pd.testing.assert_frame_equal(table.read(copy / "measurements"), table.newest(measured))
    path.unlink()
    with pytest.raises(InputError, match="no measurements of mine yet: jaxsat reproduce mine.py .*--out"):
        begun.report()
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(InputError, match="no checkpoints of run .*: jaxsat reproduce mine.py"):
        begun.measure(ignore)


def test_ctrl_c_saves_first_and_the_rest_is_the_same(out, tmp_path):
    def interrupt(stage: str, fraction: float, what: str) -> None:
        if "step 10/" in what:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped at step 10"):
        Study("mine.py", "laptop", tmp_path).train(interrupt)
    assert summary(tmp_path)["step"].tolist()[:4] == 4 * ["10/20"]
    assert set(summary(tmp_path)["state"]) == {"training", "diverged"}
    Study("mine.py", "laptop", tmp_path).train(ignore)
    pd.testing.assert_frame_equal(summary(tmp_path), summary(out))


BRANCH = """

trained = sweeps


def sweeps(scale):
    trunk = trained(scale)[0].runs[0]
    branch = trunk.branch(10, {"train.schedule": "linear"}, kept=("optimizer", "schedule", "data"))
    return [Sweep("again", branch, [branch.branch(20, {"train.steps": 2}), branch]), *trained(scale)]
"""


def test_branches_of_a_finished_run(copy, user_file):
    """Two generations, the younger first in the list; the trunk is not trained again."""
    own = user_file(EXPERIMENT + BRANCH)
    before = files(copy / "checkpoints")
    assert Study(own, "laptop", copy).pending()[0] == "train 2 runs in 2 packs (1, 1) of 1 shapes"
    trained_and_measured(Study(own, "laptop", copy))
    results = Study(own, "laptop", copy).results()
    assert {name: time for name, time in files(copy / "checkpoints").items() if name in before} == before
    loss = results.rows("heldout_loss").set_index(["series", "step"])["value"]
    trunk, grandchild, child = (results.parts[name][i] for name, i in (("main", 0), ("again", 0), ("again", 1)))
    assert loss[child].index.tolist() == [10, 20] and loss[grandchild].index.tolist() == [0, 1, 2]
    assert loss[child][10] == loss[trunk][10] and loss[grandchild][0] == loss[child][20] != loss[trunk][20]


def test_starts_that_cannot_be(copy, user_file):
    for old, new, problem in (
        ("trunk.branch(10", "trunk.branch(11", "starts from step 11 of run .*, which has steps 0, 1, 2, 4, 8, 10, 20"),
        ("trunk = ", "import dataclasses; trunk = dataclasses.replace(trained(scale)[0].base, seed=77) or ",
         "starts from run .*, which is neither asked for nor in"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=problem):
            Study(user_file(EXPERIMENT + BRANCH.replace(old, new)), "laptop", copy)


def test_measuring_is_stopped_like_training(copy, user_file, monkeypatch):
    """SIGTERM in the middle: what is measured is kept, and the rest is made by the same command."""
    seen = type("Seen", (), {})()  # of the function its identity knows the type of this only
    seen.jobs = []

    def slow(c: Checkpoint) -> dict[str, float]:
        seen.jobs.append((c.run.id, c.step))
        if len(seen.jobs) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"slow": 1.0}

    text = (
        EXPERIMENT
        + "\nfrom jaxsat.measure import Measure\nimport slow\n"
        + ("\ndef measures(scale): return [Measure('slow', slow.measure)]\n")
    )
    module = type(os)("slow")
    module.measure = slow
    monkeypatch.setitem(__import__("sys").modules, "slow", module)
    mine = user_file(text)
    with pytest.raises(Preempted, match="the same command continues"):
        Study(mine, "laptop", copy).measure(ignore)
    n = len(seen.jobs)
    kept = table.read(copy / "measurements")
    assert n < 28 and kept["measure"].str.startswith("slow@").sum() == n
    Study(mine, "laptop", copy).measure(ignore)
    made = table.read(copy / "measurements")["measure"].str.startswith("slow@").sum()
    assert len(seen.jobs) == len(set(seen.jobs)) == made


def test_what_is_measured_to_its_end_needs_no_checkpoints(out, tmp_path, user_file):
    cold = user_file(EXPERIMENT.replace("1e30", "1e-3"))
    Study(cold, "laptop", tmp_path / "out").train(ignore)
    Study(cold, "laptop", tmp_path / "out").measure(ignore)
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    before = files(tmp_path)
    study = Study(cold, "laptop", tmp_path / "out")
    study.train(ignore)
    study.measure(ignore)
    unchanged = files(tmp_path)
    del before["out/sweep.json"], unchanged["out/sweep.json"]
    assert unchanged == before and set(study.results().runs["state"]) == {"done"}


def test_checkpoints_that_are_gone_are_said_and_do_not_stop_the_rest(copy, user_file):
    shutil.rmtree(next((copy / "checkpoints").glob("*/10")))
    more = "\nfrom jaxsat import measure\nfrom jaxsat.measure import Measure\ndef measures(scale):\n"
    own = user_file(EXPERIMENT + more + "    return [*measure.standard(), Measure('one', lambda c: {'one': 1.0})]")
    study = Study(own, "laptop", copy)
    trained_and_measured(study)
    assert sorted(set(study.results().rows("one")["step"])) == [0, 1, 2, 4, 8, 20]
    assert "1 checkpoints that were to be measured are gone" in study.notices()


def cut_log(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    by_hand(path, "".join(path.read_text().splitlines(keepends=True)[:3]))


@pytest.mark.parametrize("which", [0, 4], ids=["done", "diverged"])
@pytest.mark.parametrize("what", ["runs", "log", "runs and measurements", "runs and checkpoints"])
def test_a_log_that_is_gone_leaves_nothing_pending(copy, which, what):
    id = list(Study("mine.py", "laptop", copy).experiment.runs)[which]
    before = table.read(copy / "measurements")
    if what == "log":
        cut_log(copy / "runs" / id)
    else:
        shutil.rmtree(copy / "runs" / id)
    if "measurements" in what:
        shutil.rmtree(copy / "measurements")
    if "checkpoints" in what:
        shutil.rmtree(copy / "checkpoints")
    assert "1 of 5 runs are not at their end yet" in "".join(Study("mine.py", "laptop", copy).notices())
    trained_and_measured(Study("mine.py", "laptop", copy))
    after, study = files(copy), Study("mine.py", "laptop", copy)
    trained_and_measured(study)
    assert files(copy) == after and study.pending()[0].startswith("train nothing")
    said = "".join(study.notices())
    assert "not at their end" not in said and "not measured" not in said
    assert (f"run {id} has lost the losses of its training" in said) == (which == 0 and what != "log")
    assert set(study.results().runs["state"]) == {"done", "diverged"}
    found = table.read(copy / "measurements")
    others = [rows[rows["series"] != id].reset_index(drop=True) for rows in (found, before)]
    pd.testing.assert_frame_equal(*others)


def test_one_seed_more_trains_that_seed_alone(copy, user_file):
    before = files(copy)
    more = user_file(EXPERIMENT.replace("[0, 1]", "[0, 1, 2]"))
    study = Study(more, "laptop", copy)
    said = study.pending()
    assert said[0].startswith("train 2 runs in 1 packs") and "measure loss (version 2) of 14 checkpoints" in said
    assert files(copy) == before, "saying what is pending does nothing"
    trained_and_measured(study)
    after = files(copy)
    old = {name: t for name, t in before.items() if name.startswith(("runs/", "checkpoints/"))}
    assert {name: after[name] for name in old} == old
    runs = Study(more, "laptop", copy).results().runs
    assert len(runs) == 7 and runs["seed"].tolist().count(2) == 2
    (added,) = {p.id for p in Directory.open(copy).packs} - {
        name.split("/")[1] for name in old if "checkpoints" in name
    }
    assert {run.seed for p in Directory.open(copy).packs if p.id == added for run in p.runs} == {2}


def test_a_measure_that_is_added_is_made_for_all_and_nothing_else_is(copy, user_file):
    before = table.read(copy / "measurements")
    checkpoints = files(copy / "checkpoints")
    own = "from __future__ import annotations\n" + EXPERIMENT + OWN
    study = Study(user_file(own), "laptop", copy)
    assert "measure norm (version 1) of 4 checkpoints" in study.pending()
    assert "compute squares (version 1)" in study.pending()
    assert "claim huge cannot be tested at this scale: a larger machine" in study.pending()
    trained_and_measured(study)
    assert files(copy / "checkpoints") == checkpoints, "the same runs are not trained again"
    after = table.read(copy / "measurements")
    made = after.merge(before, how="left", indicator=True)
    new = made.loc[made["_merge"] == "left_only", "measure"].str.partition("@")
    assert set(new[0]) == {"norm", "best_norm", "squares"} and set(new[2].str.len()) == {8}
    best = study.results().rows("best", part="main")
    least = study.results().rows("heldout_loss", part="main").sort_values("value").groupby("series")["step"].first()
    assert best.set_index("series")["step"].to_dict() == least.to_dict() and (best["step"] == best["value"]).all()

    page = study.report()
    assert "My section" in page.read_text()
    mine, huge = json.loads((page.parent / "claims.json").read_text())
    assert (mine["verdict"], mine["estimate"]["n"]) == ("reproduced", 4)
    assert (huge["verdict"], huge["needs"], huge["estimate"]) == (
        "not testable at this scale",
        "a larger machine",
        None,
    )
    assert json.loads((page.parent / "laws.json").read_text())["mine"]["rows"] == 4


def test_a_measure_that_is_edited_is_made_again_and_said(copy, user_file, tmp_path):
    own = EXPERIMENT + OWN
    trained_and_measured(Study(user_file(own), "laptop", copy))
    before = table.read(copy / "measurements")
    of = lambda name, rows: rows[rows["measure"].str.startswith(f"{name}@")]
    edited = own.replace('"head_norm": np.linalg.norm(', '"head_norm": 2 * np.linalg.norm(')
    study = Study(user_file(edited), "laptop", copy)
    assert "measure norm (version 1) of 4 checkpoints" in study.pending()
    assert "the numbers of measure 'norm' are of other code than it has now: jaxsat reproduce" in "".join(
        study.notices()
    )
    with pytest.raises(NotMeasured, match="head_norm"):
        study.results().rows("head_norm")
    study.measure(ignore)
    assert not [said for said in study.notices() if "other code" in said]
    after = study.results().rows("head_norm").set_index("series")["value"]
    old = of("norm", before).set_index("series")["value"]
    assert after.to_dict() == pytest.approx((2 * old).to_dict())
    raised = own.replace('at="last")', 'at="last", version=2)')
    Study(user_file(raised), "laptop", copy).measure(ignore)
    found = table.read(copy / "measurements")
    assert of("norm", found).groupby("measure")["version"].unique().map(list).tolist() in ([[2], [1]], [[1], [2]])
    pd.testing.assert_frame_equal(
        *(t[~t["measure"].str.startswith("norm@")].reset_index(drop=True) for t in (found, before))
    )


def test_a_file_that_is_renamed_or_moved_makes_nothing_again(copy, user_file, tmp_path):
    trained_and_measured(Study(user_file(EXPERIMENT + OWN), "laptop", copy))
    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "renamed.py", tmp_path / "elsewhere" / "mine.py"):
        path.write_text(EXPERIMENT + OWN)
        study, before = Study(str(path), "laptop", copy), table.read(copy / "measurements")
        assert not [said for said in study.pending() if said.startswith("compute")] and study.pending()[0].startswith(
            "train nothing"
        )
        study.measure(ignore)
        pd.testing.assert_frame_equal(table.read(copy / "measurements"), before)
        assert len(study.results().rows("head_norm")) == 4


def test_shares_split_all_of_the_work(home, user_file, tmp_path):
    second = "def computed(scale):\n    return [Computed('cubes', lambda: {'cube': 8.0}), "
    own = user_file(EXPERIMENT + OWN.replace("def computed(scale):\n    return [", second))
    for i in (1, 2):
        trained_and_measured(Study(own, "laptop", tmp_path / "out", share=(i, 2)))
        if i == 1:
            assert not [said for said in Study(own, "laptop", tmp_path / "out").notices() if "gone" in said]
    whole = Study(own, "laptop", tmp_path / "out")
    assert whole.pending()[0].startswith("train nothing") and not [p for p in whole.pending() if "compute" in p]
    assert not [p for p in whole.pending() if p.startswith("measure") and " 0 " not in p and "best" not in p]
    assert {p.name for p in (tmp_path / "out" / "measurements").glob("*.parquet")} == {
        f"mine-laptop-{i}-of-2.parquet" for i in (1, 2)
    }
    assert "square" in set(whole.results().measurements["metric"])


def test_a_lowered_version_is_refused(copy, user_file):
    text = COMPUTED.replace('"squares", of', '"squares", of, version=2')
    Study(user_file(text), "laptop", copy).measure(ignore)
    with pytest.raises(InputError, match="measure 'squares' has version 1, and .* holds version 2: raise it to 2"):
        Study(user_file(COMPUTED), "laptop", copy).measure(ignore)


def test_computed_of_two_experiments_may_have_one_name(tmp_path):
    """Also where their files have one name."""
    for name, value in (("one.py", "1.0"), ("two.py", "2.0"), ("deep/one.py", "3.0")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(COMPUTED.replace("[1.0, 4.0]", f"[{value}, {value}]"))
    for name, value in (("one.py", 1.0), ("two.py", 2.0), ("deep/one.py", 3.0), ("one.py", 1.0)):
        study = Study(str(tmp_path / name), "laptop", tmp_path / "out")
        trained_and_measured(study)
        assert study.results().rows("square")["value"].tolist() == [value, value]


def test_what_is_no_number_is_said(copy, user_file):
    nan = "\nfrom jaxsat.measure import Measure\ndef measures(scale):\n"
    nan += "    return [Measure('odd', lambda c: {'odd': float('nan') if c.run.seed else 1.0}, at='last')]"
    study = Study(user_file(EXPERIMENT + nan), "laptop", copy)
    trained_and_measured(study)
    assert "odd is not a number 2 times, which are left out" in study.notices()
    assert len(study.results().last("odd")) == 2
