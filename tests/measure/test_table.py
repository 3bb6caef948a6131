import numpy as np
import pandas as pd
import pytest

from jaxsat.config import InputError
from jaxsat.measure import table


def test_rows_index_vectors_from_zero_and_scalars_with_zero():
    t = pd.concat(
        [
            table.rows("r1", 4, 4096, "singular_value", [3.0, 2.0, 1.0]),
            table.rows("r1", 4, 4096, "heldout_loss", np.float32(5.5)),
            table.rows("r1", 4, 4096, "anisotropy", [0.1, 0.2], layer=[0, 1], index=0),
            table.rows("r1", 4, 4096, "frozen_head_loss", [4.0, 3.0], index=[2, 8]),
        ]
    )
    assert t.dtypes.astype(str).to_dict() == table.COLUMNS
    assert t["index"].tolist() == [0, 1, 2, 0, 0, 0, 2, 8]
    assert t["layer"].tolist() == [-1, -1, -1, -1, 0, 1, -1, -1]
    assert t["value"].tolist() == [3, 2, 1, 5.5, 0.1, 0.2, 4, 3]


def test_merge_keeps_the_last_and_reads_back_what_it_returned(tmp_path):
    path = tmp_path / "sweep" / "measurements.parquet"
    table.merge(path, table.rows("a", 0, 0, "heldout_loss", 7.0))
    table.merge(path, table.rows("b", 0, 0, "heldout_loss", 6.0))
    merged = table.merge(path, table.rows("a", 0, 0, "heldout_loss", 5.0))
    assert merged[["run", "value"]].values.tolist() == [["a", 5.0], ["b", 6.0]]
    pd.testing.assert_frame_equal(table.read(path), merged)
    assert merged.dtypes.astype(str).to_dict() == table.COLUMNS
    assert [p.name for p in path.parent.iterdir()] == ["measurements.parquet"]


def test_an_empty_table_is_one(tmp_path):
    assert table.empty().dtypes.astype(str).to_dict() == table.COLUMNS
    path = tmp_path / "measurements.parquet"
    pd.testing.assert_frame_equal(table.merge(path, table.empty()), table.read(path))
    assert len(table.merge(path, table.rows("a", 0, 0, "heldout_loss", 7.0))) == 1


def test_order_of_measuring_does_not_matter(tmp_path):
    parts = [table.rows(run, step, step, "singular_value", [2.0, 1.0]) for run in "ba" for step in (9, 0)]
    for i, order in enumerate(([0, 1, 2, 3], [3, 1, 0, 2])):
        for k in order:
            table.merge(tmp_path / f"{i}.parquet", parts[k])
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()


def test_interrupted_merge_leaves_the_old_table(tmp_path):
    path = tmp_path / "measurements.parquet"
    before = table.merge(path, table.rows("a", 0, 0, "heldout_loss", 7.0))
    path.with_name("measurements.parquet.part").write_bytes(b"half")  # killed while writing
    pd.testing.assert_frame_equal(table.read(path), before)
    assert len(table.merge(path, table.rows("b", 0, 0, "heldout_loss", 6.0))) == 2


def test_not_finite_values_survive(tmp_path):
    path = tmp_path / "measurements.parquet"
    table.merge(path, table.rows("a", 0, 0, "condition_number", [np.inf, np.nan]))
    np.testing.assert_array_equal(table.read(path)["value"], [np.inf, np.nan])


def test_what_is_not_a_table_is_an_error_that_names_the_path(tmp_path):
    path = tmp_path / "measurements.parquet"
    with pytest.raises(InputError, match="no measurements at .*measurements.parquet"):
        table.read(path)
    path.write_bytes(b"not parquet")
    with pytest.raises(InputError, match="measurements.parquet is not a Parquet file"):
        table.read(path)
    pd.DataFrame({"run": ["a"], "value": [1.0]}).to_parquet(path)
    with pytest.raises(InputError, match="columns missing: index, layer, metric, step, tokens"):
        table.read(path)
