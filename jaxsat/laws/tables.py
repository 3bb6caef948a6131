"""Tables from files, for fits: CSV, Parquet and JSON lines; rows left out by rule; columns checked by their names."""

import operator
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxsat.config import InputError

_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt,
            ">": operator.gt}  # fmt: skip


def read(path: str) -> pd.DataFrame:
    """The table in a file. CSV unless its name ends in .parquet or .jsonl (or .jsonl.gz). Raises InputError:
    no such file, no rows, or not what its name says."""
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
        name, sign, value = parts.groups()
        compare, values = _COMPARE[sign], column(table, name)
        try:
            values, value = pd.to_numeric(values, errors="coerce"), float(value)
            keep = compare(values, value) & values.notna()
        except ValueError:
            if sign not in ("==", "!="):
                raise InputError(f"{flag} {rule!r}: {value!r} is not a number") from None
            keep = compare(values.astype(str), value)
        left_out[rule], table = int((~keep).sum()), table[keep]
        if table.empty:
            raise InputError(f"{flag} {rule!r} leaves no rows")
    return table, left_out


def number(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{flag}: {text!r} is not a number") from None
