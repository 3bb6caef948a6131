"""The tidy table of measurements: everything that laws, claims and reports know about a checkpoint.

One row a number: series, step, tokens (seen in training), layer (-1: of no layer), index (place in a vector, or a
head's rank), metric, value; and which measure made it, in which version. A measure that found nothing leaves a row
without a metric, so that it is not asked again.
"""

import io
import time

import numpy as np
import pandas as pd
import pyarrow as pa
from etils import epath

from jaxsat.config import InputError
from jaxsat.disk import intact, write_atomically

COLUMNS = {
    "series": "str",
    "step": "int64",
    "tokens": "int64",
    "layer": "int32",
    "index": "int32",
    "metric": "str",
    "value": "float64",
}
MADE_BY = {"measure": "str", "version": "int32"}
KEY = ["series", "step", "measure", "metric", "layer", "index"]
FLUSH_SECONDS = 5  # between writes of the whole file: 1078 checkpoints at pod scale have 2.4 M rows, 0.5 s each time


def rows(series: str, step: int, tokens: int, measure: str, version: int, values: pd.DataFrame) -> pd.DataFrame:
    """The rows that one measure made of one checkpoint, from its `measure.values`."""
    if values.empty:
        values = pd.DataFrame({"metric": [""], "layer": -1, "index": 0, "value": np.nan})
    made = {"series": series, "measure": measure, "version": version}
    made |= {name: given for name, given in {"step": step, "tokens": tokens}.items() if name not in values}
    return values.assign(**made)[[*COLUMNS, *MADE_BY]].astype(COLUMNS | MADE_BY)


def empty() -> pd.DataFrame:
    """A table without rows."""
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in (COLUMNS | MADE_BY).items()})


def newest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each measure of a series its newest version, and of what was made twice the last."""
    table = table[table["version"] == table.groupby(["series", "measure"])["version"].transform("max")]
    return table.drop_duplicates(KEY, keep="last").sort_values(KEY, ignore_index=True)


def read(folder: epath.PathLike) -> pd.DataFrame:
    """All tables of DIR/measurements, one file a writer, as one. Columns measure and version may be missing: rows that
    were put there by hand. Raises InputError where a file is no such table."""
    folder = epath.Path(folder)
    files = sorted(folder.glob("*.parquet")) if folder.exists() else []
    return newest(pd.concat([empty(), *map(_read, files)], ignore_index=True))


def _read(path: epath.Path) -> pd.DataFrame:
    try:
        content = path.read_bytes()
        if not intact(path, content):  # before a damaged length asks for all memory
            raise InputError(f"{path} is not as it was written: remove it, and what it held is measured again")
        table = pd.read_parquet(io.BytesIO(content))
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise InputError(f"{path} is not a Parquet file: {str(e).partition(chr(10))[0]}") from None
    if missing := COLUMNS.keys() - set(table.columns):
        raise InputError(f"{path} is not a table of measurements: columns missing: {', '.join(sorted(missing))}")
    table = table.assign(**{name: fill for name, fill in {"measure": "", "version": 0}.items() if name not in table})
    return pd.DataFrame({name: _typed(table[name], dtype, path) for name, dtype in (COLUMNS | MADE_BY).items()})


def _typed(column: pd.Series, dtype: str, path: epath.Path) -> pd.Series:
    """Raises InputError with the first row that does not fit, where `astype` would fail, cut or fill it."""
    if column.dtype == dtype and not (dtype == "str" and column.hasnans):
        return column
    given = column
    if dtype == "str":
        fits, right = column.map(lambda x: isinstance(x, str)), "a text"
    else:
        column = pd.to_numeric(column.where(column.map(np.isscalar)), errors="coerce")
        if dtype == "float64":
            fits, right = column.notna() | given.isna(), "a number"
        else:
            limits = np.iinfo(dtype)
            fits, right = column.between(limits.min, limits.max) & (column % 1 == 0), "a whole number"
    if not fits.all():
        row = int(np.argmin(fits))
        what = f"row {row} has {given.name} = {given.iloc[row]!r:.40}"
        raise InputError(f"{path} is not a table of measurements: {what}: must be {right}")
    return column.astype(dtype)


class Writer:
    """One writer's file of a folder of tables. What is added is on disk at most FLUSH_SECONDS and a job later, and when
    it closes; a reader never sees half a table."""

    def __init__(self, folder: epath.Path, name: str):
        self._path, self._new = folder / f"{name}.parquet", []
        self._written = time.monotonic()

    def add(self, rows: pd.DataFrame) -> None:
        self._new.append(rows)
        if time.monotonic() - self._written > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._new:
            old = [_read(self._path)] if self._path.exists() else []  # of a second process with the same name too
            table, self._new = newest(pd.concat([*old, *self._new], ignore_index=True)), []
            write_atomically(self._path, table.to_parquet(index=False))
        self._written = time.monotonic()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
