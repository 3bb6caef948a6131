"""What lies on disk: a study's files, several experiments, and directories that are others'."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxsat import parallel
from jaxsat.config import InputError, Run, from_dict
from jaxsat.directory import Directory, RunState, run_state, runs_table, summary
from jaxsat.study import Study
from jaxsat.train import read_metrics
from tests.studies import EXPERIMENT, by_hand, files, ignore, trained_and_measured

pytestmark = pytest.mark.usefixtures("home")


def test_every_file_is_where_the_design_says(out):
    study = Study("mine.py", "laptop")
    found = {name for name in files(out) if not name.startswith("checkpoints/")}
    for id in study.experiment.runs:
        assert {f"runs/{id}/{name}" for name in ("config.json", "env.json", "metrics.jsonl")} <= found
    assert {"sweep.json", "measurements/mine-laptop-1-of-1.parquet", "report/index.html", "report/claims.json"} <= found
    for folder in ("report", "reports/mine-laptop"):
        assert {p.name for p in (out / folder).iterdir()} == {".xxh3", "index.html", "claims.json", "figures", "tables"}
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


def test_what_is_no_study_is_left_alone(copy):
    before = files(copy)
    for text, problem in {
        json.dumps({"method": "random"}): "is not a jaxsat sweep .no 'format'",
        json.dumps({"format": 1}): "is not a jaxsat sweep .format = 1: must be 2",
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


def places(value: object, found: tuple = ()) -> Iterator[tuple]:
    """The path to each value of a JSON document, of a list or of things known by their ids the first alone."""
    yield found
    ids = isinstance(value, dict) and all(re.fullmatch("[0-9a-f]{12}", key) for key in value)
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys[:1] if ids or isinstance(value, list) else keys:
            yield from places(value[key], (*found, key))


def changed(value: object, place: tuple, new: object) -> object:
    if not place:
        return new
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[place[0]] = changed(value[place[0]], place[1:], new)
    return copied


def read_all(out: Path) -> None:
    summary(out)
    directory = Directory.open(out)
    directory.know_settings(directory.settings)
    ids = list(directory.runs)
    states, launches = directory.states(ids), directory.launches(ids)
    account = directory.account(ids)
    directory.notices(states, launches, account, "again")
    directory.provenance(ids, launches, account)
    runs_table(directory, {"main": ids}, states)
    for run in directory.runs.values():
        directory.changed_text(run)
        read_metrics(out / "runs" / run.id)


@pytest.mark.parametrize("name", ["sweep.json", "env.json", "metrics.jsonl"])
def test_json_of_any_other_type_at_any_place_is_named_and_no_traceback(copy, name):
    path = copy / name if name == "sweep.json" else sorted(copy.glob(f"runs/*/{name}"))[0]
    text = path.read_text()
    for cut in (1, len(text) // 2, len(text) - 5):
        path.write_text(text[:cut])
        with pytest.raises(InputError, match=f"{re.escape(str(path))} is not (a jaxsat sweep|the log|a list of env)"):
            read_all(copy)
    lines = text.splitlines() if name == "metrics.jsonl" else [text]
    document, refused = json.loads(lines[-1]), set()
    for place in places(document):
        for new in (None, "x", []):
            path.write_text("\n".join([*lines[:-1], json.dumps(changed(document, place, new))]))
            try:
                read_all(copy)
            except InputError as e:
                refused.add(place)
                assert str(path) in str(e) and "\n" not in str(e) and len(str(e)) < 400, (place, new)
    assert len(refused) > {"sweep.json": 60, "env.json": 6, "metrics.jsonl": 1}[name]


def test_a_file_in_the_place_of_a_folder_is_said_at_once(copy):
    for name in ("measurements", "runs", "checkpoints", "reports"):
        (copy / name).rename(copy / "aside")
        (copy / name).write_text("")
        with pytest.raises(InputError, match=f"copy/{name} is a file, where a study has a folder: move it away"):
            Study("mine.py", "laptop", copy)
        (copy / name).unlink()
        (copy / "aside").rename(copy / name)


def test_what_a_kill_leaves_is_no_other_sweep(tmp_path):
    (tmp_path / ".sweep.json.tmp").write_text("{")
    Study("mine.py", "laptop", tmp_path)


def test_a_file_is_no_directory(home):
    with pytest.raises(InputError, match="words.txt is a file"):
        Study("mine.py", "laptop", "words.txt")


def test_another_experiment_shares_the_directory(copy, tmp_path):
    """The runs decide, not the file's name: one of the same runs trains nothing."""
    (tmp_path / "renamed.py").write_text(EXPERIMENT)
    study = Study(str(tmp_path / "renamed.py"), "laptop", copy)
    assert study.pending()[0].startswith("train nothing")
    trained_and_measured(study)
    study.report()
    assert {p.name for p in (copy / "reports").iterdir()} == {"mine-laptop", "renamed-laptop"}
    assert list(Directory.open(copy).experiments) == ["mine-laptop", "renamed-laptop"]


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
    by_hand(path, json.dumps([launch, launch | {"packages": launch["packages"] | {"jax": "9.9"}}]))
    study = Study("mine.py", "laptop", copy)
    assert any("different versions of jax: " in said and "9.9" in said for said in study.notices())
    assert "9.9" in study.report().read_text()


def test_what_diverged_is_said(out):
    (said,) = Study("mine.py", "laptop").notices()
    assert "diverged at step" in said
