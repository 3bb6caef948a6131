import numpy as np
import pandas as pd
import pytest

from jaxsat.config import InputError
from jaxsat.measure import table
from jaxsat.measure.measure import values


def rows(series="a", step=0, measure="loss", version=1, **metrics):
    return table.rows(series, step, 10 * step, measure, version, values(metrics or {"heldout_loss": 7.0}, measure))


def write(folder, name, *parts):
    with table.Writer(folder, name) as writer:
        for part in parts:
            writer.add(part)
    return table.read(folder)


def test_rows_say_series_step_and_who_made_them():
    made = rows("r1", 4, singular_value=[3.0, 2.0, 1.0], anisotropy=np.array([[0.1], [0.2]]), loss=np.float32(5.5))
    assert made.dtypes.astype(str).to_dict() == table.COLUMNS | table.MADE_BY
    assert made["metric"].tolist() == 3 * ["singular_value"] + 2 * ["anisotropy"] + ["loss"]
    assert made["index"].tolist() == [0, 1, 2, 0, 0, 0] and made["layer"].tolist() == [-1, -1, -1, 0, 1, -1]
    assert made["value"].tolist() == [3, 2, 1, 0.1, 0.2, 5.5] and set(made["tokens"]) == {40}
    own = pd.DataFrame({"metric": "gap", "index": [2, 8], "value": [4.0, 3.0], "step": [1, 2], "tokens": 5})
    made = table.rows("x", 0, 0, "x", 3, values(own, "x"))
    assert made["step"].tolist() == [1, 2] and set(made["tokens"]) == {5} and set(made["version"]) == {3}


def test_a_measure_that_found_nothing_leaves_its_mark(tmp_path):
    (row,) = write(tmp_path, "w", table.rows("a", 3, 30, "m", 2, values({}, "m"))).itertuples()
    assert (row.series, row.step, row.measure, row.version, row.metric) == ("a", 3, "m", 2, "")
    assert np.isnan(row.value)


def test_the_newest_version_of_a_measure_stands_alone(tmp_path):
    old = rows(version=1, a=1.0, b=[1.0, 2.0, 3.0])
    other = rows(measure="other", c=1.0)
    found = write(tmp_path, "w", old, other, rows(version=2, b=[9.0]))
    assert found[["measure", "metric", "value"]].values.tolist() == [["loss", "b", 9.0], ["other", "c", 1.0]]
    assert table.read(tmp_path).equals(write(tmp_path, "late", old)), "an older version comes too late"


def test_writers_have_a_file_each_and_are_read_as_one(tmp_path):
    write(tmp_path, "1-of-2", rows("a"))
    found = write(tmp_path, "2-of-2", rows("b"))
    assert found["series"].tolist() == ["a", "b"]
    assert {p.name for p in tmp_path.glob("*.parquet")} == {"1-of-2.parquet", "2-of-2.parquet"}
    assert write(tmp_path, "1-of-2", rows("a", 5))["step"].tolist() == [0, 5, 0], "what was there stays"


def test_order_of_measuring_does_not_matter(tmp_path):
    parts = [rows(series, step, singular_value=[2.0, 1.0]) for series in "ba" for step in (9, 0)]
    one = write(tmp_path / "0", "w", *parts)
    assert one.equals(write(tmp_path / "1", "w", *parts[::-1]))
    assert (tmp_path / "0" / "w.parquet").read_bytes() == (tmp_path / "1" / "w.parquet").read_bytes()


def test_rows_reach_the_disk_as_time_goes_by(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(table.time, "monotonic", lambda: now[0])
    writer = table.Writer(tmp_path, "w")
    writer.add(rows("a"))
    assert table.read(tmp_path).empty
    now[0] = table.FLUSH_SECONDS + 1
    writer.add(rows("b"))
    assert table.read(tmp_path)["series"].tolist() == ["a", "b"]


def test_a_kill_while_writing_leaves_the_old_table(tmp_path):
    before = write(tmp_path, "w", rows("a"))
    (tmp_path / ".w.parquet.part").write_bytes(b"half")
    assert table.read(tmp_path).equals(before)
    assert write(tmp_path, "w", rows("b"))["series"].tolist() == ["a", "b"]


def test_rows_put_there_by_hand_need_not_say_who_made_them(tmp_path):
    rows("a")[list(table.COLUMNS)].to_parquet(tmp_path / "mine.parquet")
    assert table.read(tmp_path)[["measure", "version", "value"]].values.tolist() == [["", 0, 7.0]]


def test_what_is_not_a_table_is_an_error_that_names_the_path(tmp_path):
    assert table.read(tmp_path / "nowhere").empty
    path = tmp_path / "w.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(InputError, match="w.parquet is not a Parquet file"):
        table.read(tmp_path)
    pd.DataFrame({"series": ["a"], "value": [1.0]}).to_parquet(path)
    with pytest.raises(InputError, match="columns missing: index, layer, metric, step, tokens"):
        table.read(tmp_path)


@pytest.mark.parametrize(
    "column, values, problem",
    [
        ("value", ["high", "1.5"], "row 0 has value = 'high': must be a number"),
        ("value", [[1.0], [2.0]], r"row 0 has value = .*1.*: must be a number"),
        ("step", [1, None], "row 1 has step = .*nan.*: must be a whole number"),
        ("step", [1.0, 1.5], "row 1 has step = .*1.5.*: must be a whole number"),
        ("step", [1.0, np.inf], "row 1 has step = .*inf.*: must be a whole number"),
        ("index", [1, 2**31], "row 1 has index = .*2147483648.*: must be a whole number"),
        ("version", ["one", "two"], "row 0 has version = 'one': must be a whole number"),
        ("metric", ["a", None], "row 1 has metric = .*: must be a text"),
        ("series", [3, 4], "row 0 has series = .*3.*: must be a text"),
        ("measure", ["a", None], "row 1 has measure = .*: must be a text"),
    ],
)
def test_a_cell_that_is_something_else_is_named(tmp_path, column, values, problem):
    two = pd.concat([rows("a"), rows("b")], ignore_index=True)
    two.assign(**{column: pd.Series(values)}).to_parquet(tmp_path / "w.parquet")
    with pytest.raises(InputError, match=f"w.parquet is not a table of measurements: {problem}"):
        table.read(tmp_path)


def test_what_can_be_read_without_loss_is(tmp_path):
    two = pd.concat([rows("a"), rows("b")], ignore_index=True)
    two.assign(step=[0.0, 5.0], value=["7.5", None], layer=["-1", "3"]).to_parquet(tmp_path / "w.parquet")
    found = table.read(tmp_path)
    assert found.dtypes.astype(str).to_dict() == table.COLUMNS | table.MADE_BY
    assert found["step"].tolist() == [0, 5] and found["layer"].tolist() == [-1, 3] and found["value"][0] == 7.5
    assert np.isnan(found["value"][1])


def test_a_new_version_leaves_nothing_of_the_old_at_other_steps(tmp_path):
    found = write(tmp_path, "w", rows(step=100), rows(step=200), rows(step=150, version=2))
    assert found["step"].tolist() == [150]


def test_two_writers_of_one_name_keep_each_others_rows(tmp_path):
    one, two = table.Writer(tmp_path, "w"), table.Writer(tmp_path, "w")
    one.add(rows("a"))
    two.add(rows("b"))
    one.flush()
    two.flush()
    assert table.read(tmp_path)["series"].tolist() == ["a", "b"]
