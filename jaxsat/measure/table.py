"""The tidy table of measurements: everything that laws and report know about a checkpoint.

One row a number: run, step, tokens (seen in training), layer (-1: of no layer), index (place in a vector, or a
head's rank), metric, value.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
from etils import epath
from numpy.typing import ArrayLike

from jaxsat.config import InputError

COLUMNS = {
    "run": "str",
    "step": "int64",
    "tokens": "int64",
    "layer": "int32",
    "index": "int32",
    "metric": "str",
    "value": "float64",
}
KEY = ["run", "step", "layer", "index", "metric"]


def rows(
    run: str,
    step: int,
    tokens: int,
    metric: ArrayLike,
    value: ArrayLike,
    layer: ArrayLike = -1,
    index: ArrayLike | None = None,
) -> pd.DataFrame:
    """The rows of one checkpoint. `metric`, `value`, `layer` and `index` broadcast to one vector;
    by default a vector's index counts from 0."""
    value = np.atleast_1d(np.asarray(value, np.float64))
    index = np.arange(value.size) if index is None else index
    metric, value, layer, index = np.broadcast_arrays(metric, value, layer, index)
    columns = dict(run=run, step=step, tokens=tokens, layer=layer, index=index, metric=metric, value=value)
    return pd.DataFrame(columns).astype(COLUMNS)


def empty() -> pd.DataFrame:
    """A table without rows."""
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in COLUMNS.items()})


def merge(path: epath.PathLike, new: pd.DataFrame) -> pd.DataFrame:
    """Adds rows to the table at `path` and returns it. A number measured again replaces the old one; a reader
    never sees half a table."""
    path = epath.Path(path)
    old = [read(path)] if path.exists() else []
    table = pd.concat([*old, new[list(COLUMNS)].astype(COLUMNS)]).drop_duplicates(KEY, keep="last")
    table = table.sort_values(["run", "step", "metric", "layer", "index"], ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(table.to_parquet(index=False))
    part.replace(path)
    return table


def read(path: epath.PathLike) -> pd.DataFrame:
    """The table at `path`. Raises InputError when there is none, or the file is not one."""
    path = epath.Path(path)
    if not path.exists():
        raise InputError(f"no measurements at {path}: measure a directory of trained runs first")
    try:
        with path.open("rb") as f:
            table = pd.read_parquet(f)
    except pa.ArrowInvalid as e:
        raise InputError(f"{path} is not a Parquet file: {e}") from None
    if missing := set(COLUMNS) - set(table.columns):
        raise InputError(f"{path} is not a table of measurements: columns missing: {', '.join(sorted(missing))}")
    return table[list(COLUMNS)].astype(COLUMNS)
