"""Tables from files, for fits: CSV, Parquet and JSON lines; rows left out by rule; columns checked by their names."""

import operator
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxsat.config import InputError, unknown

SUFFIXES = (".csv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz")
_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt,
            ">": operator.gt}  # fmt: skip


def read(path: str) -> pd.DataFrame:
    """The table in a file. Raises InputError: no such file, another format, no rows, or not what its name says."""
    if not path.endswith(SUFFIXES):
        raise InputError(f"{path}: a table is one of {', '.join(SUFFIXES)}")
    if not Path(path).is_file():
        raise InputError(f"no file {path}")
    try:
        if path.endswith(".parquet"):
            table = pd.read_parquet(path)
        elif ".jsonl" in path:
            table = pd.read_json(path, lines=True)
        else:
            table = pd.read_csv(path)
    except (ValueError, OSError) as e:  # of pandas, pyarrow and gzip, all their errors of format
        raise InputError(f"cannot read {path}: {str(e).splitlines()[0]}") from None
    if table.empty:
        raise InputError(f"{path} has no rows")
    return table.rename(columns=str)


def column(table: pd.DataFrame, name: str) -> pd.Series:
    if name not in table:
        raise InputError(f"no column {name!r}; there are {', '.join(table.columns)}")
    return table[name]


def numbers(table: pd.DataFrame, name: str, positive: bool = True) -> np.ndarray:
    """A column as float64. Raises InputError with the row, counted from 1, that is no finite or no positive number."""
    values_R = pd.to_numeric(column(table, name), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    bad_R = ~np.isfinite(values_R) | (positive & ~(values_R > 0))
    if bad_R.any():
        row = int(bad_R.argmax())
        right = "a positive finite number" if positive else "a finite number"
        found = table[name].iloc[row]
        where = f"column {name!r}, row {table.index[row] + 1}"
        raise InputError(f"{where}: {found} must be {right}; {bad_R.sum()} such rows, which --where can leave out")
    return values_R


def where(table: pd.DataFrame, rules: Sequence[str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """The rows that satisfy every rule, such as "loss < 5" or "sweep == long", and how many each rule left out.

    A rule is COLUMN OPERATOR VALUE, with the operators <, <=, >, >=, == and !=; one that compares with a number leaves
    out what is none. Raises InputError: a rule of another shape, an unknown column, or no rows left.
    """
    left_out = {}
    for rule in rules:
        parts = re.fullmatch(r"\s*(.+?)\s*(<=|>=|==|!=|<|>)\s*(.+?)\s*", rule)
        if not parts:
            raise InputError(f"--where {rule!r}: must be COLUMN OPERATOR VALUE, such as 'loss < 5'")
        name, sign, value = parts.groups()
        compare, values = _COMPARE[sign], column(table, name)
        try:
            values, value = pd.to_numeric(values, errors="coerce"), float(value)
            keep = compare(values, value) & values.notna()
        except ValueError:
            if sign not in ("==", "!="):
                raise InputError(f"--where {rule!r}: {value!r} is not a number") from None
            keep = compare(values.astype(str), value)
        left_out[rule], table = int((~keep).sum()), table[keep]
        if table.empty:
            raise InputError(f"--where {rule!r} leaves no rows")
    return table, left_out


def pairs(text: str, known: Sequence[str], flag: str) -> dict[str, str]:
    """ "N=1e9,D=2e10" -> {"N": "1e9", "D": "2e10"}. Raises InputError: another shape, an unknown name."""
    found = dict(part.partition("=")[::2] for part in text.split(","))
    for name, value in found.items():
        if not name or not value:
            raise InputError(f"{flag} {text}: must be NAME=VALUE,..., such as {known[0]}=1")
        if name not in known:
            raise unknown(f"name in {flag} {text}:", name, known)
    return found


def number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{flag}: {text!r} is not a number") from None
