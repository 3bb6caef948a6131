"""Tables from files, for fits: CSV, Parquet and JSON lines; rows left out by rule; columns checked by their names."""

import csv
import difflib
import gzip
import io
import json
import math
import operator
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from jaxsat.config import InputError

_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt,
            ">": operator.gt}  # fmt: skip
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")


def read(path: str) -> pd.DataFrame:
    """The table in a file: Parquet where its name ends in .parquet, JSON lines in .jsonl, else CSV, with commas, tabs
    or semicolons between its fields; lines above its header that begin with # are left out. Text may be gzipped (.gz).

    What stands in a CSV stays text, until `numbers` reads it. Raises InputError: no such file, no rows, not what its
    name says, or a line that has not as many fields as the header.
    """
    if not Path(path).is_file():
        raise InputError(f"no file {path}")
    name = path.lower().removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            table = _parquet(path)
            table = table.reset_index(drop=table.index.names == [None])  # rows left out before leave holes in it
        else:
            content = Path(path).read_bytes()
            text = (gzip.decompress(content) if path.lower().endswith(".gz") else content).decode("utf-8-sig")
            table = _json_lines(text) if name.endswith(".jsonl") else _csv(text)
    except UnicodeDecodeError:
        raise InputError(f"cannot read {path}: it is no text in UTF-8") from None
    except (
        ValueError,
        OSError,
        EOFError,
        zlib.error,
        csv.Error,
    ) as e:  # of pyarrow, gzip and json too, all their errors of format
        raise InputError(f"cannot read {path}: {str(e).partition(chr(10))[0]}") from None
    if table.empty:
        raise InputError(f"{path} has no rows")
    return table.rename(columns=lambda name: str(name).strip())


def _parquet(path: str) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (pa.ArrowException, LookupError, TypeError, AttributeError) as e:  # the last of what pandas notes in it
        raise ValueError(f"{type(e).__name__}: {e}") from None


def _csv(text: str) -> pd.DataFrame:
    lines = text.splitlines(keepends=True)
    above = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    if above == len(lines):
        raise ValueError("it has no header")
    first = [line for line in lines[above:] if line.strip()][:2]
    splits = {sep: [len(row) for row in csv.reader(first, delimiter=sep, skipinitialspace=True)] for sep in ",\t;"}
    sep = max(splits, key=lambda sep: (len(set(splits[sep])) == 1 and splits[sep][0] > 1, splits[sep][0]))
    # A field in quotes may hold line ends, and a tab is no blank to skip where it separates.
    reader = csv.reader(io.StringIO("".join(lines[above:]), newline=""), delimiter=sep, skipinitialspace=sep != "\t")
    header = [name.strip() for name in next(reader)]
    while header and not header[-1]:
        header.pop()
    if not any(math.isnan(number(name)) for name in header):
        raise ValueError(f"line {above + 1} must name the columns, and holds numbers alone: {lines[above].strip()}")
    rows = []
    for row in reader:
        row = [field.strip() for field in row]
        if not any(row):
            continue
        if len(row) < len(header) or any(row[len(header) :]):
            raise ValueError(
                f"line {above + reader.line_num} has {len(row)} fields, and the header names {len(header)}"
            )
        rows.append(row[: len(header)])
    return pd.DataFrame(rows, columns=header, dtype=object)


def _json_lines(text: str) -> pd.DataFrame:
    rows = []
    for i, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as e:
            raise ValueError(f"line {i} is not JSON: {e}") from None
        except (ValueError, RecursionError) as e:  # a number of 5000 digits, brackets in brackets without end
            raise ValueError(f"line {i} cannot be read: {e}") from None
        if not isinstance(rows[-1], dict):
            raise ValueError(f'line {i} is no object, such as {{"N": 1e9, "loss": 2.5}}')
    return pd.DataFrame(rows, dtype=object)


def column(table: pd.DataFrame, name: str, flag: str = "") -> pd.Series:
    """flag: the option that names this column, for the message. Raises InputError: there is none, or there are two."""
    if name not in table:
        alike = [c for c in table.columns if c.lower() == name.lower()]
        near = (alike or difflib.get_close_matches(name, table.columns, n=1) or [""])[0]
        hint = f"did you mean {near!r}{f' ({flag} {near!r})' if flag else ''}? " if near else ""
        how = f" ({flag} names another)" if flag and not near else ""
        raise InputError(f"no column {name!r}{how}; {hint}there are {', '.join(map(str, table.columns))}")
    if list(table.columns).count(name) > 1:
        raise InputError(f"two columns are named {name!r}: rename one")
    return table[name]


def labels(table: pd.DataFrame, name: str, flag: str = "") -> pd.Series:
    """A column as text. Raises InputError with the row, counted from 1, that has nothing there."""
    values = column(table, name, flag)
    if (missing_R := values.isna().to_numpy()).any():
        row = table.index[missing_R.argmax()] + 1
        raise InputError(f"column {name!r}, row {row}: nothing is there; {missing_R.sum()} such rows")
    return values.astype(str)


def number(value: Any) -> float:
    """A number as tables hold them: 1e9, 1.2B, 70M, 1,200,000 or 12_000. NaN: it is none, or not one alone."""
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        pass
    text = str(value).strip()
    if text[-1:].lower() in _SUFFIXES:
        try:
            return float(text[:-1]) * _SUFFIXES[text[-1].lower()]
        except ValueError:
            return math.nan
    grouped = _THOUSANDS.fullmatch(text)
    # 3,123 alone may be 3123 or a decimal comma.
    return float(text.replace(",", "")) if grouped and (text.count(",") > 1 or grouped[2]) else math.nan


def _numbers(values: Iterable[Any]) -> np.ndarray:
    """Float64; NaN where there is none. In a column that has thousands beyond doubt, 70,000 is 70000."""
    values = list(values)
    number_R = np.array([number(value) for value in values])
    grouped = [isinstance(value, str) and "," in value for value in values]
    if any(grouped) and all(_THOUSANDS.fullmatch(v.strip()) for v, is_so in zip(values, grouped) if is_so):
        if np.isfinite(number_R[grouped]).any():
            number_R[grouped] = [float(v.replace(",", "")) for v, is_so in zip(values, grouped) if is_so]
    return number_R


def numbers(table: pd.DataFrame, name: str, positive: bool = True, flag: str = "") -> np.ndarray:
    """A column as float64. Raises InputError with the row, counted from 1, that is no finite or no positive number."""
    values = column(table, name, flag)
    values_R = _numbers(values)
    bad_R = ~np.isfinite(values_R) | (positive & ~(values_R > 0))
    if bad_R.any():
        row = int(bad_R.argmax())
        found = values.iloc[row]
        where = f"column {name!r}, row {table.index[row] + 1}"
        if isinstance(found, str) and re.fullmatch(r"[+-]?\d+,\d+", found.strip()):
            raise InputError(f"{where}: {found} may have a decimal comma or thousands: write it without a comma")
        right = "a positive finite number" if positive else "a finite number"
        found = "nothing" if isinstance(found, str) and not found else found
        raise InputError(f"{where}: {found} must be {right}; {bad_R.sum()} such rows, which --where can leave out")
    return values_R


def where(table: pd.DataFrame, rules: Sequence[str], flag: str = "--where") -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows that satisfy every rule, such as "loss < 5" or "sweep == long", and how many each rule left out.

    A rule is COLUMN OPERATOR VALUE, with the operators <, <=, >, >=, == and !=; one that compares with a number leaves
    out what is none. Raises InputError: a rule of another shape, an unknown column, or no rows left.
    """
    left_out = {}
    for rule in rules:
        parts = re.fullmatch(r"\s*(.+?)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*", rule)
        if not parts:
            raise InputError(f"{flag} {rule!r}: must be COLUMN OPERATOR VALUE, such as 'loss < 5'")
        name, sign, text = parts.groups()
        values, value = column(table, name), number(text)
        if not math.isnan(value):
            values_R = _numbers(values)
            keep_R = _COMPARE[sign](values_R, value) & ~np.isnan(values_R)
        elif sign in ("==", "!="):
            keep_R = _COMPARE[sign](values.astype(str).to_numpy(), text)
        else:
            raise InputError(f"{flag} {rule!r}: {text!r} is not a number")
        left_out[rule], table = int((~keep_R).sum()), table[keep_R]
        if table.empty:
            raise InputError(f"{flag} {rule!r} leaves no rows")
    return table, left_out


def copies(table: pd.DataFrame) -> int:
    """Rows that are equal to an earlier one in every column that has a name."""
    return int(table.loc[:, table.columns != ""].astype(str).duplicated().sum())
