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

from jaxsat.config import InputError, Layout, Run, from_dict
from jaxsat.report import Claim
from jaxsat.study import Study, experiments, load_experiment, run_state, summary

EXPERIMENT = (Path(__file__).parent / "mine.py").read_text()
OWN = """
import dataclasses
import pandas as pd
from jaxsat import laws
from jaxsat.measure import table
from jaxsat.report import Claim, Measured, Section, tables


@dataclasses.dataclass
class Point:
    mean: "float"


def measure(study):
    known = set(study.measurements["metric"])
    for run in study.by_id.values():
        if "mean_weight" not in known and study.part[run.id] == "main":
            config, params = study.params(run)
            values = [params["head"]["a"].shape[1], params["head"]["b"].shape[0]]
            yield table.rows(run.id, run.train.steps, 0, "mean_weight", values)


def fits(study):
    last = tables.final_losses(study.measurements, study.runs)
    last = last[last["state"] == "done"]
    return {"mine": laws.fit(laws.power_law, {"x": last["rank"]}, last["loss"], bootstrap=20)}


def report(study, fits):
    value = fits["mine"].constants["alpha"].value
    claim = Claim("mine", "Mine.", "", "derived", Measured(value), "reproduced", "So.")
    return [Section("My section", tables=[])], [claim]
"""
COLUMNS = ["run", "step", "tokens", "layer", "index", "metric", "value"]


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
    assert Study("mine.py", "laptop").reported() is None
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
    for id in study.by_id:
        assert {f"runs/{id}/{name}" for name in ("config.json", "env.json", "metrics.jsonl")} <= found
    assert {"sweep.json", "measurements.parquet", "laws.json", "report/index.html", "report/claims.json"} <= found
    assert {name.split("/")[1] for name in found if name.startswith("report/")} == {
        "index.html", "claims.json", "figures", "tables",
    }  # fmt: skip
    assert {p.name for p in (out / "checkpoints").iterdir()} == {pack.id for pack in study.packs}
    for pack in study.packs:
        steps = {int(p.name) for p in (out / "checkpoints" / pack.id).iterdir() if p.name.isdigit()}
        assert steps == {0, 1, 2, 4, 8, 10, 20}
    assert not [name for name in files(out) if name.endswith((".tmp", ".part"))]


def test_sweep_json_says_what_was_resolved(out):
    study, document = Study("mine.py", "laptop"), json.loads((out / "sweep.json").read_text())
    assert (document["experiment"], document["scale"]) == ("mine", "laptop")
    assert {id: from_dict(Run, run) for id, run in document["runs"].items()} == study.by_id
    assert sorted(id for pack in document["packs"] for id in pack) == sorted(study.by_id)
    assert sorted(document["parts"].values()) == ["hot"] + 4 * ["main"]


def test_the_two_tables_have_the_columns_agreed(out):
    study = Study("mine.py", "laptop")
    runs, m = study.runs, study.measurements
    assert list(m.columns) == COLUMNS and m["run"].isin(runs.index).all()
    assert set(m["metric"]) == {
        "heldout_loss", "singular_value", "singular_entropy", "effective_rank", "largest_share", "condition_number",
        "anisotropy", "anisotropy_before_gain", "anisotropy_after_gain",
    }  # fmt: skip
    assert set(runs.columns) > {"model.head_rank", "train.weight_decay", "seed", "params.total", "params.head", "part"}
    assert (runs["tokens"] == 20 * 4 * 16).all() and (runs["params.nonembedding"] < runs["params.total"]).all()
    assert runs["state"].tolist() == 4 * ["done"] + ["diverged"]
    done = m[m["run"].isin(runs.index[:4]) & m["metric"].eq("heldout_loss")].pivot(index="step", columns="run")
    assert done["value"].shape == (7, 4) and done["value"].loc[0].between(4.5, 6).all()
    assert (done["value"].loc[20] < done["value"].loc[0]).all()


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
    assert study.reported() == study.out / "report" / "index.html"
    assert files(out) == before


def test_a_newer_source_makes_the_report_old(copy, home, user_file):
    same = user_file(EXPERIMENT)
    os.utime(same, (0, 0))
    assert Study(same, "laptop", copy).reported()
    for source in (same, copy / "measurements.parquet", copy / "sweep.json"):
        os.utime(source, (2e9, 2e9))
        assert Study(same, "laptop", copy).reported() is None
        os.utime(source, (0, 0))
    (copy / "report" / "index.html").unlink()
    assert Study(same, "laptop", copy).reported() is None


def test_killed_between_stages_it_goes_on(copy):
    shutil.rmtree(copy / "report")
    measured = pd.read_parquet(copy / "measurements.parquet")
    measured[measured["step"] < 10].to_parquet(copy / "measurements.parquet")
    begun = Study("mine.py", "laptop", copy)
    begun.measure(ignore)
    assert begun.measurements.equals(measured)
    (copy / "measurements.parquet").unlink()
    with pytest.raises(InputError, match="no measurements yet: jaxsat reproduce mine.py .* --out"):
        begun.report()
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(InputError, match="no checkpoints .* train first"):
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
    assert files(tmp_path) == before and set(study.runs["state"]) == {"done"}


def test_one_run_is_read_alone_at_its_own_rank(out):
    study = Study("mine.py", "laptop")
    for run in study.by_id.values():
        config, params = study.params(run, 10)
        assert config == run.model
        assert params["head"]["a"].shape == (8, run.model.rank) and params["head"]["b"].shape == (run.model.rank, 256)


def test_show_tells_the_runs_apart_and_no_more(out):
    table = summary(out)
    assert list(table.columns) == ["run", "part", "head rank", "seed", "step", "loss", "state"]
    assert table["step"].tolist()[:4] == 4 * ["20/20"] and table["state"].tolist() == 4 * ["done"] + ["diverged"]
    assert table["head rank"].tolist()[:4] == [2, 2, 8, 8] and table["loss"][:4].between(3, 6).all()
    with pytest.raises(InputError, match="holds no sweep.json"):
        summary(out / "runs")


def test_a_run_waits_trains_and_is_done(tmp_path):
    assert run_state(tmp_path, "a", 100)[:2] == ("waiting", 0)
    lines = [{"step": step, "tokens": step, "loss": 6 - step / 100} for step in range(1, 51)]
    lines.append({"step": 50, "tokens_per_second": 5})
    (tmp_path / "runs" / "a").mkdir(parents=True)
    log = tmp_path / "runs" / "a" / "metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_state(tmp_path, "a", 100) == ("training", 50, 5.5) and run_state(tmp_path, "a", 50)[0] == "done"
    log.write_text(log.read_text() + json.dumps({"step": 51, "diverged": True}) + "\n")
    assert run_state(tmp_path, "a", 100) == ("diverged", 51, 5.5)


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


def test_another_sweep_is_left_alone(copy, user_file):
    before = files(copy)
    longer = user_file(EXPERIMENT.replace("steps=20", "steps=21"))
    for name, scale in ((longer, "laptop"), ("mine.py", "pod")):
        with pytest.raises(InputError, match="another sweep .mine at scale laptop with 5 runs.* choose another --out"):
            Study(name, scale, copy)
    (copy / "sweep.json").write_text(json.dumps({"method": "random"}))
    with pytest.raises(InputError, match="another sweep"):
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


# Users' files.


@pytest.mark.parametrize(
    "text, problem",
    [
        ("x = 1", "defines no sweeps"),
        ("def sweeps(scale:", r"mine.py, line 1: .*never closed"),
        (EXPERIMENT.replace('"model.head_rank"', '"model.haed_rank"'),
         r"mine.py: sweep 'main', point 0 .*'model.haed_rank'; did you mean 'model.head_rank'"),
        (EXPERIMENT.replace("heads=1", "heads=3"), r"mine.py: .*not divisible by model.heads = 3: try model.heads = 2"),
        (EXPERIMENT.replace("[2, 8]", "[9]"), r"mine.py: .*model.head_rank = 9 is above model.width = 8"),
        (EXPERIMENT.replace("[2, 8]", "[]"), r"mine.py: sweep 'main' has no runs"),
        ("def sweeps(scale): return []", r"mine.py: sweeps\('laptop'\) must return a list of .*Sweep, not \[\]"),
        ("def sweeps(scale): pass", r"must return a list of jaxsat.sweep.Sweep, not None"),
        (EXPERIMENT.replace("return [", "return base and ").replace(", Sweep(", " or (").replace("hot)]", "hot)"),
         r"must return a list of jaxsat.sweep.Sweep, not Sweep"),
        (EXPERIMENT.replace("return [", "return ['main', "), r"must return a list of jaxsat.sweep.Sweep, not \['main'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(user_file, text, problem):
    with pytest.raises(InputError, match=problem) as e:
        Study(user_file(text), "laptop")
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


def test_names_that_do_not_exist():
    assert "saturation" in experiments()
    for name, problem in {"saturatoin": "did you mean 'saturation'", "thesis": "saturation.* ends in .py"}.items():
        with pytest.raises(InputError, match=problem):
            load_experiment(name)
    with pytest.raises(InputError, match="no file thesis.py.*saturation"):
        load_experiment("thesis.py")
    with pytest.raises(InputError, match="unknown scale 'laptpo'; did you mean 'laptop'"):
        Study("mine.py", "laptpo")


def test_a_file_may_measure_fit_and_report_for_itself(copy, user_file):
    steps = files(copy / "checkpoints")
    study = Study(user_file("from __future__ import annotations\n" + EXPERIMENT + OWN), "laptop", copy)
    study.train(ignore)
    study.measure(ignore)
    page = study.report()
    assert files(copy / "checkpoints") == steps, "the same runs are not trained again"
    own = study.measurements.query("metric == 'mean_weight'")
    assert own["value"].tolist() == own["run"].map(study.runs["model.head_rank"]).tolist()
    assert "My section" in page.read_text() and "Loss" not in page.read_text()
    (claim,) = json.loads((page.parent / "claims.json").read_text())
    assert Claim(**claim).id == "mine" and json.loads((copy / "laws.json").read_text())["mine"]["rows"] == 4
    before = study.measurements
    study.measure(ignore)
    assert study.measurements.equals(before)


def test_a_layout_that_does_not_divide_is_named_before_anything_is_written(home, tmp_path):
    with pytest.raises(InputError, match="layout.model = 3 does not divide the 1 attention heads: try 1"):
        Study("mine.py", "laptop", tmp_path / "out", Layout(model=3)).train(ignore)
    assert not (tmp_path / "out").exists()
