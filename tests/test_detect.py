"""`jaxsat detect TABLE`: what is typed, what is said, and nothing but JSON where JSON is asked for."""

import json

import numpy as np
import pandas as pd
import pytest

from jaxsat.cli import main

STEPS = np.arange(1, 31) * 100


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """t.csv: the loss of run `up` rises from the middle on, that of run `down` falls."""
    rng = np.random.default_rng(0)
    up, down = 3 + np.clip(STEPS - 1500, 0, None) / 1500, 3 + 5 * STEPS**-0.5
    frames = [
        pd.DataFrame({"model": name, "step": STEPS, "loss": loss + 0.02 * rng.standard_normal(30)})
        for name, loss in (("up", up), ("down", down))
    ]
    table = pd.concat(frames).assign(acc=lambda t: 1 / t["loss"], size=1)
    monkeypatch.chdir(tmp_path)
    table.to_csv("t.csv", index=False)
    table.sample(frac=1, random_state=0).to_csv("mixed.csv", index=False)
    pd.concat([table, table.assign(loss=table["loss"] + 0.01)]).to_csv("seeds.csv", index=False)
    table[:1].to_csv("one.csv", index=False)
    table[table["step"] > 2500].to_csv("few.csv", index=False)
    table.astype({"loss": str}).replace({"loss": {str(table["loss"].iloc[3]): "n/a"}}).to_csv("words.csv", index=False)
    return tmp_path


def verdicts(argv: list[str], capsys) -> tuple[dict[str, str], str]:
    assert main(["detect", *argv, "--json"]) == 0
    said = capsys.readouterr()
    runs = json.loads(said.out)["runs"]
    assert all([*run] == ["run", "best_step", "last_over_best", "low", "high", "verdict"] for run in runs)
    return {run["run"]: run["verdict"] for run in runs}, said.err


RIGHT = {"up": "saturated", "down": "not saturated"}


def test_a_verdict_a_run(capsys):
    assert main(["detect", "t.csv", "--run", "model", "--step", "step", "--value", "loss"]) == 0
    said = capsys.readouterr()
    assert "2 runs: 1 saturated, 1 not saturated" in said.out and said.err == ""
    assert verdicts(["t.csv", "--run", "model", "--value", "loss"], capsys) == (RIGHT, "")
    argv = ["t.csv", "--run", "model", "--value", "acc", "--higher-is-better"]
    assert verdicts(argv, capsys) == (RIGHT, "")
    found, err = verdicts(["t.csv", "--value", "loss", "--where", "model == up"], capsys)
    assert found == {"t.csv": "saturated"} and "left out: 30 rows, which are not 'model == up'" in err


def test_what_is_taken_is_said(capsys):
    found, err = verdicts(["mixed.csv", "--run", "model", "--value", "loss"], capsys)
    assert found == RIGHT and "rows of 2 runs (" in err and "are out of order: they are taken by their steps" in err
    found, err = verdicts(["seeds.csv", "--run", "model", "--value", "loss"], capsys)
    assert found == RIGHT
    assert "60 rows are of a step that is there before (run up, step 100): the mean of their values is taken" in err
    found, err = verdicts(["few.csv", "--run", "model", "--value", "loss"], capsys)
    assert found == dict.fromkeys(RIGHT, "undecided") and "2 runs (up) have fewer than 6 checkpoints" in err


def test_the_wrong_way_round_is_noticed(capsys):
    rising = pd.DataFrame({"step": STEPS, "acc": 0.9 - STEPS**-0.5 * 5 + np.sin(STEPS) / 500})
    rising.to_csv("acc.csv", index=False)
    _, err = verdicts(["acc.csv", "--value", "acc"], capsys)
    assert "best at the first step of all that are called saturated: if it should be, give --higher-is-better" in err


@pytest.mark.parametrize(
    "argv, said",
    [
        (["none.csv", "--value", "loss"], "no file none.csv"),
        (["t.csv", "--value", "los"], "no column 'los'; did you mean 'loss' (--value 'loss')?"),
        (["t.csv", "--value", "loss", "--step", "tokens"], "no column 'tokens' (--step names another)"),
        (["t.csv", "--value", "loss", "--run", "modle"], "did you mean 'model'"),
        (["words.csv", "--value", "loss", "--run", "model"], "column 'loss', row 4: n/a must be a finite number"),
        (["t.csv", "--value", "loss", "--step", "model"], "column 'model', row 1: up must be a finite number"),
        (["one.csv", "--value", "loss"], "one.csv: no run has two steps; a curve has a row a checkpoint, and --run"),
        (["t.csv", "--value", "loss", "--where", "loss"], "--where 'loss': must be COLUMN OPERATOR VALUE"),
    ],
)
def test_wrong_input_is_one_line(argv, said, capsys):
    assert main(["detect", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("jaxsat: ") and err.count("\n") == 1 and said in err
