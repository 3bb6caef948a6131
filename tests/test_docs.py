"""docs/experiments.md and docs/imports.md, run as they stand."""

import contextlib
import io
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsat.checkpoints import load_run
from jaxsat.cli import main
from jaxsat.study import Study

DOCS = Path(__file__).parents[1] / "docs" / "experiments.md"
IMPORTS = re.findall(r"```python\n(.*?)```", (DOCS.parent / "imports.md").read_text(), re.DOTALL)
DEPTH, MIXED, BUDGETS, LENGTH, SKILLS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.fixture
def home(tmp_path, monkeypatch):
    compiled = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAXSAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    monkeypatch.chdir(tmp_path)
    words = ["sun", "moon", "stars", "sea", "stone", "tree", "river", "and", "the", "of"]
    lines = [" ".join(np.random.default_rng(i).choice(words, 30)) for i in range(200)]
    (tmp_path / "words.txt").write_text("\n".join(lines))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", compiled)


def said(*argv: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert main(list(argv)) == 0
    return stdout.getvalue()


@pytest.mark.slow
def test_a_measure_of_ones_own(home):
    assert DEPTH[DEPTH.index("def embedding") :].strip().count("\n") < 15, "at most 15 lines"
    (home / "depth.py").write_text(DEPTH)
    assert "measure embedding (version 1) of 6 checkpoints" in said("reproduce", "depth.py", "--dry-run")
    page = said("reproduce", "depth.py").splitlines()[-1]
    assert (home / page).exists()
    rows = Study("depth.py", "laptop").results().last("embedding_norm")
    assert sorted(rows["model.depth"]) == [1, 1, 2, 2, 3, 3]
    for row in rows.to_dict("records"):
        _, params = load_run("runs/depth", row["series"], 100)
        assert row["value"] == pytest.approx(np.linalg.norm(params["embedding"], axis=1).mean(), rel=1e-6)


@pytest.mark.slow
def test_pairs_beside_texts(home):
    people = ["ada", "ben", "cleo", "dan", "eve", "fay", "gus", "hal", "ida", "jan", "kit", "leo"]
    pairs = [(f"{a} saw {b} .", f"saw ( {a} , {b} )") for a in people for b in people]
    for name, rows in (("pairs.tsv", pairs[5:]), ("dev.tsv", pairs[:5])):
        (home / name).write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    questions = [json.dumps({"source": source, "target": target}) for source, target in pairs[5:]]
    (home / "questions.jsonl").write_text("\n".join(questions))
    (home / "mixed.py").write_text(MIXED)
    said("reproduce", "mixed.py")
    results = Study("mixed.py", "laptop").results()
    assert sorted(map(len, results.runs["data.weights"])) == [0, 2]
    loss = results.rows("heldout_loss").groupby("step")["value"].agg(["size", "max"])
    assert (loss["size"] == 2).all() and loss["max"][60] < 0.5 * loss["max"][0]
    assert len(results.rows("questions.exact_match")) == 2


@pytest.mark.slow
def test_cooldowns_of_one_trunk(home):
    (home / "budgets.py").write_text(BUDGETS)
    said("reproduce", "budgets.py")
    results = Study("budgets.py", "laptop").results()
    branches = results.rows("heldout_loss", part="budgets").groupby("series")
    trunk = results.rows("heldout_loss", part="trunk").set_index("step")["value"]
    found = {tuple(of["step"]): of.set_index("step")["value"] for _, of in branches}
    assert sorted(found) == [(20, 30), (40, 50), (80, 90)]
    assert all(of[steps[0]] == trunk[steps[0]] != of[steps[1]] for steps, of in found.items())


def test_what_is_no_language_model(home):
    (home / "length.py").write_text(LENGTH)
    said("reproduce", "length.py")
    results = Study("length.py", "laptop").results()
    error = results.rows("error").groupby(["model.width", "step"])["value"].mean()
    assert error[16, 200] < 0.1 * error[16, 0] and error[4, 200] < error[4, 0]
    assert results.runs["params.total"].isna().all() and "nothing" not in said("show", "runs/length")


def test_from_import_to_figure(home):
    make, experiment, tuned = IMPORTS
    exec(make, {})
    (home / "theirs.py").write_text(experiment)
    page = Path(said("reproduce", "theirs.py").splitlines()[-1])
    results = Study("theirs.py", "laptop").results()
    loss = results.rows("heldout_loss")
    assert loss["tokens"].tolist() == [0, 4_096_000] and loss["value"].nunique() == 2
    assert results.rows("pairs.item.accuracy").groupby("step").size().tolist() == [20, 20]
    assert "The right order is the more likely one" in page.read_text()
    rows = json.loads(said("evaluate", "tiny-neox/step1000", "--items", "pairs.jsonl", "--json"))
    accuracy = next(row["value"] for row in rows if row["metric"] == "accuracy")
    assert accuracy == results.last("pairs.accuracy")["value"].iloc[0]
    (home / "tuned.py").write_text(tuned)
    said("reproduce", "tuned.py")
    loss = Study("tuned.py", "laptop").results().rows("heldout_loss")
    started, parent = loss.query("part == 'tuned' and step == 0"), loss.query("series == 'tiny-neox' and step == 1000")
    assert sorted(started["seed"]) == [0, 1, 2]
    np.testing.assert_allclose(started["value"], parent["value"].item(), rtol=1e-6)


def test_an_experiment_without_training(home):
    (home / "skills.py").write_text(SKILLS)
    path, header, row, counts = said("reproduce", "skills.py").splitlines()[-4:]
    assert header.split() == ["claim", "measured", "verdict"] and row.startswith("time_exponent ")
    assert counts == "Nam et al. (2024), arXiv:2404.17563: 1 of 1 claim reproduced."
    page = Path(path)
    (claim,) = json.loads((page.parent / "claims.json").read_text())
    assert claim["verdict"] == "reproduced" and claim["estimate"]["n"] == 3
    assert claim["estimate"]["value"] == pytest.approx(1, abs=0.02)
    law = json.loads((page.parent / "laws.json").read_text())["loss against time, alpha 0.6"]
    assert law["constants"]["alpha"]["value"] == pytest.approx(0.375, abs=0.01)
    assert "Loss of all skills against time" in page.read_text()
    assert "nothing" not in said("show", "runs/skills")
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file()}
    said("reproduce", "skills.py")
    assert {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file()} == before
