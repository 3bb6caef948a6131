"""One tiny study through all its stages, as separate commands would; then the same directory in other hands."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxsat import parallel
from jaxsat.config import InputError, Layout, Preempted, Run, from_dict
from jaxsat.directory import Directory, RunState, run_state, summary
from jaxsat.measure import Checkpoint, table
from jaxsat.study import Study

EXPERIMENT = (Path(__file__).parent / "mine.py").read_text()
OWN = """
import dataclasses
import numpy as np
import pandas as pd
from jaxsat import measure
from jaxsat.claims import Claim, above
from jaxsat.claims.estimates import mean_over
from jaxsat.claims.papers import GODEY
from jaxsat.laws import Law, power_law
from jaxsat.measure import Computed, Measure
from jaxsat.report import Section


@dataclasses.dataclass
class Point:
    mean: "float"


def norm(c):
    return {"head_norm": np.linalg.norm(c.params["head"]["a"] @ c.params["head"]["b"])}


def measures(scale):
    return [*measure.standard(), Measure("norm", norm, at="last"), Measure("best_norm", lambda c: {"best": c.step},
    at="best")]


def computed(scale):
    return [Computed("squares", lambda: pd.DataFrame({"metric": "square", "index": [1, 2], "value": [1.0, 4.0]}))]


def points(r):
    return r.last("heldout_loss", part="main").rename(columns={"rank": "x", "value": "loss"})


def estimate(r):
    return mean_over(r.last("head_norm", part="main")["value"], "", "norm of the head")


LAWS = {"mine": Law(points, power_law)}
SECTIONS = [Section("My section")]
CLAIMS = [
    Claim("mine", "The head has a norm above 0.", GODEY, "", "derived", estimate, above(0)),
    Claim("huge", "Heads are huge.", GODEY, "", "derived", estimate, above(0), lambda r: "a larger machine"),
]
"""


def ignore(stage: str, fraction: float, what: str) -> None:
    pass


def files(folder: Path) -> dict[str, int]:
    """When each file was last written, in nanoseconds."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory, with a corpus and the user's experiment in it."""
    path = tmp_path_factory.mktemp("home")
    words = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
    lines = [" ".join(np.random.default_rng(i).choice(words, 30)) for i in range(200)]
    (path / "words.txt").write_text("\n".join(lines))
    (path / "mine.py").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSAT_CACHE", str(path / "cache"))
        patch.chdir(path)
        yield path


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, float, str]]:
    """What the stages told about their progress."""
    return []


@pytest.fixture(scope="module")
def out(home: Path, calls: list) -> Path:
    """A study trained, measured and reported by a process a stage."""
    tell = lambda *call: calls.append(call)
    Study("mine.py", "laptop").train(tell)
    Study("mine.py", "laptop").measure(tell)
    Study("mine.py", "laptop").report()
    return home / "runs" / "mine"


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "copy"))


@pytest.fixture
def user_file(home: Path, tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        return str(tmp_path / "mine.py")

    return write


def test_every_file_is_where_the_design_says(out):
    study = Study("mine.py", "laptop")
    found = {name for name in files(out) if not name.startswith("checkpoints/")}
    for id in study.experiment.runs:
        assert {f"runs/{id}/{name}" for name in ("config.json", "env.json", "metrics.jsonl")} <= found
    assert {"sweep.json", "measurements/mine-laptop-1-of-1.parquet", "report/index.html", "report/claims.json"} <= found
    for folder in ("report", "reports/mine-laptop"):
        assert {p.name for p in (out / folder).iterdir()} == {"index.html", "claims.json", "figures", "tables"}
    assert {p.name for p in (out / "checkpoints").iterdir()} == {pack.id for pack in study.packs}
    for pack in study.packs:
        steps = {int(p.name) for p in (out / "checkpoints" / pack.id).iterdir() if p.name.isdigit()}
        assert steps == {0, 1, 2, 4, 8, 10, 20}
    assert not [name for name in files(out) if name.endswith((".tmp", ".part"))]


def test_sweep_json_says_what_was_resolved(out):
    study, document = Study("mine.py", "laptop"), json.loads((out / "sweep.json").read_text())
    assert {id: from_dict(Run, run) for id, run in document["runs"].items()} == study.experiment.runs
    assert sorted(id for pack in document["packs"] for id in pack) == sorted(study.experiment.runs)
    assert {name: len(ids) for name, ids in document["experiments"]["mine-laptop"]["parts"].items()} == {
        "main": 4, "hot": 1,
    }  # fmt: skip
    assert document["settings"] == parallel.number_settings()
    (text,) = document["texts"].values()
    assert text["corpus"] == ["words.txt"] and len(text["content_hash"]) == len(text["tokenizer_hash"]) == 64


def test_results_are_what_was_measured(out):
    results = Study("mine.py", "laptop").results()
    runs, m = results.runs, results.measurements
    assert list(m.columns) == list(table.COLUMNS) and set(m["series"]) == set(runs.index)
    assert set(m["metric"]) == {
        "heldout_loss", "document_loss", "singular_value", "singular_entropy", "effective_rank", "largest_share",
        "condition_number", "anisotropy", "anisotropy_before_gain", "anisotropy_after_gain",
    }  # fmt: skip
    assert set(runs.columns) > {"model.head_rank", "train.weight_decay", "seed", "params.total", "params.head", "part"}
    assert (runs["tokens"] == 20 * 4 * 16).all() and (runs["params.nonembedding"] < runs["params.total"]).all()
    assert runs["state"].tolist() == 4 * ["done"] + ["diverged"] and np.isfinite(m["value"]).all()
    done = results.rows("heldout_loss", part="main").pivot(index="step", columns="series", values="value")
    assert done.shape == (7, 4) and done.loc[0].between(4.5, 6).all() and (done.loc[20] < done.loc[0]).all()
    documents = results.rows("document_loss", part="main").groupby(["series", "step"])["value"].mean()
    tokens = results.rows("heldout_loss", part="main").set_index(["series", "step"])["value"]
    np.testing.assert_allclose(documents, tokens.loc[documents.index], rtol=0.05)


def test_progress_goes_through_the_stages_and_never_back(out, calls):
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == ["corpus", "train", "measure"]
    for stage in ("corpus", "train", "measure"):
        fractions = [fraction for name, fraction, _ in calls if name == stage]
        assert fractions == sorted(fractions) and 0 <= fractions[0] <= fractions[-1] <= 1
    assert any("5 runs in 1 packs" in what for _, _, what in calls)


def test_a_second_time_nothing_is_done_again(out):
    before = files(out)
    study = Study("mine.py", "laptop")
    study.train(ignore)
    study.measure(ignore)
    assert study.report() == study.out / "report" / "index.html"
    assert files(out) == before


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
    pd.read_parquet(path)[:-n].to_parquet(path)


def test_killed_between_stages_it_goes_on(copy):
    shutil.rmtree(copy / "report")
    path = copy / "measurements" / "mine-laptop-1-of-1.parquet"
    measured = pd.read_parquet(path)
    measured[measured["step"] < 10].to_parquet(path)
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


def test_show_tells_the_runs_apart_and_no_more(out):
    table = summary(out)
    assert list(table.columns) == ["run", "part", "head rank", "seed", "step", "loss", "state"]
    assert table["step"].tolist()[:4] == 4 * ["20/20"] and table["state"].tolist() == 4 * ["done"] + ["diverged"]
    assert table["head rank"].tolist()[:4] == [2, 2, 8, 8] and table["loss"][:4].between(3, 6).all()
    with pytest.raises(InputError, match="holds no sweep.json"):
        summary(out / "runs")


def test_a_run_waits_trains_and_is_done(tmp_path):
    assert run_state(tmp_path, "a", 100).name == "waiting"
    lines = [{"step": step, "tokens": step, "loss": 6 - step / 100} for step in range(1, 51)]
    lines.append({"step": 50, "tokens_per_second": 5})
    (tmp_path / "runs" / "a").mkdir(parents=True)
    log = tmp_path / "runs" / "a" / "metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_state(tmp_path, "a", 100) == RunState("training", 50, 5.5)
    assert run_state(tmp_path, "a", 50).name == "done"
    log.write_text(log.read_text() + json.dumps({"step": 51, "diverged": True}) + "\n")
    assert run_state(tmp_path, "a", 100) == RunState("diverged", 51, 5.5)


# Directories that are not this study's.


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


def test_what_is_no_study_is_left_alone(copy):
    before = files(copy)
    for text, problem in {
        json.dumps({"method": "random"}): "is not a jaxsat sweep .no 'format'",
        json.dumps({"format": 1}): "is of format 1, not 2",
        "{": "is not a jaxsat sweep",
    }.items():
        (copy / "sweep.json").write_text(text)
        with pytest.raises(InputError, match=f"{problem}.*choose another --out"):
            Study("mine.py", "laptop", copy)
    (copy / "sweep.json").unlink()
    with pytest.raises(InputError, match="is not empty and holds no sweep.json"):
        Study("mine.py", "laptop", copy)
    del before["sweep.json"]
    assert files(copy) == before


def test_what_a_kill_leaves_is_no_other_sweep(tmp_path):
    (tmp_path / ".sweep.json.tmp").write_text("{")
    Study("mine.py", "laptop", tmp_path)


def test_a_file_is_no_directory(home):
    with pytest.raises(InputError, match="words.txt is a file"):
        Study("mine.py", "laptop", "words.txt")


# Growth: more seeds, other experiments, more measures.


def trained_and_measured(study: Study) -> None:
    study.train(ignore)
    study.measure(ignore)


def test_one_seed_more_trains_that_seed_alone(copy, user_file):
    before = files(copy)
    more = user_file(EXPERIMENT.replace("[0, 1]", "[0, 1, 2]"))
    study = Study(more, "laptop", copy)
    said = study.pending()
    assert said[0].startswith("train 2 runs in 1 packs") and "measure loss (version 1) of 14 checkpoints" in said
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


def test_another_experiment_shares_the_directory(copy, tmp_path):
    """The runs decide, not the file's name: one of the same runs trains nothing."""
    (tmp_path / "renamed.py").write_text(EXPERIMENT)
    study = Study(str(tmp_path / "renamed.py"), "laptop", copy)
    assert study.pending()[0].startswith("train nothing")
    trained_and_measured(study)
    study.report()
    assert {p.name for p in (copy / "reports").iterdir()} == {"mine-laptop", "renamed-laptop"}
    assert list(Directory.open(copy).experiments) == ["mine-laptop", "renamed-laptop"]


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
    assert set(made.loc[made["_merge"] == "left_only", "measure"]) == {"mine/norm", "mine/best_norm", "mine/squares"}
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

    again = table.read(copy / "measurements")
    newer = own.replace(
        'Measure("norm", norm, at="last")', 'Measure("norm", lambda c: {"norm_2": 2.0}, at="last", version=2)'
    )
    Study(user_file(newer), "laptop", copy).measure(ignore)
    found = table.read(copy / "measurements")
    assert set(found.loc[found["measure"] == "mine/norm", "metric"]) == {"norm_2"}
    pd.testing.assert_frame_equal(*(t[t["measure"] != "mine/norm"].reset_index(drop=True) for t in (found, again)))


def test_shares_split_all_of_the_work(home, user_file, tmp_path):
    second = "def computed(scale):\n    return [Computed('cubes', lambda: {'cube': 8.0}), "
    own = user_file(EXPERIMENT + OWN.replace("def computed(scale):\n    return [", second))
    for i in (1, 2):
        trained_and_measured(Study(own, "laptop", tmp_path / "out", share=(i, 2)))
    whole = Study(own, "laptop", tmp_path / "out")
    assert whole.pending()[0].startswith("train nothing") and not [p for p in whole.pending() if "compute" in p]
    assert not [p for p in whole.pending() if p.startswith("measure") and " 0 " not in p and "best" not in p]
    assert {p.name for p in (tmp_path / "out" / "measurements").iterdir()} == {
        f"mine-laptop-{i}-of-2.parquet" for i in (1, 2)
    }
    assert "square" in set(whole.results().measurements["metric"])


def test_measuring_is_stopped_like_training(copy, user_file, monkeypatch):
    """SIGTERM in the middle: what is measured is kept, and the rest is made by the same command."""
    seen = []

    def slow(c: Checkpoint) -> dict[str, float]:
        seen.append((c.run.id, c.step))
        if len(seen) == 3:
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
    n = len(seen)
    kept = table.read(copy / "measurements")
    assert n < 28 and kept["measure"].eq("mine/slow").sum() == n
    Study(mine, "laptop", copy).measure(ignore)
    assert len(seen) == len(set(seen)) and table.read(copy / "measurements")["measure"].eq("mine/slow").sum() == len(
        seen
    )


COMPUTED = """
import pandas as pd
from jaxsat.measure import Computed, Measure


def computed(scale):
    of = lambda: pd.DataFrame({"metric": "square", "index": [1, 2], "value": [1.0, 4.0]})
    return {"laptop": [Computed("squares", of)]}[scale]
"""


def test_an_experiment_of_one_scale_has_a_report(user_file, tmp_path):
    study = Study(user_file(COMPUTED), "laptop", tmp_path / "out")
    trained_and_measured(study)
    assert "Computed at the scale" in study.report().read_text()


def test_two_measures_of_one_number_are_refused(copy, user_file):
    again = "\nfrom jaxsat import measure\nfrom jaxsat.measure import Measure\ndef measures(scale):\n    return "
    again += "[measure.loss(), Measure('mine', lambda c: {'heldout_loss': 1.0}, at='last')]"
    study = Study(user_file(EXPERIMENT + again), "laptop", copy)
    trained_and_measured(study)
    with pytest.raises(InputError, match="loss and mine/mine both measure 'heldout_loss'"):
        study.results()
    assert len(Study("mine.py", "laptop", copy).results().last("heldout_loss", part="main")) == 4, "not asked for there"


def test_what_is_no_number_is_said(copy, user_file):
    nan = "\nfrom jaxsat.measure import Measure\ndef measures(scale):\n"
    nan += "    return [Measure('odd', lambda c: {'odd': float('nan') if c.run.seed else 1.0}, at='last')]"
    study = Study(user_file(EXPERIMENT + nan), "laptop", copy)
    trained_and_measured(study)
    assert "odd is not a number 2 times, which are left out" in study.notices()
    assert len(study.results().last("odd")) == 2


def test_computed_of_two_experiments_may_have_one_name(tmp_path):
    for name, value in (("one.py", "1.0"), ("two.py", "2.0")):
        (tmp_path / name).write_text(COMPUTED.replace("[1.0, 4.0]", f"[{value}, {value}]"))
    for name, value in (("one.py", 1.0), ("two.py", 2.0), ("one.py", 1.0)):
        study = Study(str(tmp_path / name), "laptop", tmp_path / "out")
        trained_and_measured(study)
        assert study.results().rows("square")["value"].tolist() == [value, value]


def test_a_lowered_version_is_refused(copy, user_file):
    text = COMPUTED.replace('"squares", of', '"squares", of, version=2')
    Study(user_file(text), "laptop", copy).measure(ignore)
    with pytest.raises(InputError, match="measure 'squares' has version 1, and .* holds version 2: raise it to 2"):
        Study(user_file(COMPUTED), "laptop", copy).measure(ignore)


def test_checkpoints_that_are_gone_are_said_and_do_not_stop_the_rest(copy, user_file):
    shutil.rmtree(next((copy / "checkpoints").glob("*/10")))
    more = "\nfrom jaxsat import measure\nfrom jaxsat.measure import Measure\ndef measures(scale):\n"
    own = user_file(EXPERIMENT + more + "    return [*measure.standard(), Measure('one', lambda c: {'one': 1.0})]")
    study = Study(own, "laptop", copy)
    trained_and_measured(study)
    assert sorted(set(study.results().rows("one")["step"])) == [0, 1, 2, 4, 8, 20]
    assert "1 checkpoints that were to be measured are gone" in study.notices()


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


def test_a_slip_in_a_claim_is_one_line(copy, user_file):
    slip = OWN.replace('r.last("head_norm", part="main")["value"]', 'r.last("heldout_loss", part="main")["vlaue"]')
    study = Study(user_file(EXPERIMENT + slip), "laptop", copy)
    study.measure(ignore)
    with pytest.raises(InputError, match=r"mine.py, line \d+: KeyError: 'vlaue'"):
        study.report()


# Identity: what numbers depend on.


def test_another_text_is_refused_and_named(copy, home, monkeypatch):
    before = files(copy)
    other = home / "other"
    other.mkdir(exist_ok=True)
    shutil.copy(home / "mine.py", other)
    (other / "words.txt").write_text((home / "words.txt").read_text().replace("sun", "son"))
    monkeypatch.chdir(other)
    study = Study("mine.py", "laptop", copy)
    for stage in (study.train, study.measure):
        with pytest.raises(InputError, match="words.txt is not what .* was trained on: content_hash is .*, was "):
            stage(ignore)
    assert files(copy) == before
    assert "sha256 " + json.loads((copy / "sweep.json").read_text())["texts"].popitem()[1]["content_hash"][:16] in (
        study.report().read_text()
    ), "of what was trained"


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


@pytest.mark.parametrize("setting, value", [("jax_enable_x64", True), ("jax_default_matmul_precision", "float32"),
                                            ("jax_threefry_partitionable", False)])  # fmt: skip
def test_a_setting_that_changes_numbers_is_refused(copy, setting, value):
    import jax

    was = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        with pytest.raises(InputError, match=f"{setting} is .* here, was .* when .* was begun, and changes numbers"):
            Study("mine.py", "laptop", copy)
    finally:
        jax.config.update(setting, was)


def test_another_version_of_jax_is_said_and_not_refused(copy):
    path = next((copy / "runs").glob("*/env.json"))
    launch = json.loads(path.read_text())[0]
    path.write_text(json.dumps([launch, launch | {"packages": launch["packages"] | {"jax": "9.9"}}]))
    study = Study("mine.py", "laptop", copy)
    assert any("different versions of jax: " in said and "9.9" in said for said in study.notices())
    assert "9.9" in study.report().read_text()


def test_what_diverged_is_said(out):
    (said,) = Study("mine.py", "laptop").notices()
    assert "diverged at step" in said


def test_a_layout_that_does_not_divide_is_named_before_anything_is_written(home, tmp_path):
    with pytest.raises(InputError, match="layout.model = 3 does not divide the 1 attention heads: try 1"):
        Study("mine.py", "laptop", tmp_path / "out", Layout(model=3)).train(ignore)
    assert not (tmp_path / "out").exists()
