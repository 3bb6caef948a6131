"""`jaxsat fit TABLE`: what is typed, what is said, and nothing but JSON where JSON is asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxsat.cli import main
from jaxsat.laws import chinchilla, fit

QUICK = ["--bootstrap", "50", "--hold", "E=1.8,A=480"]
MINE = """
import jax.numpy as jnp
from jaxsat.laws import Constant, Form

mine = Form(
    "mine", "L = A / (width + w0)^alpha", "this test", ("width",),
    (Constant("A", (1, 10)), Constant("w0", (1, 100)), Constant("alpha", (0.2, 1), positive=False)),
    lambda c, x: jnp.log(c["A"]) - c["alpha"] * jnp.log(x["width"] + c["w0"]),
)
three = 3
"""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """The working directory, with a table whose law is known: E 1.8, A 480, B 2000, alpha 0.35, beta 0.36."""
    path, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 10, 40), 10 ** rng.uniform(8, 11, 40)
    loss = (1.8 + 480 / n**0.35 + 2000 / d**0.36) * np.exp(rng.normal(0, 0.003, 40))
    table = pd.DataFrame({"N": n, "D": d, "loss": loss, "C": 6 * n * d, "seed": np.arange(40) % 4, "params": n})
    table["suite"], table["width"], table["weight"] = np.where(n < 3e8, "small", "large"), rng.uniform(8, 512, 40), 1.0
    table["accuracy"], table["ours"] = 1.2 - 0.2 * loss, 9 / (table["width"] + 30) ** 0.3
    table.to_csv(path / "t.csv", index=False)
    table.assign(loss=table["loss"].mask(table.index == 6, -1)).to_csv(path / "negative.csv", index=False)
    table[:4].to_csv(path / "few.csv", index=False)
    one = (1.8 + 480 / n**0.35 + 2000 / 1e10**0.36) * np.exp(rng.normal(0, 0.003, 40))
    table.assign(D=1e10, loss=one).to_parquet(path / "one_budget.parquet")
    (path / "lower.csv").write_text("n,D,loss\n1,2,3\n")
    (path / "short.csv").write_text("N,D,loss\n1,2,3\n1,2\n")
    (path / "mine.py").write_text(MINE)
    (path / "broken.py").write_text("def (")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXSAT_CACHE", str(path / "cache"))
        patch.chdir(path)
        yield path


@pytest.fixture
def run(capfd):
    """Runs `jaxsat fit` with these arguments; returns what it prints."""

    def run(*argv: str) -> str:
        capfd.readouterr()
        assert main(["fit", *argv]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out

    return run


def table() -> pd.DataFrame:
    return pd.read_csv("t.csv")


def test_json_is_the_documented_document_and_nothing_else(run):
    document = json.loads(run("t.csv", *QUICK, "--predict", "N=1e9,D=1e10", "--json"), parse_constant=pytest.fail)
    assert list(document) == ["form", "constants", "objective", "rows", "converged", "predictions"]
    assert document["form"] == "chinchilla" and document["rows"] == 40 and document["converged"] is True
    assert document["constants"]["E"] == {"value": 1.8, "low": 1.8, "high": 1.8}
    rows = table()
    law = fit(chinchilla, {"N": rows["N"], "D": rows["D"]}, rows["loss"], hold={"E": 1.8, "A": 480}, bootstrap=50)
    for name, c in law.constants.items():
        assert document["constants"][name] == pytest.approx(c._asdict())
    assert document["predictions"] == [pytest.approx({"N": 1e9, "D": 1e10} | law.predict(N=1e9, D=1e10)._asdict())]


def test_a_process_of_its_own_prints_json_alone(home):
    done = alone(home)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["constants"]["alpha"]["value"] == pytest.approx(0.35, rel=0.05)


def alone(home: Path, **environment: str) -> subprocess.CompletedProcess:
    argv = [sys.executable, "-m", "jaxsat.cli", "fit", str(home / "t.csv"), *QUICK, "--json"]
    where = {"cwd": Path(__file__).parents[1], "env": os.environ | environment}
    return subprocess.run(argv, capture_output=True, text=True, **where)


@pytest.mark.parametrize("setting", ["cache", "platform"])
def test_neither_a_cache_nor_the_accelerator_is_needed(home, setting):
    """A cache below a file cannot be written; there is no TPU here, and where there is one it is left alone."""
    (home / "file").write_text("")
    done = alone(
        home, **{"cache": {"JAXSAT_CACHE": str(home / "file" / "cache")}, "platform": {"JAX_PLATFORMS": "tpu"}}[setting]
    )
    assert done.returncode == 0 and done.stderr == "" and json.loads(done.stdout)["converged"]


def test_columns_have_any_name_and_tokens_may_come_from_flops(run):
    plain = json.loads(run("t.csv", *QUICK, "--json"))
    named = json.loads(run("t.csv", *QUICK, "--json", "--n", "params", "--flops", "C"))
    assert named["constants"]["alpha"]["value"] == pytest.approx(plain["constants"]["alpha"]["value"], rel=1e-4)


def test_what_is_printed(run):
    said = run(
        "t.csv", *QUICK, "--where", "N < 9e9", "--predict", "N=1e9,D=1e10", "--predict", "N=1e9,D=1e12",
        "--held-out", "N > 5e9", "--compare", "power_law", "--x", "N",
    )  # fmt: skip
    lines = said.splitlines()
    assert lines[0].startswith("L(N, D) = E + A/N^alpha + B/D^beta; Hoffmann")
    assert lines[1].startswith("left out: ") and "'N < 9e9'" in lines[1]
    assert [line.split()[0] for line in lines[3:8]] == ["E", "A", "B", "alpha", "beta"]
    assert lines[3].split() == ["E", "1.8", "1.8", "1.8", "held"] and lines[6].split()[-1] == "fitted"
    assert any(line.startswith("least loss of C = 6 N D FLOPs at N = G (C/6)^a, a 0.5") for line in lines)
    assert lines[8] == "converged" and "3 constants fitted, 90 % intervals" in lines[9]
    assert "predictions, with the interval of the law:" in lines and "1e+12" in said
    held = (table()["N"].between(5e9, 9e9)).sum()
    assert f"{held} rows held out: root mean square error" in said
    assert "these rows prefer chinchilla" in lines
    assert "NOT CONVERGED" not in said


def test_a_table_of_any_make_gives_the_same_law(run, home):
    """A comma at the end of each row; tabs and a line above; semicolons with B and M; integers beyond 64 bits."""
    rows = table()[["N", "D", "loss"]].assign(N=lambda t: t["N"].round(), D=lambda t: t["D"].round())
    rows.to_csv(home / "plain.csv", index=False)
    lines = (home / "plain.csv").read_text().splitlines()
    (home / "trailing.csv").write_text("\n".join([lines[0], *(f"{line}," for line in lines[1:])]))
    (home / "tabs.tsv").write_text("\n".join(["# mine", *(line.replace(",", "\t ") for line in lines)]))
    counts = [f"{r.N / 1e9!r}B;{r.D / 1e6!r}M;{r.loss!r}" for r in rows.itertuples()]
    (home / "semicolons.csv").write_text("\n".join(["N ; D ; loss", *counts]))
    objects = [f'{{"N": {int(r.N)}, "C": {6 * int(r.N) * int(r.D)}, "loss": {r.loss!r}}}' for r in rows.itertuples()]
    (home / "big.jsonl").write_text("\n".join(objects))
    plain = json.loads(run("plain.csv", *QUICK, "--predict", "N=1e9,D=2e10", "--json"))
    assert plain["converged"] and plain["rows"] == 40
    for name, flags in {
        "trailing.csv": [],
        "tabs.tsv": [],
        "semicolons.csv": [],
        "big.jsonl": ["--flops", "C"],
    }.items():
        found = json.loads(run(name, *QUICK, *flags, "--predict", "N=1B,D=20B", "--json"))
        assert found["rows"] == 40 and found["objective"] == pytest.approx(plain["objective"], rel=1e-6), name
        assert found["predictions"][0]["value"] == pytest.approx(plain["predictions"][0]["value"], rel=1e-6)


def test_a_rule_holds_out_its_rows_whatever_index_a_parquet_has(run, home):
    shuffled = table().sample(frac=1, random_state=0)
    shuffled.set_index(pd.Index([7] * 40)).to_parquet(home / "index.parquet")
    expected, found = (
        [line for line in run(name, *QUICK, "--held-out", "N > 3e9").splitlines() if "held out" in line]
        for name in ("t.csv", "index.parquet")
    )
    assert expected == found and f"{(table()['N'] > 3e9).sum()} rows held out" in found[0]


def test_copies_of_rows_are_said(run, home):
    pd.concat([table(), table()[:3]]).to_csv(home / "copies.csv", index=False)
    assert "3 rows are equal to earlier ones in every column, and are fitted too" in run("copies.csv", *QUICK)
    assert json.loads(run("copies.csv", *QUICK, "--json"))["copies"] == 3


def test_rows_without_noise_are_fitted(run, home):
    loss = np.linspace(2, 4.5, 30)
    pd.DataFrame({"loss": loss, "accuracy": 1.5 - 0.3 * loss}).to_csv(home / "exact.csv", index=False)
    said = run("exact.csv", "--form", "accuracy_linear", "--bootstrap", "50")
    assert "2 constants fitted" in said and "held" not in said and "converged" in said.splitlines()


def test_a_law_of_another_kind_is_not_said_to_converge(run, home):
    x = np.geomspace(1, 1e6, 40)
    wave = 3 + np.sin(np.log(x)) * np.exp(np.random.default_rng(0).normal(0, 0.003, 40))
    pd.DataFrame({"x": x, "loss": wave}).to_csv(home / "wave.csv", index=False)
    said = run("wave.csv", "--form", "power_law", "--bootstrap", "50")
    assert "NOT CONVERGED: residuals are" in said and "times what a smooth curve through the rows leaves" in said
    assert json.loads(run("wave.csv", "--form", "power_law", "--bootstrap", "50", "--json"))["converged"] is False


def test_few_groups_need_a_misfit(run):
    groups = ["t.csv", *QUICK, "--group", "suite", "--json"]
    unknown, known = (json.loads(run(*groups, *more))["constants"]["B"] for more in ([], ["--misfit", "0.003"]))
    assert unknown["low"] <= known["low"] < known["value"] < known["high"]
    assert unknown["high"] is None or unknown["high"] > known["high"]


def test_a_constant_that_the_rows_cannot_identify_is_named(run):
    said = run("one_budget.parquet", "--bootstrap", "50", "--hold", "E=1.8,A=480,alpha=0.35")
    assert "these rows do not identify B: its interval is unbounded, from 0 to inf" in said
    assert "these rows do not identify beta: its interval is unbounded, from -inf to " in said
    document = json.loads(run("one_budget.parquet", "--bootstrap", "50", "--hold", "E=1.8,A=480,alpha=0.35", "--json"))
    assert document["constants"]["beta"]["low"] is None and document["constants"]["B"]["high"] is None


def test_families_have_their_own_constants(run):
    argv = ["t.csv", "--form", "power_law", "--x", "D", "--family", "suite", "--own", "A", "--bootstrap", "50"]
    document = json.loads(run(*argv, "--predict", "x=1e9,family=small", "--json"))
    assert list(document["constants"]) == ["A[large]", "A[small]", "alpha"]
    assert document["predictions"][0]["family"] == "small" and document["predictions"][0]["x"] == 1e9
    assert document["constants"]["A[small]"]["value"] > document["constants"]["A[large]"]["value"]


def test_a_form_of_the_user_and_an_accuracy(run):
    document = json.loads(run("t.csv", "--form", "mine.py:mine", "--loss", "ours", "--bootstrap", "50", "--json"))
    found = {name: c["value"] for name, c in document["constants"].items()}
    assert found == pytest.approx({"A": 9, "w0": 30, "alpha": 0.3}, rel=1e-3)
    document = json.loads(run("t.csv", "--form", "accuracy_linear", "--bootstrap", "50", "--json"))
    assert {name: c["value"] for name, c in document["constants"].items()} == pytest.approx({"a": 1.2, "b": 0.2})


def test_seeds_are_resampled_whole_and_equal_weights_change_nothing(run):
    plain, by_seed, weighted = (
        json.loads(run("t.csv", *QUICK, *more, "--json"))["constants"]["alpha"]
        for more in ([], ["--group", "seed"], ["--weight", "weight"])
    )
    assert plain == weighted and plain["value"] == by_seed["value"] and plain["low"] != by_seed["low"]


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figures_of_a_law_of_one_input(run, home, suffix):
    run("t.csv", "--form", "power_law", "--x", "D", "--bootstrap", "50", "--figure", f"one.{suffix}")
    assert (home / f"one.{suffix}").read_bytes()[:4] == {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xm"}[suffix]


def test_json_has_what_was_asked_for_beyond_it_and_no_infinity(run):
    """Six rows are too few for the AICc of five constants and a scale."""
    few = table()[table()["seed"] == 1]["N"].nlargest(4).min()
    argv = ["--bootstrap", "50", "--where", "seed == 1", "--where", f"N < {few}", "--compare", "power_law", "--x", "N"]
    document = json.loads(run("t.csv", *argv, "--json"), parse_constant=pytest.fail)
    assert list(document)[-2:] == ["left_out", "choice"] and document["rows"] == 6
    assert document["left_out"] == {"seed == 1": 30, f"N < {few}": 4}
    forms = {form["form"]: form for form in document["choice"]["forms"]}
    assert forms["power_law"]["aicc"] == 0 and forms["chinchilla"]["aicc"] is None


@pytest.mark.parametrize(
    "argv, said",
    [
        (["nowhere.csv"], "no file nowhere.csv"),
        (
            ["t.csv", "--n", "prams"],
            "no column 'prams'; did you mean 'params' (--n 'params')? there are N, D, loss, C",
        ),
        (["t.csv", "--form", "chinchila"], "unknown form 'chinchila'; did you mean 'chinchilla'?"),
        (["t.csv", "--form", "power_law"], "no column 'x' (--x names another); there are"),
        (["t.csv", "--form", "nowhere.py:mine"], "no file nowhere.py"),
        (["t.csv", "--form", "mine.py:three"], "mine.py has no jaxsat.laws.Form named 'three'"),
        (["t.csv", "--form", "broken.py:mine"], "broken.py, line 1"),
        (["negative.csv"], "column 'loss', row 7: -1.0 must be a positive finite number"),
        (["few.csv"], "4 rows for 5 constants (E, A, B, alpha, beta): needs at least 6"),
        (["t.csv", "--hold", "E"], "--hold E: must be NAME=VALUE"),
        (["t.csv", "--hold", "F=2"], "unknown name in --hold 'F'"),
        (["t.csv", "--hold", "E=two"], "--hold: 'two' is not a number"),
        (["t.csv", "--predict", "N=1e9"], "--predict N=1e9: chinchilla needs D too"),
        (["t.csv", "--predict", "N=1e9,D=-1"], "must be positive finite numbers"),
        (["t.csv", "--where", "loss > 99"], "--where 'loss > 99' leaves no rows"),
        (["t.csv", "--held-out", "loss > 99"], "--held-out 'loss > 99' leaves no rows"),
        (["t.csv", "--held-out", "lss"], "no column 'lss'"),
        (["t.csv", "--family", "suite"], "--family and --own go together"),
        (["t.csv", "--family", "suite", "--own", "F"], "that each family has for itself 'F'"),
        (["t.csv", "--compare", "accuracy_linear"], "--compare takes forms of the loss"),
        (["t.csv", "--bootstrap", "5"], "bootstrap = 5: an interval of level 0.9 needs at least 20"),
        (["lower.csv"], "no column 'N'; did you mean 'n' (--n 'n')? there are n, D, loss"),
        (["short.csv"], "cannot read short.csv: line 3 has 2 fields, and the header names 3"),
        (["t.csv", "--predict", "N=1X,D=1"], "--predict: '1X' is not a number"),
        (["t.csv", "--misfit", "2"], "misfit = 2.0: must be between 0 and 1"),
        (["t.csv", "--level", "1.5"], "level = 1.5: must be between 0 and 1"),
        (["t.csv", "--delta", "0"], "delta = 0.0: must be a positive finite number"),
        (["t.csv", "--figure", "t.csv"], "must end in .svg, .png or .pdf"),
        (["t.csv", "--figure", "there.svg"], "there.svg: exists; choose another name, or remove it"),
        (["t.csv", "--figure", "no/where.svg"], "no directory no"),
        (["t.csv", "--out", "runs/t"], "--scale and --out are of an experiment, not of a table"),
        (["saturation", "--form", "kaplan"], "saturation is no table"),
    ],
)
def test_wrong_input_is_one_line(argv, said, capfd, home):
    (home / "there.svg").write_text("mine")
    before = sorted(p.name for p in home.iterdir() if p.name != "cache")
    capfd.readouterr()
    assert main(["fit", *argv]) == 2
    out, err = capfd.readouterr()
    assert said in err and err.startswith("jaxsat: ") and err.count("\n") == 1 and out == ""
    assert sorted(p.name for p in home.iterdir() if p.name != "cache") == before
    assert (home / "there.svg").read_text() == "mine"


def test_the_published_table_from_the_command_line(run, shared_data):
    """Besiroglu et al. (2024): the five largest losses are left out."""
    path = shared_data / "scaling_chinchilla" / "svg_extracted_data.csv"
    fifth = float(pd.read_csv(path)["loss"].nlargest(5).min())
    argv = ["--n", "Model Size", "--flops", "Training FLOP", "--where", f"loss < {fifth!r}", "--bootstrap", "200"]
    document = json.loads(run(str(path), *argv, "--json"))
    published = json.loads((path.parent / "published_fit.json").read_text())["besiroglu2024_huber_only"]
    found = {name: c["value"] for name, c in document["constants"].items()}
    assert found == pytest.approx({name: published[name] for name in found}, rel=1e-3)
    assert (
        document["rows"] == 240 and list(document["left_out"].values()) == [5] and document["objective"] <= 0.001018275
    )


@pytest.fixture(scope="module")
def curves(home) -> str:
    """Checkpoints of the paper's sizes: the small end 8 % above the law of the larger, and had come within 4 %."""
    rng, rows = np.random.default_rng(0), []
    for name, n in {
        "14m": 14e6,
        "70m": 70e6,
        "160m": 162e6,
        "410m": 405e6,
        "1b": 1e9,
        "1.4b": 1.4e9,
        "6.9b": 6.9e9,
    }.items():
        misfit = 1 + 0.002 * rng.standard_normal()
        for share in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
            d = 3e11 * share
            above = 0.0 if n >= 4e8 else 0.04 if share < 0.7 else 0.08
            loss = (1.69 + 119.09 / n**0.246 + 410.7 / d**0.28) * misfit * (1 + above)
            rows.append({"model": name, "N": n, "D": d, "loss": loss})
    pd.DataFrame(rows).to_csv(home / "curves.csv", index=False)
    return "curves.csv"


def test_gaps_of_a_table(run, curves):
    argv = [curves, "--gaps", "4e8", "--run", "model", "--misfit", "0.003", "--bootstrap", "200"]
    found = json.loads(run(*argv, "--json"))
    assert found["constants"]["E"]["value"] == 1.69 and found["rows"] == 4
    final, best = found["gaps"]["final"], found["gaps"]["best"]
    assert final["low"] < 8 < final["high"] and best["low"] < 4 < best["high"] and final["low"] > 4
    assert [row["series"] for row in found["gaps"]["runs"]] == ["14m", "70m", "160m"]
    said = run(*argv)
    assert (
        "final checkpoints of the 3 smaller runs: +8." in said and "best checkpoints of the 3 smaller runs: +4." in said
    )


@pytest.mark.parametrize(
    "argv, problem",
    [
        (["--gaps", "4e8"], "--gaps needs --run COL"),
        (["--gaps", "4e8", "--run", "modle"], "no column 'modle'; did you mean 'model'"),
        (["--gaps", "1e6", "--run", "model"], "no series has N < 1e+06"),
        (["--gaps", "many", "--run", "model"], "--gaps: 'many' is not a number"),
        (["--gaps", "4e8", "--run", "model", "--form", "kaplan"], "leave out --form"),
        (["--run", "model"], "--run tells runs apart for --gaps N"),
    ],
)
def test_gaps_that_cannot_be_are_said(capfd, curves, argv, problem):
    assert main(["fit", curves, *argv]) == 2
    assert problem in capfd.readouterr().err
