import gzip

import numpy as np
import pandas as pd
import pytest

from jaxsat.config import InputError
from jaxsat.laws import tables

TABLE = pd.DataFrame({"Model Size": [1, 2, 3, 4], "loss": [4.0, np.nan, 2.5, -1.0], "run": ["a", "a", "b", "3"]})


@pytest.fixture
def written(tmp_path):
    TABLE.to_csv(tmp_path / "t.csv", index=False)
    TABLE.to_csv(tmp_path / "t.csv.gz", index=False)
    TABLE.to_parquet(tmp_path / "t.parquet")
    TABLE.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress((tmp_path / "t.jsonl").read_bytes()))
    return tmp_path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet", "t.jsonl", "t.jsonl.gz"])
def test_every_format_holds_the_same_table(written, name):
    read = tables.read(str(written / name))
    pd.testing.assert_frame_equal(read.astype({"run": str}), TABLE.astype({"run": str}), check_dtype=False)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.parquet", b"not parquet", "cannot read .*t.parquet"),
        ("t.csv.gz", b"not gzip", "cannot read .*t.csv.gz"),
        ("t.csv", b"", "cannot read .*t.csv: No columns"),
        ("t.csv", b"N,D,loss\n", "t.csv has no rows"),
        ("t.csv", b"a,b\n1,2\n1,2,3,4\n", "cannot read .*t.csv"),
        ("t.csv", b"\xff\xfe\x00loss\n", "cannot read .*t.csv"),
        ("t.jsonl", b"{not json\n", "cannot read .*t.jsonl"),
    ],
)
def test_what_is_no_table(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        tables.read(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_no_file():
    with pytest.raises(InputError, match="no file nowhere.csv"):
        tables.read("nowhere.csv")


@pytest.mark.parametrize(
    "rule, kept",
    [
        ("loss < 3", [2, 3]),
        ("loss<=2.5", [2, 3]),
        ("loss > -1.0", [0, 2]),
        ("loss != 4", [2, 3]),  # nothing measured is no number, and compares with none
        ("Model Size >= 3", [2, 3]),
        ("run == a", [0, 1]),
        ("run != a", [2, 3]),
        ("run == 3", [3]),
    ],
)
def test_rules_keep_rows_and_count_the_others(rule, kept):
    left, out = tables.where(TABLE, [rule])
    assert list(left.index) == kept and out == {rule: 4 - len(kept)}


def test_rules_apply_one_after_the_other():
    left, out = tables.where(TABLE, ["run == a", "Model Size > 1"])
    assert list(left.index) == [1] and out == {"run == a": 2, "Model Size > 1": 1}
    assert tables.where(TABLE, [])[1] == {}


@pytest.mark.parametrize(
    "rule, message",
    [
        ("loss", "must be COLUMN OPERATOR VALUE"),
        ("loss = 3", "must be COLUMN OPERATOR VALUE"),
        ("lss < 3", "no column 'lss'; there are Model Size, loss, run"),
        ("run < b", "'b' is not a number"),
        ("loss > 9", "leaves no rows"),
    ],
)
def test_wrong_rules(rule, message):
    with pytest.raises(InputError, match=message):
        tables.where(TABLE, [rule])


def test_numbers_name_the_column_and_the_row_of_the_file():
    np.testing.assert_array_equal(tables.numbers(TABLE, "Model Size"), [1, 2, 3, 4])
    np.testing.assert_array_equal(tables.numbers(TABLE[2:], "loss", positive=False), [2.5, -1])
    with pytest.raises(InputError, match="column 'loss', row 2: nan must be a positive finite number; 2 such rows"):
        tables.numbers(TABLE, "loss")
    with pytest.raises(InputError, match="column 'loss', row 4: -1.0 must be a positive finite number; 1 such rows"):
        tables.numbers(TABLE[2:], "loss")
    with pytest.raises(InputError, match="column 'run', row 1: a must be a finite number"):
        tables.numbers(TABLE, "run", positive=False)
