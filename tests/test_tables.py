import gzip
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxsat import tables
from jaxsat.config import InputError

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
    assert list(read.columns) == list(TABLE.columns) and list(read["run"]) == list(TABLE["run"])
    for column in ("Model Size", "loss"):
        np.testing.assert_array_equal([tables.number(value) for value in read[column]], TABLE[column])


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "T.CSV"])
@pytest.mark.parametrize(
    "content",
    [
        b"N,D,loss\n1200000000,70000000,2.5\n3,4,5\n",
        b"N,D,loss\n1200000000,70000000,2.5,\n3,4,5,\n",  # pandas takes the first column for an index
        b"N,D,loss,\n1200000000,70000000,2.5,\n3,4,5,,,\n",
        b"# of a sweep, 2024\n#\nN,D,loss\n1200000000,70000000,2.5\n\n3,4,5\n",
        b"N\tD\tloss\n1.2B\t70M\t2.5\n3\t4\t5\n",
        b"N;D;loss\n1.2b;70m;2.5\n3;4;5\n",
        b"\xef\xbb\xbf N , D, loss \r\n 1.2e9 , 70 M , 2.5 \r\n3,4,5",
        b'N,D,loss\n"1,200,000,000","70,000,000","2.5"\n3,4,5\n',
        b"N,D,loss\n1_200_000_000,0.07B,2.5\n3,4,5\n",
    ],
)
def test_what_is_unambiguous_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    read = tables.read(str(tmp_path / name))
    assert list(read.columns) == ["N", "D", "loss"]
    for column, expected in {"N": [1.2e9, 3], "D": [7e7, 4], "loss": [2.5, 5]}.items():
        np.testing.assert_allclose(tables.numbers(read, column), expected, rtol=1e-12)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**30), 10**30))
def test_every_number_is_read_as_python_writes_it(x, i):
    assert tables.number(repr(x)) == x and tables.number(f" {i} ") == tables.number(f"{i:_}") == float(i)
    if abs(i) >= 10**6:
        assert tables.number(f"{i:,}") == float(i)


@pytest.mark.parametrize("text", ["", "b", "1.2X", "3,12", "3,123", "1,20,000", "12 3", "1.2BB", "run1", None])
def test_what_is_no_number(text):
    assert np.isnan(tables.number(text))


def test_thousands_in_a_column_that_has_them_beyond_doubt():
    table = pd.DataFrame(
        {"N": ["1,200,000", "70,000", 5], "loss": ["3,123", "2.5", "2"], "D": ["3,12", "1,200,000", "1"]}
    )
    np.testing.assert_array_equal(tables.numbers(table, "N"), [1.2e6, 7e4, 5])
    for column, found in (("loss", "3,123"), ("D", "3,12")):
        with pytest.raises(
            InputError, match=f"column '{column}', row 1: {found} may have a decimal comma or thousands"
        ):
            tables.numbers(table, column)


def test_integers_beyond_64_bits(tmp_path):
    """6 N D of a large model."""
    flops = 6 * 70_000_000_000 * 15_000_000_000_000
    (tmp_path / "t.jsonl").write_text(f'{{"flops": {flops}, "loss": 2.5}}\n\n{{"loss": 2, "flops": 1}}\n')
    (tmp_path / "t.csv").write_text(f"flops,loss\n{flops},2.5\n1,2\n")
    for name in ("t.jsonl", "t.csv"):
        np.testing.assert_array_equal(tables.numbers(tables.read(str(tmp_path / name)), "flops"), [float(flops), 1])


def test_the_index_of_a_parquet_is_no_position_of_rows(tmp_path):
    """Rows left out before it was written leave holes in it; one with a name is a column."""
    path = str(tmp_path / "t.parquet")
    TABLE[2:].to_parquet(path)
    assert list(tables.read(path).index) == [0, 1]
    TABLE.set_index("Model Size")[1:].to_parquet(path)
    read = tables.read(path)
    assert list(read["Model Size"]) == [2, 3, 4] and list(read.index) == [0, 1, 2]


def test_copies_of_rows_are_counted():
    twice = pd.concat([TABLE, TABLE[:2]], ignore_index=True)
    assert tables.copies(TABLE) == 0 and tables.copies(twice) == 2
    assert tables.copies(twice.assign(**{"": range(6)})) == 2  # an index that was written with the rows


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.parquet", b"not parquet", "cannot read .*t.parquet"),
        ("t.csv.gz", b"not gzip", "cannot read .*t.csv.gz"),
        ("t.csv", b"", "cannot read .*t.csv: it has no header"),
        ("t.csv", b"# nothing\n\n", "cannot read .*t.csv: it has no header"),
        ("t.csv", b"N,D,loss\n", "t.csv has no rows"),
        ("t.csv", b"a,b\n1,2\n1,2,3,4\n", "cannot read .*t.csv: line 3 has 4 fields, and the header names 2"),
        ("t.csv", b"a,b,c\n1,2,3\n\n1,2\n", "cannot read .*t.csv: line 4 has 2 fields, and the header names 3"),
        ("t.csv", b"#\na,b\n1,2,3\n", "cannot read .*t.csv: line 3 has 3 fields, and the header names 2"),
        (
            "t.csv",
            b"1e9,2e9,2.5\n2e9,2e9,2.4\n",
            "cannot read .*t.csv: line 1 must name the columns, and holds numbers",
        ),
        ("t.csv", b"\xff\xfe\x00loss\n", "cannot read .*t.csv: it is no text in UTF-8"),
        ("t.csv.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03garbage", "cannot read .*t.csv.gz"),
        ("t.jsonl", b'{"a": 1}\n{not json\n', "cannot read .*t.jsonl: line 2 is not JSON"),
        ("t.jsonl", b"[" * 100_000, "cannot read .*t.jsonl: line 1 cannot be read: maximum recursion"),
        ("t.jsonl", b"[1, 2]\n", "cannot read .*t.jsonl: line 1 is no object, such as"),
    ],
)
def test_what_is_no_table(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        tables.read(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_what_pandas_notes_in_a_parquet_may_be_damaged(tmp_path):
    path, found = tmp_path / "t.parquet", set()
    content = TABLE.to_parquet()
    for at in range(len(content) // 2, len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
        try:
            tables.read(str(path))
        except InputError as e:
            found |= {*re.findall("cannot read .*t.parquet: (KeyError|TypeError): ", str(e))}
    assert found == {"KeyError", "TypeError"}


def test_a_label_that_is_missing_is_named():
    assert list(tables.labels(TABLE, "run")) == ["a", "a", "b", "3"]
    with pytest.raises(InputError, match="column 'run', row 2: nothing is there; 1 such rows"):
        tables.labels(TABLE.assign(run=["a", None, "b", 3]), "run")


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
        ("Model Size < 0.000000003B", [0, 1]),
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
        ("lss < 3", "no column 'lss'; did you mean 'loss'\\? there are Model Size, loss, run"),
        ("C < 3", "no column 'C'; there are Model Size, loss, run"),
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
    with pytest.raises(InputError, match="column 'run', row 2: nothing must be a positive finite number"):
        tables.numbers(TABLE.assign(run=["1", "", "2", "3"]), "run")


def test_a_column_is_suggested_by_its_option():
    table = pd.DataFrame({"n": [1], "Loss": [1]})
    with pytest.raises(InputError, match=r"no column 'N'; did you mean 'n' \(--n 'n'\)\? there are n, Loss"):
        tables.numbers(table, "N", flag="--n")
    with pytest.raises(InputError, match=r"no column 'D' \(--d names another\); there are n, Loss"):
        tables.numbers(table, "D", flag="--d")
    with pytest.raises(InputError, match="two columns are named 'n': rename one"):
        tables.numbers(pd.DataFrame([[1, 2]], columns=["n", "n"]), "n")
