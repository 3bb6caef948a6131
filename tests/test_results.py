"""What claims and charts ask of results: rows with their runs beside them, ends, curves, and what is missing."""

import pandas as pd
import pytest

from jaxsat.config import InputError, Run, flatten, override
from jaxsat.results import NotMeasured, Results, sized

RUNS = {run.id: run for run in (override(Run(), {"model.width": w, "train.steps": 10}) for w in (32, 64))}
SMALL, LARGE = RUNS
TABLE = [
    *(
        (id, step, 100 * step, -1, i, "document_loss", 5 - step / 10 + i)
        for id in RUNS
        for step in (0, 5, 10)
        for i in (0, 1)
    ),
    (SMALL, 10, 1000, 2, 0, "anisotropy", 0.5),
    (SMALL, 10, 1000, 1, 0, "anisotropy", 0.25),
    ("law", 7, 7, -1, 0, "square", 49.0),
]


@pytest.fixture(scope="module")
def results():
    columns = ["series", "step", "tokens", "layer", "index", "metric", "value"]
    runs = pd.DataFrame.from_dict({id: flatten(run) | {"state": "done"} for id, run in RUNS.items()}, orient="index")
    return Results("laptop", runs, pd.DataFrame(TABLE, columns=columns), {"small": (SMALL,), "both": tuple(RUNS)})


def test_rows_have_their_runs_beside_them(results):
    rows = results.rows("document_loss", "square")
    assert rows["size"].dropna().unique().tolist() == ["d = 32", "d = 64"] and rows["model.width"].isna().sum() == 1
    assert set(results.rows("document_loss", part="small")["series"]) == {SMALL}
    assert set(results.rows("document_loss", where="`model.width` > 32 and index == 1")["value"]) == {6, 5.5, 5}
    assert results.count("rank == `model.width`") == 2 and results.count(part="small") == 1


def test_the_rank_of_a_run_is_that_of_its_model():
    points = ({"model.head_rank": 8}, {}, {"model.vocab_size": 10}, {"model.head": "nonlinear", "model.head_rank": 100})
    runs = [override(Run(), point) for point in points]
    assert sized(pd.DataFrame(map(flatten, runs)))["rank"].tolist() == [run.model.rank for run in runs]


def test_the_last_is_the_end_of_what_was_trained_to_its_end(results):
    assert results.last("document_loss")["step"].tolist() == 4 * [10] and results.last("square")["value"].tolist() == [
        49
    ]
    unfinished = results.runs.assign(**{"train.steps": [10, 20]})
    begun = Results("laptop", unfinished, results.measurements, results.parts)
    assert set(begun.last("document_loss")["series"]) == {SMALL}
    diverged = Results("laptop", results.runs.assign(state=["diverged", "done"]), results.measurements, results.parts)
    assert set(diverged.last("document_loss")["series"]) == {LARGE}


def test_curves_are_tokens_down_and_index_across(results):
    curves = results.curves("document_loss", results.select("both"))
    assert list(curves) == sorted(RUNS) and curves[SMALL].index.tolist() == [500, 1000]
    assert curves[SMALL].to_numpy().tolist() == [[4.5, 5.5], [4, 5]]
    with pytest.raises(InputError, match="curves of 'anisotropy', which has layers"):
        results.curves("anisotropy", results.runs)


@pytest.mark.parametrize(
    "ask, error, said",
    [
        (lambda r: r.rows("accuracy", part="small"), NotMeasured, "accuracy of small"),
        (lambda r: r.rows("square", part="both"), NotMeasured, "square of both"),
        (
            lambda r: r.last("document_loss", part="probe"),
            NotMeasured,
            "part 'probe'; there are small, both",
        ),
        (lambda r: r.law("mine"), NotMeasured, "the law 'mine'"),
        (lambda r: r.curves("accuracy", r.runs), NotMeasured, "accuracy"),
        (lambda r: r.select(where="`model.widht` > 3"), InputError, "'model.widht'; did you mean 'model.width'"),
        (lambda r: r.select(where="sed > 0.5"), InputError, "'sed > 0.5': unknown column 'sed'; did you mean 'seed'"),
        (lambda r: r.select(where="seed >"), InputError, "'seed >': invalid syntax"),
        (lambda r: r.select(where="model.width > 3"), InputError, "dotted keys stand between backticks"),
    ],
)
def test_what_is_not_there_is_named(results, ask, error, said):
    with pytest.raises(error, match=said):
        ask(results)
