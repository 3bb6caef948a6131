"""Series of others: imported whole or streamed, measured, evaluated, branched from and exported like our own."""

import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxsat import experiment as experiments
from jaxsat import imports, interop, measure, model
from jaxsat.checkpoints import load_run
from jaxsat.cli import main
from jaxsat.config import InputError, Layout, Preempted, Run
from jaxsat.corpus import tokenizer as bpe
from jaxsat.directory import Directory
from jaxsat.measure import table
from jaxsat.model import neox
from jaxsat.series import Import, check_hashes, missing_steps, name_of
from jaxsat.study import Study
from tests.studies import ignore

pytestmark = pytest.mark.usefixtures("home")
CONFIG = neox(depth=2, width=16, heads=2, context=32, vocab_size=256)
EXPERIMENT = """
from jaxsat import DataConfig, measure
from jaxsat.series import Import


def imports(scale):
    return [Import("theirs", "SOURCE", data=DataConfig(("words.txt",), heldout_tokens=512))]


def measures(scale):
    return [measure.loss(), measure.head(), measure.items("items.jsonl")]
"""
ITEMS = [
    {"good": "the sun and the moon", "bad": "moon sun the the and", "group": "order"},
    {"context": "the sun and the", "options": ["moon", "of of of"], "answer": 0},
    {"source": "the sun", "target": "moon"},
]


def parameters(weight: float) -> model.Params:
    """Those of one draw, and so much of another."""
    first, second = (model.init(CONFIG, jax.random.key(seed)) for seed in (0, 1))
    return jax.tree.map(lambda a, b: a + weight * b, first, second)


def write(folder: Path, step: int, weight: float, tokenizer: str) -> None:
    interop.write(CONFIG, parameters(weight), tokenizer, folder / f"step{step}")


@pytest.fixture(scope="module")
def tokenizer(place: Path) -> str:
    return bpe.train((place / "words.txt").read_text().splitlines(), CONFIG.vocab_size).to_str()


@pytest.fixture(scope="module")
def theirs(place: Path, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of a model."""
    folder = tmp_path_factory.mktemp("models") / "theirs"
    for step, weight in ((0, 0.0), (1000, 0.5), (2000, 1.0)):
        write(folder, step, weight, tokenizer)
    (place / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return folder


@pytest.fixture
def experiment(theirs: Path, tmp_path: Path) -> str:
    (tmp_path / "pythia.py").write_text(EXPERIMENT.replace("SOURCE", str(theirs)))
    return str(tmp_path / "pythia.py")


def equal(ours: model.Params, weight: float) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(ours), jax.device_get(parameters(weight)))


def said(capsys: pytest.CaptureFixture, *argv: object, code: int = 0) -> str:
    assert main(list(map(str, argv))) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_an_experiment_of_imports(experiment, theirs, tmp_path):
    out = tmp_path / "out"
    study = Study(experiment, "laptop", out)
    assert study.pending()[:2] == ["import 3 steps of theirs", "train nothing: all runs are at their end"]
    study.train(ignore)
    assert study.pending()[0].startswith("train nothing")
    study.measure(ignore)
    page = study.report()
    id = Import("theirs", "").id
    assert study.experiment.parts == {"imported": (id,)}
    for step, weight in ((0, 0.0), (1000, 0.5), (2000, 1.0)):
        for name in (id, "theirs"):
            config, params = load_run(out, name, step)
            assert dataclasses.replace(config, scan_layers=False) == CONFIG
            equal(params, weight)
    rows = study.results().rows("heldout_loss")
    assert set(rows["series"]) == {"theirs"}, "not an id"
    assert f"3 steps, the last from {theirs / 'step2000'}" in page.read_text()
    loss = rows.set_index("step")["value"]
    assert loss.index.tolist() == [0, 1000, 2000] and loss.nunique() == 3
    assert study.results().last("items.accuracy")["value"].tolist()[0] in (0, 0.5, 1)
    # Nothing is done again, and a report needs no source.
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    hidden = theirs.rename(theirs.with_name("hidden"))
    try:
        again = Study(experiment, "laptop", out)
        again.train(ignore)
        again.measure(ignore)
        assert again.report() == page
    finally:
        hidden.rename(theirs)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_what_was_brought_to_a_directory_is_of_any_experiment_there(theirs, tmp_path, capsys):
    """By `--only imported` an experiment measures it without training; what was streamed and dropped is passed over."""
    out = tmp_path / "out"
    said(capsys, "import", theirs, "--to", out, "--corpus", "words.txt")
    said(capsys, "import", theirs, "--to", out, "--name", "dropped", "--measure", "head")
    assert said(capsys, "evaluate", out, "--items", "items.jsonl", "--every", "--json").count('"series": "theirs"') > 3
    assert "dropped, only what was measured" in said(
        capsys, "evaluate", out, "--run", "dropped", "--items", "items.jsonl", code=2
    )
    said(capsys, "reproduce", "mine.py", "--out", out, "--only", "imported")
    study = Study("mine.py", "laptop", out, only=["imported"])
    assert not study.jobs.untrained() and {*study.experiment.parts} == {"imported"}
    assert study.results().rows("heldout_loss")["series"].unique().tolist() == ["theirs"]
    assert set(study.results().rows("items.accuracy")["step"]) == {0, 1000, 2000}, "of evaluate"
    assert set(study.results().rows("singular_entropy")["series"]) == {"theirs", "dropped"}


def test_an_import_grows_and_is_branched_from(theirs, tokenizer, tmp_path, capsys):
    folder = Path(shutil.copytree(theirs, tmp_path / "theirs"))
    shutil.rmtree(folder / "step2000")
    out = tmp_path / "out"
    said(capsys, "import", folder, "--to", out)
    write(folder, 2000, 1.0, tokenizer)
    said(capsys, "import", folder, "--to", out)
    assert "2000/2000" in said(capsys, "show", out)
    equal(load_run(out, "theirs", 2000)[1], 1.0)
    (tmp_path / "tuned.py").write_text(f"""
from jaxsat import Run, Sweep, TrainConfig, DataConfig, ModelConfig
from jaxsat.config import Start
from jaxsat.model import neox
from jaxsat.measure import loss

train = TrainConfig(steps=4, batch_size=4)
data = DataConfig(("words.txt",), tokenizer={str(folder / "step0" / "tokenizer.json")!r}, heldout_tokens=512)
model = neox(depth=2, width=16, heads=2, context=32, vocab_size=256)


def sweeps(scale):
    return [Sweep("tuned", Run(model, train, data, start=Start("theirs", 1000)))]


def measures(scale):
    return [loss()]
""")
    said(capsys, "reproduce", tmp_path / "tuned.py", "--out", out)
    (run,) = Study(str(tmp_path / "tuned.py"), "laptop", out).experiment.runs.values()
    equal(load_run(out, run.id, 0)[1], 0.5)
    with pytest.raises(AssertionError):
        equal(load_run(out, run.id, 4)[1], 0.5)


def test_a_series_is_streamed(theirs, tmp_path, capsys):
    """Each step is measured and dropped; another measure fetches them again; a changed step is found."""
    out = tmp_path / "out"
    folder = Path(shutil.copytree(theirs, tmp_path / "theirs"))
    stream = ("import", folder, "--to", out, "--corpus", "words.txt", "--measure")
    said(capsys, *stream, "head")
    whole = table.read(out / "measurements")
    assert set(whole["step"]) == {0, 1000, 2000} and "singular_entropy" in set(whole["metric"])
    assert not list((out / "checkpoints").glob("*/*"))
    assert main(["check", str(out)]) == 0, "what was dropped is not damaged"
    gone = said(capsys, "evaluate", out, "--items", "items.jsonl", code=2)
    assert "has no weights of theirs, only what was measured of it: import it without --measure" in gone
    said(capsys, *stream, "head", "loss")
    both = table.read(out / "measurements")
    assert set(both[both["metric"] == "heldout_loss"]["step"]) == {0, 1000, 2000} and len(both) > len(whole)
    shutil.rmtree(folder / "step1000")
    shutil.copytree(folder / "step2000", folder / "step1000")
    error = said(capsys, *stream, "anisotropy", code=2)
    assert "step1000 is not what it was when step 1000 was imported" in error
    said(capsys, "import", theirs, "--to", out)  # and now whole
    assert len(list((out / "checkpoints").glob("*/*"))) == 3


def test_what_was_streamed_is_fetched_again_only_for_what_is_new(experiment, theirs, tmp_path, capsys):
    out, (asked,) = tmp_path / "out", experiments.load(experiment, "laptop").imports
    imports.bring(out, asked, [experiment], Layout(), ignore)
    there = lambda: sorted(int(p.name) for p in (out / "checkpoints").glob("*/*"))
    study = Study(experiment, "laptop", out)
    assert study.pending()[1:] == [
        f"measure {m.name} (version {m.version}) of 0 checkpoints" for m in study.jobs.measures
    ]
    before = table.read(out / "measurements")
    said(capsys, "reproduce", experiment, "--out", out)
    assert there() == [] and table.read(out / "measurements").equals(before)
    text = Path(experiment).read_text()
    Path(experiment).write_text(
        text.replace("measure.loss()", "measure.loss(), measure.Measure('step', lambda c: {'now': c.step}, at=(1000,))")
    )
    said(capsys, "reproduce", experiment, "--out", out)
    assert there() == [1000]


def test_an_import_is_stopped_and_goes_on(experiment, tmp_path, monkeypatch):
    from jaxsat import imports

    seen, bring = [], imports._bring

    def slow(*args):
        seen.append(args[2])
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return bring(*args)

    monkeypatch.setattr(imports, "_bring", slow)
    with pytest.raises(Preempted):
        Study(experiment, "laptop", tmp_path / "out").train(ignore)
    Study(experiment, "laptop", tmp_path / "out").train(ignore)
    assert seen[:2] == [0, 1000] and seen[-1] == 2000 and len(seen) <= 4


def test_equal_weights_are_refused(theirs, tokenizer, tmp_path, capsys):
    twice = tmp_path / "twice"
    for step, weight in ((0, 0.0), (1, 0.0), (1000, 0.5), (2000, 0.5)):
        write(twice, step, weight, tokenizer)
    error = said(capsys, "import", twice, "--to", tmp_path / "out", code=2)
    assert "twice: steps 1000 and 2000 have equal weights" in error
    for out in ("ok", "out"):  # also where the other attempt was
        assert main(["import", str(twice), "--to", str(tmp_path / out), "--step", "0", "1", "1000"]) == 0
    assert "jaxsat: twice: steps 0, 1 have equal weights" in capsys.readouterr().err


def test_other_weights_of_a_name_that_is_taken_are_refused(theirs, tokenizer, experiment, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other" / "theirs"
    said(capsys, "import", theirs, "--to", out)
    for step, weight in ((0, 1.0), (1000, 0.0), (2000, 0.5)):
        write(other, step, weight, tokenizer)
    Path(experiment).write_text(EXPERIMENT.replace("SOURCE", str(other)))
    for argv in (["import", other, "--to", out], ["reproduce", experiment, "--out", out]):
        assert "step0 is not what it was when step 0 was imported into" in said(capsys, *argv, code=2)
    said(capsys, "import", theirs, "--to", out)


def test_what_was_told_at_first_stands(theirs, tokenizer, tmp_path, capsys):
    """A later step gets its tokens as the first ones did, told again or not; told something else is refused."""
    folder, out = Path(shutil.copytree(theirs, tmp_path / "theirs")), tmp_path / "out"
    shutil.rmtree(folder / "step2000")
    told = ["--tokens-per-step", "4096", "--corpus", "words.txt"]
    said(capsys, "import", folder, "--to", out, *told)
    write(folder, 2000, 1.0, tokenizer)
    for more, problem in ((["--tokens-per-step", "8"], "tokens_per_step = 4096, not 8"),
                          (["--corpus", "items.jsonl"], "with data = ")):  # fmt: skip
        assert problem in said(capsys, "import", folder, "--to", out, *more, code=2)
    said(capsys, "import", folder, "--to", out)
    (run,) = Directory.open(out).runs.values()
    assert run.imported.steps == (0, 1000, 2000) and run.tokens_per_step == 4096 and run.data.corpus == ("words.txt",)


def test_numbers_that_are_none_are_not_scored(theirs, tokenizer, tmp_path, capsys):
    params = parameters(0.0)
    params["embedding"] = params["embedding"].at[3].set(np.nan)
    interop.write(CONFIG, params, tokenizer, tmp_path / "broken")
    for argv in (["evaluate", tmp_path / "broken", "--items", "items.jsonl"],
                 ["generate", tmp_path / "broken", "--prompt", "sun"]):  # fmt: skip
        assert "has parameters that are no numbers at step 0" in said(capsys, *argv, code=2)


def test_a_step_of_another_series_is_named(theirs, tokenizer, tmp_path, capsys):
    mixed = Path(shutil.copytree(theirs, tmp_path / "mixed"))
    interop.write(CONFIG, model.init(CONFIG, jax.random.key(9)), tokenizer, mixed / "step3000")
    for step in (5000, 6000, 7000):
        write(mixed, step, step / 1000, tokenizer)
    assert main(["import", str(mixed), "--to", str(tmp_path / "out")]) == 0
    warned = capsys.readouterr().err
    assert "mixed: step 3000 does not descend from step 0" in warned and warned.count("descend") == 1
    assert "mixed: steps 4000 are missing" in warned
    larger = neox(depth=2, width=32, heads=2, context=32, vocab_size=256)
    interop.write(larger, model.init(larger, jax.random.key(0)), tokenizer, mixed / "step8000")
    error = said(capsys, "import", mixed, "--to", tmp_path / "out", code=2)
    assert "step8000 is not the model of mixed: width is 32, not 16" in error


def test_export_evaluate_and_generate(theirs, tmp_path, capsys):
    out, folder = tmp_path / "out", tmp_path / "back"
    said(capsys, "import", theirs, "--to", out)
    said(capsys, "export", out, "theirs", "--step", 1000, "--to", folder)
    equal(interop.Source(folder).params(), 0.5)
    scores = {}
    for where in (folder, theirs / "step1000", out):
        argv = ["evaluate", where, "--items", "items.jsonl", "--json", *(["--step", 1000] if where == out else [])]
        rows = json.loads(said(capsys, *argv))
        assert set(rows[0]) == {"series", "step", "items", "group", "n", "metric", "value", "low", "high"}
        scores[where] = [(row["group"], row["metric"], row["value"]) for row in rows]
    assert len(set(map(str, scores.values()))) == 1
    rows = table.read(out / "measurements").set_index("metric")["value"]
    assert (
        rows["items.accuracy.n"] == 2
        and rows["items.order.accuracy"] in (0, 1)
        and len(rows["items.item.accuracy"]) == 2
    )
    said(capsys, "evaluate", out, "--items", "items.jsonl", "--cut")  # with leave to cut it is another measure
    keys = {measure.items("items.jsonl", cut=cut).key for cut in (False, True)}
    assert set(table.read(out / "measurements")["measure"]) == keys and len(keys) == 2
    written = said(capsys, "generate", out, "--prompt", "the sun", "--tokens", 5, "--step", 1000)
    assert written == said(capsys, "generate", folder, "--prompt", "the sun", "--tokens", 5)
    assert written.startswith("the sun")


def test_a_run_of_ours_is_asked_and_exported_too(out, tmp_path, capsys, theirs):
    (run, *_) = Directory.open(out).runs.values()
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    rows = json.loads(said(capsys, "evaluate", copy, "--run", run.id, "--items", "items.jsonl", "--json"))
    assert {row["series"] for row in rows} == {run.id} and {row["step"] for row in rows} == {20}
    error = said(capsys, "export", copy, run.id, "--to", tmp_path / "no", code=2)
    assert "head_rank" in error and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "argv, problem",
    [
        (("import", "nowhere", "--to", "new"), "no folder nowhere"),
        (("import", "STEP", "STEP", "--to", "new"), "which step is it"),
        (("import", "SRC", "--to", "new", "--step", 7), "no step 7 in .*, which has 0, 1000, 2000"),
        (("import", "SRC", "--to", "new", "--measure", "hed"), "unknown measure 'hed'; did you mean 'head'"),
        (("import", "SRC", "--to", "new", "--name", "a/b"), "a name is letters"),
        (("import", "hf:no", "--to", "new"), "hf:no is no name of the hub"),
        (("evaluate", "SRC", "--items", "nowhere.jsonl"), "nowhere.jsonl"),
        (("evaluate", "STEP", "--run", "x", "--items", "items.jsonl"), "--run is of one"),
        (("generate", "STEP", "--prompt", "the", "--tokens", 0), "0"),
    ],
)
def test_what_cannot_be_is_said(theirs, tmp_path, monkeypatch, capsys, argv, problem):
    place = {"SRC": theirs, "STEP": theirs / "step1000", "new": tmp_path / "new"}
    error = said(capsys, *(place.get(word, word) for word in argv), code=2)
    assert error.count("\n") == 1 and re.search(problem, error), error
    assert not (tmp_path / "new").exists()


def test_hashes_of_a_series():
    assert check_hashes("a", {0: "x", 1: "y", 2: "z"}) == []
    assert check_hashes("a", {0: "x", 1: "x", 2: "x", 4: "y"}) == ["a: steps 0, 1, 2 have equal weights"]
    for hashes in ({0: "x", 1: "y", 2: "x"}, {0: "x", 1: "y", 2: "y"}, {1: "x", 2: "x"}):
        with pytest.raises(InputError, match="have equal weights: one of them is another's"):
            check_hashes("a", hashes)


def test_steps_that_are_missing():
    assert missing_steps([0, 1, 2, 4, 1000, 2000, 3000, 5000, 6000]) == [4000]
    for steps in ([0], [0, 1, 2, 4, 8], [0, 1000, 2000], list(range(0, 9000, 1000))):
        assert missing_steps(steps) == []


def test_names_of_series():
    assert name_of("a/pythia-14m/step1000") == name_of("hf:EleutherAI/pythia-14m@step1000") == "pythia-14m"
    assert name_of("runs/a@b/step7") == "a-b" and name_of("hf:a/b") == "b"
    assert name_of("./my model/") == "my-model" and Import("pythia-14m", "").id != Run().id
