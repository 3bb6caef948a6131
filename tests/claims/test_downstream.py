"""Best against final, from items that were planted."""

import numpy as np
import pandas as pd
import pytest

from jaxsat.claims import downstream
from jaxsat.results import NotMeasured, Results


def results(lost: float, n_models: int = 1, n_items: int = 1000, best: int = 20) -> tuple[Results, pd.DataFrame]:
    """Half of the items are right at step 20; of those a share `lost` is wrong at step 40."""
    rng, rows = np.random.default_rng(0), []
    for model in map(str, range(n_models)):
        right = rng.random(n_items) < 0.5
        at = {10: right, 20: right, 40: right & (rng.random(n_items) >= lost)}
        for step, of in at.items():
            rows += [(model, step, i, "cloze.item.accuracy", float(value)) for i, value in enumerate(of)]
            rows.append((model, step, 0, "heldout_loss", 3.0 + abs(step - best) / 100))
    table = pd.DataFrame(rows, columns=["series", "step", "index", "metric", "value"])
    runs = pd.DataFrame({"params.total": 1.0}, index=sorted(set(table["series"])))
    return Results("laptop", runs, table), runs


def test_what_was_planted_is_in_the_interval():
    one = downstream.downstream_loss(*results(0.2))
    assert one.n == 1000 and one.low < 10 < one.high and one.low > 0
    many = downstream.downstream_loss(*results(0.2, n_models=4))
    assert many.n == 4 and many.low < 10 < many.high and "over models" in many.how
    none = downstream.downstream_loss(*results(0.0))
    assert none.value == none.low == none.high == 0


def test_the_table_has_a_row_a_model_and_set():
    found = downstream.table(*results(0.2, n_models=2))
    assert found["n"].tolist() == [1000, 1000] and (found["low"] < found["lost"]).all()
    np.testing.assert_allclose(found["best"] - found["final"], found["lost"])


def test_where_there_is_nothing_to_compare_it_says_what_is_missing():
    with pytest.raises(NotMeasured, match="the best checkpoint that was scored is the last one"):
        downstream.downstream_loss(*results(0.2, best=40))
    of, runs = results(0.2)
    for kept in ("heldout_loss", "cloze.item.accuracy"):
        rows = of.measurements[of.measurements["metric"] == kept]
        with pytest.raises(NotMeasured, match="jaxsat evaluate DIR --items"):
            downstream.downstream_loss(Results("laptop", runs, rows), runs)
